"""The model card of an upload to the Hugging Face hub: what was trained, from what, on what, how, and with what scores.

It shows names on the hub as they are, and of any other path the last component alone.
"""

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from janus_jax.conversion import hub
from janus_jax.conversion.adapters import split_base
from janus_jax.conversion.buckets import absolute, local_files
from janus_jax.conversion.checkpoint import Checkpoint
from janus_jax.conversion.mapping import Format
from janus_jax.conversion.peft_files import PEFT_LAYOUTS
from janus_jax.conversion.workdir import is_workdir, split_ema
from janus_jax.data.examples import TASKS
from janus_jax.evaluation.scoreboard import HEAD, markdown_table, read_scores, table_rows
from janus_jax.runs import workdirs
from janus_jax.runs.callbacks import BENCHMARKS_DIRECTORY
from janus_jax.runs.config import filled
from janus_jax.training.metrics import METRICS_FILE, read_metrics

# Of DeepSeek's weights, and so of what is derived from them.
LICENSED = ('deepseek-ai/', 'deepseek-community/')
LICENSE = {
  'license': 'other',
  'license_name': 'deepseek',
  'license_link': 'https://github.com/deepseek-ai/DeepSeek-LLM/blob/HEAD/LICENSE-MODEL',
}


def model_card(name: str, source: str | Mapping[str, str], checkpoint: Checkpoint, format: Format) -> str:
  """The card, as Markdown below the metadata that the hub reads.

  Args:
    name: ORGANISATION/NAME that the model is uploaded as.
    source: path that the model was opened from; of a composed one those of its parts, by name.
    checkpoint: the model.
    format: layout that it is uploaded in.

  Raises:
    InputError: scores of a workdir that are no scores.
  """
  from huggingface_hub import ModelCardData

  path, averaged = split_ema(split_base(source)[1]) if isinstance(source, str) else ('', False)
  directory = hub.resolved(path)
  config = filled(workdirs.read_config(path)) if path and is_workdir(directory) else {}
  adapter = checkpoint.adapter
  starts = _starts(config.get('init_from', adapter.base if adapter else source))
  named = {part: hub.repository(start) for part, start in starts.items() if part != 'vq'}  # Which is a file.
  bases = list(filter(None, named.values()))
  metadata = ModelCardData(
    library_name={'huggingface': 'transformers', 'peft': 'peft'}.get(format, 'janus_jax'),
    pipeline_tag='any-to-any',
    tags=['janus', 'janus_jax'],
    base_model=bases[0] if len(bases) == 1 else bases or None,
    **(LICENSE if any(base.startswith(LICENSED) for base in bases) else {}),
  )
  lines = [f'---\n{metadata.to_yaml()}\n---', f'# {name.split("/")[1]}', _description(checkpoint, format)]
  shown = {part: start if named.get(part) else os.path.basename(absolute(start)) for part, start in starts.items()}
  origin = ', '.join(f'{part} `{start}`'.strip() for part, start in shown.items())
  if config:
    # The parameters lie in WORKDIR/checkpoints/STEP/params.
    step = int(checkpoint.sources[-1].split('/')[-2])
    files = local_files(directory)
    lines += _run(config, origin, step, averaged, files)
    lines += [] if averaged else _scores(step, files)
  elif isinstance(source, str):
    lines += [f'Converted from {origin}, whose files do not say how it was trained.']
  else:
    lines += [f'Composed of pretrained parts: {origin}. What connects them is new, and nothing was trained since.']
  return '\n\n'.join([*lines, *_use(name, format, bases)]) + '\n'


def _starts(source: str | Mapping[str, str]) -> Mapping[str, str]:
  """Part of the model -> where it comes from; '' for all of it. `source` may be an `init_from` that names parts."""
  if not isinstance(source, str):
    return source
  parts = dict(part.split('=', 1) for part in source.split(',')) if '=' in source else {'': source}
  return {part: split_ema(path)[0] for part, path in parts.items()}


def _description(checkpoint: Checkpoint, format: Format) -> str:
  arrays, what = checkpoint.params, 'A Janus'
  if format in PEFT_LAYOUTS:
    arrays, what = {**checkpoint.adapter.factors, **checkpoint.adapter.full}, 'An adapter (LoRA) of a Janus'
  count = sum(math.prod(leaf.shape) for leaf in arrays.values())
  dtypes = ', '.join(sorted({leaf.dtype.name for leaf in arrays.values()}))
  size = checkpoint.config.vq.image_size
  return (
    f'{what}: one model that answers questions about images and generates images ({size} x {size} pixels). '
    f'{count / 1e6:,.1f} million parameters, {dtypes}, layout `{format}`.'
  )


def _run(config: Mapping[str, Any], origin: str, step: int, averaged: bool, files: str) -> Iterator[str]:
  """Describes what a run began with, its data and its recipe, of the stages that ran until `step`."""
  ends = list(itertools.accumulate(config['stages'][name]['steps'] for name in config['run']))
  stages = [(name, config['stages'][name], end) for name, end in zip(config['run'], ends)]
  stages = [(name, stage, end) for name, stage, end in stages if end - stage['steps'] < step]
  averages = ' The parameters are averages over the steps (`optimizer.ema_decay`).' if averaged else ''
  yield f'Trained with janus_jax from {origin}: step {step:,} of {ends[-1]:,}.{averages}'
  yield '## Data'
  tasks = {
    (source, task): None
    for _, stage, _ in stages
    for task, part in zip(TASKS, stage['ratio'])
    for source, weight in stage['sources'].get(task, {}).items()
    if part and weight
  }
  entries = config['data']['sources']
  made = 'made (toy world)'
  rows = [(source, task, entries[source]['format'] if source in entries else made) for source, task in tasks]
  yield '\n'.join(markdown_table(('source', 'kind', 'format'), rows))
  yield '## Recipe'
  yield '\n'.join(_table_of_stages(stages, config['sequence_length'], step))
  axes = ', '.join(f'{axis} {size}' for axis, size in config['mesh'].items() if size != 1)
  facts = {'machine': _first_line(files, workdirs.MACHINE_FILE), 'mesh': axes.replace('-1', 'all the rest')}
  facts['revision of janus_jax'] = _first_line(files, workdirs.REVISION_FILE)
  yield '\n'.join(f'- {fact}: {value}' for fact, value in facts.items() if value)


def _table_of_stages(stages: Sequence[tuple[str, Mapping[str, Any], int]], length: int, step: int) -> list[str]:
  head = ('stage', 'steps', 'rows a step', 'learning rate', 'trains', ' : '.join(TASKS))
  rows = []
  for name, stage, end in stages:
    steps, schedule = f'{stage["steps"]:,}', stage['schedule']
    rows.append(
      (
        name,
        steps if end <= step else f'{step - end + stage["steps"]:,} of {steps}',
        f'{stage["batch_size"]} x {length} tokens',
        f'{stage["learning_rate"]:g}{"" if schedule == "constant" else f", {schedule}"}',
        ', '.join((*_factors(stage['lora']), *stage['trainable'])).replace('|', '\\|'),
        ' : '.join(map(str, stage['ratio'])),
      )
    )
  return markdown_table(head, rows)


def _factors(lora: Mapping[str, Any]) -> tuple[str, ...]:
  return (f'LoRA of rank {lora["rank"]} and alpha {lora["alpha"]:g}',) if lora['rank'] else ()


def _first_line(directory: str, name: str) -> str:
  """The first line of a file; '' where there is none."""
  path = os.path.join(directory, name)
  if not os.path.exists(path):
    return ''
  with open(path, encoding='utf-8') as file:
    return file.readline().strip()


def _scores(step: int, files: str) -> Iterator[str]:
  """The last losses on held-out data, and the last scores of benchmarks, that a run has measured until `step`."""
  path, directory = (os.path.join(files, name) for name in (METRICS_FILE, BENCHMARKS_DIRECTORY))
  metrics = read_metrics(path) if os.path.exists(path) else []
  losses = {
    name.split('/')[1]: (f'{value:.3f}', f'{line["step"]:,}')
    for line in metrics
    for name, value in line.items()
    if name.startswith('held_out/') and value is not None and line['step'] <= step
  }
  steps = map(int, filter(str.isdecimal, os.listdir(directory) if os.path.isdir(directory) else ()))
  scored = [number for number in steps if number <= step]
  if losses or scored:
    yield '## Scores'
    yield 'Measured by the run itself, before the model was converted.'
  if losses:
    rows = [(task, *figures) for task, figures in losses.items()]
    yield '\n'.join(markdown_table(('held-out data', 'loss, nats a target', 'step'), rows))
  if scored:
    found = table_rows(read_scores(os.path.join(directory, f'{max(scored):08}')))
    yield f'Benchmarks at step {max(scored):,}:'
    yield '\n'.join(markdown_table(HEAD[:-2], [row[:-2] for row in found]))


def _use(name: str, format: Format, bases: Sequence[str]) -> Iterator[str]:
  yield '## Use'
  if format == 'huggingface':
    yield f"""```python
from transformers import AutoProcessor, JanusForConditionalGeneration

processor = AutoProcessor.from_pretrained('{name}')
model = JanusForConditionalGeneration.from_pretrained('{name}')
```"""
  if format == 'peft':
    yield f"""```python
from peft import PeftModel
from transformers import JanusForConditionalGeneration

base = JanusForConditionalGeneration.from_pretrained('{''.join(bases)}')
model = PeftModel.from_pretrained(base, '{name}')
```"""
  yield f"""```python
import janus_jax
from PIL import Image

janus = janus_jax.load('{name}')
janus_jax.generate_images(janus, ['a red cube'], num_images=4)
janus_jax.answer(janus, [[Image.open('photo.jpg')]], ['What is this?'])
```"""
