"""Looks at the data of a config before anybody trains on it: the logic of `python -m janus_jax.data_check`."""

import collections
import dataclasses
import itertools
import json
import math
import os
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
import tqdm
from PIL import Image, ImageDraw, ImageFont

from janus_jax.data.aspects import with_grid
from janus_jax.data.examples import GENERATION_LOSS, IMAGE, TASKS, ExampleSpec, make_examples
from janus_jax.data.images import contact_sheet, save_png
from janus_jax.data.mean_sizes import mean_sizes
from janus_jax.data.packing import LONG, statistics
from janus_jax.data.workers import reason_of
from janus_jax.errors import InputError
from janus_jax.inference.image_files import prepare_directory
from janus_jax.runs.config import TrainConfig
from janus_jax.runs.datasets import check_data
from janus_jax.runs.setup import open_examples, stage_batches
from janus_jax.runs.start import open_start
from janus_jax.runs.summary import fitting_length
from janus_jax.training.stages import Stage, stage_models

SHEET = 'examples.png'
SHOWN = 6  # Examples of each source on the sheet.
TILE = 192  # Pixels of an image on the sheet; as much again holds its text.
BATCHES = 4  # Batches of each stage from which packing is measured.
MESSAGES_SHOWN = 3  # Messages about bad records, for each reason.


@dataclasses.dataclass(frozen=True)
class SourceReport:
  """Findings in a sample of a source, which is of the task `kind`.

  Attributes:
    records: number in the whole source.
    read: number in the sample.
    tokens: (shortest, mean, longest) example, in tokens, images included; zeros if there is none.
    tokens_99: most tokens of 99 % of the examples.
    images: mean number of images to understand per example.
    grids: images to generate by 'rows x columns' of their codes, where records name these.
    long: records that are longer than a row, by what becomes of them: 'cut', 'split' or 'skipped'.
    skipped: bad records of the sample by reason.
    messages: the first few errors of each reason.
    per_second: records read and decoded per second, by one process.
  """

  kind: str
  name: str
  records: int
  read: int
  tokens: tuple[int, float, int]
  tokens_99: int
  images: float
  grids: Mapping[str, int]
  long: Mapping[str, int]
  skipped: Mapping[str, int]
  messages: tuple[str, ...]
  per_second: float


@dataclasses.dataclass(frozen=True)
class StageReport:
  """Findings in the first batches of a stage.

  Attributes:
    packing: fraction of the positions that are no padding.
    slots: used fractions of the slots for images to understand and to generate; 0 where there are none.
    examples: mean number in a batch.
    fractions: (fraction of the examples, fraction of the tokens) of each 'task/source'. A ratio is one of examples.
    tokens: mean length of an example of each task, images included.
    expected_tokens: the same, as the config expects it.
  """

  name: str
  packing: float
  slots: tuple[float, float]
  examples: float
  fractions: Mapping[str, tuple[float, float]]
  tokens: tuple[float, ...]
  expected_tokens: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class DataReport:
  """Reports on all sources and stages of a config, path of the sheet, and a length that fits where rows are padding."""

  sources: tuple[SourceReport, ...]
  stages: tuple[StageReport, ...]
  sheet: str
  better_length: int | None

  def json_lines(self) -> str:
    return '\n'.join(json.dumps(dataclasses.asdict(report)) for report in (*self.sources, *self.stages))

  def table(self) -> str:
    """The report as text for a person."""
    head = f'{"source":30} {"records":>11} {"tokens min/mean/max":>21} {"images":>7} {"read/s":>8}'
    lines = [f'{head}  skipped of a sample']
    for report in self.sources:
      low, mean, high = report.tokens
      skipped = ', '.join(f'{reason} {count}' for reason, count in sorted(report.skipped.items())) or 'none'
      lines.append(
        f'{f"{report.kind}/{report.name}":30} {report.records:>11,} {f"{low}/{mean:.0f}/{high}":>21} '
        f'{report.images:>7.1f} {report.per_second:>8.0f}  {skipped} of {report.read}'
      )
      if report.grids:
        counts = ', '.join(f'{name}: {count}' for name, count in sorted(report.grids.items()))
        lines.append(f'    rows x columns of codes: {counts}')
      if report.long:
        counts = ', '.join(f'{name} {count}' for name, count in sorted(report.long.items()))
        lines.append(f'    longer than a row: {counts} of {report.read}')
      lines += [f'    {message}' for message in report.messages]
    for stage in self.stages:
      lines.append(
        f'\n{stage.name}: packed rows are {stage.packing:.1%} full, {stage.examples:.0f} examples a batch; slots used: '
        f'understanding {stage.slots[0]:.1%}, generation {stage.slots[1]:.1%}\n'
        f'    {"source":30} {"of examples":>12} {"of tokens":>12}'
      )
      for source, (examples, tokens) in stage.fractions.items():
        lines.append(f'    {source:30} {examples:>12.1%} {tokens:>12.1%}')
      found, assumed = (':'.join(f'{n:.0f}' for n in lengths) for lengths in (stage.tokens, stage.expected_tokens))
      lines.append(f'    mean tokens of an example, {":".join(TASKS)}: {found}; expected_tokens is {assumed}')
    if length := self.better_length:
      full = min(stage.packing for stage in self.stages)
      lines.append(f'rows are {full:.0%} full: --config.sequence_length={length} holds 99 % of the examples')
    return '\n'.join([*lines, f'examples as training sees them: {self.sheet}'])


def check(config: TrainConfig, out: str, records: int) -> DataReport:
  """Reads up to `records` records of each source that the stages name, spread over all of it, and packs a few batches.

  The sheet and indices of tars go to the directory `out`, which is made if missing.

  Raises:
    InputError: something in the config is wrong, or a source cannot be opened.
  """
  start, stages = open_start(config), config.run_stages
  models = stage_models(start.config, stages)
  for model in models:
    check_data(config, model)
  prepare_directory(out)
  reports, checked, tiles = {}, {}, []
  for model in dict.fromkeys(models):
    sized = start.resized(*model.sizes)
    data, spec = open_examples(config, sized, out)
    own = [stage for stage, other in zip(stages, models) if other == model]
    for task, name in dict.fromkeys(used for stage in own for used in _used_fractions(stage)):
      if name not in data.train[task]:
        raise InputError(f'no source of {task} is called {name!r}: expected one of {sorted(data.train[task])}')
      report, shown = _check_source(task, name, data.train[task][name], spec, records)
      tiles += shown if (task, name) not in reports else []
      reports[task, name] = report  # By the largest images.
    lengths = {f'{report.kind}/{report.name}': report.tokens[1] for report in reports.values()}
    means = mean_sizes(data.train, [(stage.ratio, stage.sources) for stage in own], spec, config.seed)
    for stage, mean in zip(own, means):
      checked[stage.name] = _check_stage(stage, stage_batches(config, stage, mean, data, spec), spec, lengths)
  sheet = os.path.join(out, SHEET)
  if tiles:
    save_png(sheet, contact_sheet(tiles, SHOWN), {})
  reports, stages = tuple(reports.values()), tuple(checked.values())
  length = fitting_length(max(report.tokens[1] for report in reports), max(report.tokens_99 for report in reports))
  is_better = length < config.sequence_length and min(stage.packing for stage in stages) < 0.5
  return DataReport(reports, stages, sheet, length if is_better else None)


def _used_fractions(stage: Stage) -> dict[tuple[str, str], float]:
  """Task and name of each source that a stage reads, and its fraction of the examples."""
  return {
    (task, name): part / sum(stage.ratio) * weight / sum(weights.values())
    for task, part in zip(TASKS, stage.ratio)
    for weights in [stage.sources.get(task, {})]
    for name, weight in weights.items()
    if part and weight
  }


def _check_source(
  task: str, name: str, source: grain.MapDataset, spec: ExampleSpec, records: int
) -> tuple[SourceReport, list[np.ndarray]]:
  read = min(records, len(source))
  lengths, images, messages, tiles = [], [], [], []
  long, skipped, grids = collections.Counter(), collections.Counter(), collections.Counter()
  begun = time.perf_counter()
  for number in tqdm.trange(read, desc=f'{task}/{name}', unit='record', dynamic_ncols=True, leave=False):
    try:
      record = source[number * len(source) // read]
      examples = make_examples(task, record, spec, np.random.default_rng(number), 0.0)
    except InputError as error:
      reason = reason_of(error)
      if reason == LONG:
        long['skipped'] += 1
      else:
        skipped[reason] += 1
        messages += [str(error)] if skipped[reason] <= MESSAGES_SHOWN else []
      continue
    if 'grid' in record:
      grids['{} x {}'.format(*record['grid'])] += 1
    long['split'] += len(examples) > 1
    long['cut'] += examples[0].cut
    lengths += [len(example.tokens) for example in examples]
    images += [len(example.pixels) for example in examples]
    if len(tiles) < SHOWN:
      tiles.append(_tile(record, f'{task}/{name}\n{sum(len(example.tokens) for example in examples)} tokens'))
  report = SourceReport(
    task,
    name,
    records=len(source),
    read=read,
    tokens=(min(lengths), float(np.mean(lengths)), max(lengths)) if lengths else (0, 0.0, 0),
    tokens_99=math.ceil(np.percentile(lengths, 99)) if lengths else 0,
    images=float(np.mean(images)) if images else 0.0,
    grids=dict(grids),
    long=dict(+long),
    skipped=dict(skipped),
    messages=tuple(messages),
    per_second=read / (time.perf_counter() - begun),
  )
  return report, tiles


def _check_stage(
  stage: Stage, stream: Iterator[Mapping[str, np.ndarray]], spec: ExampleSpec, lengths: Mapping[str, float]
) -> StageReport:
  found = list(itertools.islice(stream, BATCHES))
  counts = [statistics(batch) for batch in found]
  packing, examples = (float(np.mean([count[name] for count in counts])) for name in ('packing', 'examples'))
  fractions = stage_fractions(stage, lengths)
  tokens = tuple(_mean_length(task, fractions, lengths) for task in TASKS)
  slots = tuple(used_slots(found, spec))
  return StageReport(stage.name, packing, slots, examples, fractions, tokens, stage.expected_tokens)


def used_slots(found: Sequence[Mapping[str, np.ndarray]], spec: ExampleSpec) -> Iterator[float]:
  """Used fractions of the slots of batches for images to understand, and to generate; 0 of no slots."""
  for name, positions, per_image in (
    ('pixels', [batch['token_types'] == IMAGE for batch in found], spec.num_image_tokens),
    ('generation_pixels', [batch['loss_ids'] == GENERATION_LOSS for batch in found], spec.num_codes),
  ):
    slots = sum(batch[name].shape[1] for batch in found if name in batch)
    yield sum(int(where.sum()) for where in positions) / per_image / slots if slots else 0.0


def stage_fractions(stage: Stage, lengths: Mapping[str, float]) -> dict[str, tuple[float, float]]:
  """`StageReport.fractions` of a stage; `lengths` are mean tokens of an example of each 'task/source'."""
  examples = {'/'.join(source): fraction for source, fraction in _used_fractions(stage).items()}
  total = sum(fraction * lengths[source] for source, fraction in examples.items()) or 1.0
  return {source: (fraction, fraction * lengths[source] / total) for source, fraction in examples.items()}


def _mean_length(task: str, fractions: Mapping[str, tuple[float, float]], lengths: Mapping[str, float]) -> float:
  """Mean tokens of an example of a task; 0 where a stage has none."""
  members = {source: examples for source, (examples, _) in fractions.items() if source.startswith(f'{task}/')}
  return sum(part * lengths[source] for source, part in members.items()) / (sum(members.values()) or 1.0)


def _tile(record: Mapping[str, Any], caption: str) -> np.ndarray:
  """uint8[2 * TILE, TILE, 3]: the first image of a record, if it has one, and its text."""
  tile = Image.new('RGB', (TILE, 2 * TILE), 'white')
  images = record['images'] if 'images' in record else [record['image']] if 'image' in record else []
  if images:
    tile.paste(Image.fromarray(images[0]).resize((TILE, TILE)))
  if 'prompt' in record:
    words = with_grid(record['prompt'], record.get('grid'))
  else:
    words = '\n'.join(record['turns']) if 'turns' in record else record['text']
  lines = [*caption.splitlines(), *(line for part in words.splitlines() for line in textwrap.wrap(part, 30))][:15]
  printable = '\n'.join(lines).encode('latin-1', 'replace').decode('latin-1')  # What Pillow's own font has.
  ImageDraw.Draw(tile).multiline_text((4, TILE + 4 if images else 4), printable, 'black', ImageFont.load_default(11))
  return np.asarray(tile)
