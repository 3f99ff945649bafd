"""Summaries of a run for the log, before its first step and after its last one."""

import math
import os
import shlex
from collections.abc import Mapping, Sequence

from janus_jax.conversion.configs import janus_to_huggingface
from janus_jax.data.examples import TASKS
from janus_jax.data.packing import WAITING, MeanSize
from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig, JanusConfig
from janus_jax.runs.config import TrainConfig
from janus_jax.training.metrics import METRICS_FILE, WIDTH, read_metrics
from janus_jax.training.run_config import expected_samples
from janus_jax.training.stages import Stage, trained_paths

MULTIPLE = 64  # Suggested lengths of rows are multiples of it.


def start_summary(
  config: TrainConfig,
  compute: ComputeConfig,
  models: Sequence[JanusConfig],
  shapes: Mapping[str, tuple[int, ...]],
  mesh: Mapping[str, int],
  url: str,
) -> str:
  """The settings of a run, and a table of its stages: what trains in each, and on how much.

  `compute` is settled for these devices; `models` are the architectures in the stages, `shapes` has all parameters of
  the first by path, `mesh` the size of each axis.
  """
  stages, sized = config.run_stages, len(set(models)) > 1
  axes = ' x '.join(f'{name} {size}' for name, size in mesh.items() if size > 1)
  settings = {
    'workdir': url,
    'follow': 'metrics.jsonl, samples/, tensorboard/ (images and answers too)',
    'W&B': config.wandb_project or 'off: --config.wandb_project=NAME turns it on',
    'start': config.init_from,
    'data': f'{config.data.name}, {config.num_workers} worker processes',
    'devices': f'{math.prod(mesh.values())}{f": {axes}" if axes else ""}',
    'compute': f'{compute.dtype}, attention {compute.attention} (images {compute.vision_attention}), '
    f'remat {compute.remat}',
  }
  rows = [
    ('parameters', 'all', *(stage.name for stage in stages)),
    *_parameter_rows(shapes, stages),
    ('steps', '', *(f'{stage.steps:,}' for stage in stages)),
    (
      'rows a step',
      '',
      *(f'{stage.batch_size} x {config.sequence_length}' if stage.reads_data else '-' for stage in stages),
    ),
    *([('pixels, und', '', *(f'{model.image_size}' for model in models))] if sized else []),
    *([('pixels, gen', '', *(f'{model.vq.image_size}' for model in models))] if sized else []),
    ('und : text : gen', '', *(':'.join(map(str, stage.ratio)) if stage.reads_data else '-' for stage in stages)),
    *([('samples a step', '', *map(_samples, stages))] if any(map(expected_samples, stages)) else []),
    ('learning rate', '', *(f'{stage.learning_rate:g}' for stage in stages)),
  ]
  columns = [max(map(len, column)) for column in zip(*rows)]
  lines = [f'{name:{columns[0]}}  {value}' for name, value in settings.items()]
  lines += ['  '.join([f'{row[0]:{columns[0]}}', *map(str.rjust, row[1:], columns[1:])]) for row in rows]
  return '\n'.join(lines)


def _samples(stage: Stage) -> str:
  preference = stage.preference
  if stage.objective == 'sft':
    return '-'
  return f'{preference.num_prompts} {"pairs" if preference.pairs else f"x {preference.group}"}'


def _parameter_rows(shapes: Mapping[str, tuple[int, ...]], stages: Sequence[Stage]) -> list[tuple[str, ...]]:
  """Parameters of each module and of all: how many there are, and how many train in each stage."""
  trained = [shapes.keys(), *(trained_paths(stage, shapes) for stage in stages)]
  modules = [*dict.fromkeys(path.split('/')[0] for path in shapes), '']

  def count(module: str, paths: frozenset[str]) -> str:
    total = sum(math.prod(shapes[path]) for path in paths if path.startswith(f'{module}/' if module else ''))
    return '-' if not total else f'{total / 1e6:,.1f}M' if total >= 1e6 else f'{total / 1e3:,.1f}K'

  return [(module or 'all', *(count(module, paths) for paths in trained)) for module in modules]


def short_rows(stages: Sequence[Stage], means: Sequence[MeanSize], length: int) -> str | None:
  """Suggests rows shorter than `length` where examples (`means` of each stage) leave more than half of some empty.

  None where they do not, and where the examples of another stage want rows as long.
  """
  full = {stage.name: WAITING * mean.tokens / length for stage, mean in zip(stages, means)}
  fits = fitting_length(max((mean.tokens for mean in means), default=length))
  if min(full.values(), default=1.0) >= 0.5 or fits >= length:
    return None
  name = min(full, key=full.get)
  return f'{name}: rows are at most {full[name]:.0%} full ({WAITING} examples): --config.sequence_length={fits} fits'


def fitting_length(mean_tokens: float, longest: float = 0.0) -> int:
  """A length of rows that examples fill: half of as many as wait for a row, and no less than `longest` tokens."""
  return math.ceil(max(WAITING // 2 * mean_tokens, longest) / MULTIPLE) * MULTIPLE


def _export_layout(model: JanusConfig) -> str:
  """The layout of PyTorch that can express a model: transformers', or DeepSeek's."""
  try:
    janus_to_huggingface(model, 'float32')
    return 'huggingface'
  except InputError:
    return 'deepseek'


def end_summary(config: TrainConfig, workdir: str, url: str, model: JanusConfig) -> str:
  """A box with the losses of a finished run, and the commands that come next, which call its workdir `url`."""
  metrics = os.path.join(workdir, METRICS_FILE)
  lines = read_metrics(metrics) if os.path.exists(metrics) else []
  last = {name: value for line in lines for name, value in line.items()}
  shown = ('loss', *(f'held_out/{task}' for task in TASKS))
  losses = [f'{name} {value:.3g}' for name, value in last.items() if name in shown and value is not None]
  path, layout = shlex.quote(url.rstrip('/')), 'peft' if config.lora.rank else _export_layout(model)
  said = [
    f'complete: {last.get("step", 0):,} steps in {url}',
    ', '.join(losses),
    'next:',
    f'  python -m janus_jax.generate --checkpoint={path} --prompt="..." --out={path}-images',
    *([f'  python -m janus_jax.evaluate --checkpoint={path} --out={path}-scores'] if config.data.name == 'toy' else []),
    f'  python -m janus_jax.convert --input={path} --output={path}-{layout} --format={layout}',
    f'  tensorboard --logdir={path}/tensorboard',
  ]
  rule = '-' * min(WIDTH, max(map(len, said)))
  return '\n'.join([rule, *said, rule])
