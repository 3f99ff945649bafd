"""Looks at the data of a config before anybody trains on it: the logic of `python -m janus_jax.data_check`."""

import collections
import dataclasses
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

from janus_jax.data.examples import GENERATION_LOSS, IMAGE, TASKS, ExampleSpec, make_examples
from janus_jax.data.images import contact_sheet, save_png
from janus_jax.data.mean_sizes import mean_sizes
from janus_jax.data.mixture import make_mixture
from janus_jax.data.packing import LONG, MeanSize, batch_shape, statistics
from janus_jax.data.pipeline import StreamOptions, batches
from janus_jax.data.workers import reason_of
from janus_jax.errors import InputError
from janus_jax.inference.image_files import prepare_directory
from janus_jax.runs import workdirs
from janus_jax.runs.config import TrainConfig
from janus_jax.runs.datasets import check_data, open_data
from janus_jax.runs.loading import load_tokenizer
from janus_jax.runs.setup import example_spec
from janus_jax.runs.start import open_start
from janus_jax.runs.summary import fitting_length
from janus_jax.training.stages import Stage

SHEET = 'examples.png'
SHOWN = 6  # Of each source, on the sheet.
TILE = 192  # Pixels of an image on the sheet; as much again holds its text.
BATCHES = 4  # Of each stage, to measure packing.
MESSAGES_SHOWN = 3  # Of bad records, for each reason.


@dataclasses.dataclass(frozen=True)
class SourceReport:
  """What a sample of a source was like.

  Attributes:
    kind: of the source.
    name: of the source.
    records: in the whole source.
    read: in the sample.
    tokens: (shortest, mean, longest) example, in tokens, images included; zeros if there is none.
    tokens_99: that 99 % of the examples have at most.
    images: mean number of images to understand per example.
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
  long: Mapping[str, int]
  skipped: Mapping[str, int]
  messages: tuple[str, ...]
  per_second: float


@dataclasses.dataclass(frozen=True)
class StageReport:
  """What a stage trains on.

  Attributes:
    name: of the stage.
    packing: fraction of the positions that are no padding, in its first batches.
    slots: fractions of the slots for images to understand and to generate that are used there; 0 where there are none.
    examples: in a batch, on average of these.
    fractions: of all examples and of all tokens, by 'kind/source'. The ratio of a stage is one of examples.
    tokens: mean length of an example of each kind, images included.
    expected_tokens: what the config says of that.
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
  """Of all sources and all stages of a config, where the sheet lies, and a length that fits where rows are padding."""

  sources: tuple[SourceReport, ...]
  stages: tuple[StageReport, ...]
  sheet: str
  better_length: int | None

  def json_lines(self) -> str:
    return '\n'.join(json.dumps(dataclasses.asdict(report)) for report in (*self.sources, *self.stages))

  def table(self) -> str:
    """What a person reads."""
    lines = [
      f'{"source":30} {"records":>11} {"tokens min/mean/max":>21} {"images":>7} {"read/s":>8}  skipped of a sample'
    ]
    for report in self.sources:
      low, mean, high = report.tokens
      skipped = ', '.join(f'{reason} {count}' for reason, count in sorted(report.skipped.items())) or 'none'
      lines.append(
        f'{f"{report.kind}/{report.name}":30} {report.records:>11,} {f"{low}/{mean:.0f}/{high}":>21} '
        f'{report.images:>7.1f} {report.per_second:>8.0f}  {skipped} of {report.read}'
      )
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
      lines += [
        f'    {source:30} {examples:>12.1%} {tokens:>12.1%}' for source, (examples, tokens) in stage.fractions.items()
      ]
      found, assumed = (':'.join(f'{n:.0f}' for n in lengths) for lengths in (stage.tokens, stage.expected_tokens))
      lines.append(f'    mean tokens of an example, {":".join(TASKS)}: {found}; expected_tokens is {assumed}')
    if self.better_length:
      full = min(stage.packing for stage in self.stages)
      lines.append(
        f'rows are {full:.0%} full: --config.sequence_length={self.better_length} holds 99 % of the examples'
      )
    return '\n'.join([*lines, f'examples as training sees them: {self.sheet}'])


def check(config: TrainConfig, out: str, records: int) -> DataReport:
  """Reads up to `records` records of each source that the stages name, spread over all of it, and packs a few batches.

  Args:
    config: of a run.
    out: directory, made if missing, for the sheet and for indices of tars.
    records: per source.

  Raises:
    InputError: something in the config is wrong, or a source cannot be opened.
  """
  start = open_start(config)
  check_data(config, start.config)
  prepare_directory(out)
  data = open_data(config, start.config, out, lambda: start, 0)
  with workdirs.tokenizer_of(start) as directory:
    tokenizer, template = load_tokenizer(directory)
  spec = example_spec(config.sequence_length, start.config, tokenizer, template, data.holds_codes)
  stages = config.run_stages
  reports, tiles = [], []
  for kind, name in _used(stages):
    if name not in data.train[kind]:
      raise InputError(f'no source of {kind} is called {name!r}: expected one of {sorted(data.train[kind])}')
    report, shown = _check_source(kind, name, data.train[kind][name], spec, records)
    reports.append(report)
    tiles += shown
  sheet = os.path.join(out, SHEET)
  if tiles:
    save_png(sheet, contact_sheet(tiles, SHOWN), {})
  lengths = {f'{report.kind}/{report.name}': report.tokens[1] for report in reports}
  means = mean_sizes(data.train, [(stage.ratio, stage.sources) for stage in stages], spec, config.seed)
  stages = tuple(_check_stage(stage, mean, data.train, spec, config, lengths) for stage, mean in zip(stages, means))
  length = fitting_length(max(report.tokens[1] for report in reports), max(report.tokens_99 for report in reports))
  is_better = length < config.sequence_length and min(stage.packing for stage in stages) < 0.5
  return DataReport(tuple(reports), stages, sheet, length if is_better else None)


def _used(stages: tuple[Stage, ...]) -> list[tuple[str, str]]:
  """Kind and name of each source that some stage reads."""
  found = [
    (kind, name)
    for stage in stages
    for kind, share in zip(TASKS, stage.ratio)
    for name, weight in stage.sources.get(kind, {}).items()
    if share and weight
  ]
  return list(dict.fromkeys(found))


def _check_source(
  kind: str, name: str, source: grain.MapDataset, spec: ExampleSpec, records: int
) -> tuple[SourceReport, list[np.ndarray]]:
  read = min(records, len(source))
  lengths, images, messages, tiles = [], [], [], []
  long, skipped = collections.Counter(), collections.Counter()
  begun = time.perf_counter()
  for place in tqdm.trange(read, desc=f'{kind}/{name}', unit='record', dynamic_ncols=True, leave=False):
    try:
      record = source[place * len(source) // read]
      examples = make_examples(kind, record, spec, np.random.default_rng(place), 0.0)
    except InputError as error:
      if reason_of(error) == LONG:
        long['skipped'] += 1
      else:
        skipped[reason_of(error)] += 1
        if skipped[reason_of(error)] <= MESSAGES_SHOWN:
          messages.append(str(error))
      continue
    long['split'] += len(examples) > 1
    long['cut'] += examples[0].cut
    lengths += [len(example.tokens) for example in examples]
    images += [len(example.pixels) for example in examples]
    if len(tiles) < SHOWN:
      tiles.append(_tile(record, f'{kind}/{name}\n{sum(len(example.tokens) for example in examples)} tokens'))
  seconds = time.perf_counter() - begun
  tokens = (min(lengths), float(np.mean(lengths)), max(lengths)) if lengths else (0, 0.0, 0)
  report = SourceReport(
    kind,
    name,
    len(source),
    read,
    tokens,
    math.ceil(np.percentile(lengths, 99)) if lengths else 0,
    float(np.mean(images)) if images else 0.0,
    dict(+long),
    dict(skipped),
    tuple(messages),
    read / seconds,
  )
  return report, tiles


def _check_stage(
  stage: Stage, mean: MeanSize, sources: Any, spec: ExampleSpec, config: TrainConfig, lengths: Mapping[str, float]
) -> StageReport:
  rooms = stage.images_per_row, stage.generation_images_per_row
  shape = batch_shape(stage.batch_size, config.sequence_length, mean, *rooms)
  options = StreamOptions(config.seed, config.guidance_dropout)
  stream = batches(sources, make_mixture(stage.ratio, stage.sources), spec, shape, options)
  found = [next(stream) for _ in range(BATCHES)]
  counts = [statistics(batch) for batch in found]
  packing, examples = (float(np.mean([one[name] for one in counts])) for name in ('packing', 'examples'))
  slots = tuple(used_slots(found, spec))
  fractions = stage_fractions(stage, lengths)
  tokens = tuple(_mean_length(kind, fractions, lengths) for kind in TASKS)
  return StageReport(stage.name, packing, slots, examples, fractions, tokens, stage.expected_tokens)


def used_slots(found: Sequence[Mapping[str, np.ndarray]], spec: ExampleSpec) -> Iterator[float]:
  """Fractions of the slots of batches that are used, for images to understand and to generate; 0 of no slots."""
  for name, positions, per_image in (
    ('pixels', [batch['token_types'] == IMAGE for batch in found], spec.num_image_tokens),
    ('generation_pixels', [batch['loss_ids'] == GENERATION_LOSS for batch in found], spec.num_codes),
  ):
    slots = sum(batch[name].shape[1] for batch in found if name in batch)
    yield sum(int(where.sum()) for where in positions) / per_image / slots if slots else 0.0


def stage_fractions(stage: Stage, lengths: Mapping[str, float]) -> dict[str, tuple[float, float]]:
  """What each source makes of the examples and of the tokens of a stage.

  Args:
    stage: ratio and sources.
    lengths: mean tokens of an example, by 'kind/source'.

  Returns:
    {'kind/source': (fraction of the examples, fraction of the tokens)}.
  """
  examples = {}
  for kind, part in zip(TASKS, stage.ratio):
    weights = stage.sources.get(kind, {})
    for name, weight in weights.items():
      if part and weight:
        examples[f'{kind}/{name}'] = part / sum(stage.ratio) * weight / sum(weights.values())
  total = sum(fraction * lengths[source] for source, fraction in examples.items()) or 1.0
  return {source: (fraction, fraction * lengths[source] / total) for source, fraction in examples.items()}


def _mean_length(kind: str, fractions: Mapping[str, tuple[float, float]], lengths: Mapping[str, float]) -> float:
  """Of the examples of a kind; 0 where a stage has none."""
  members = {source: examples for source, (examples, _) in fractions.items() if source.startswith(f'{kind}/')}
  return sum(part * lengths[source] for source, part in members.items()) / (sum(members.values()) or 1.0)


def _tile(record: Mapping[str, Any], caption: str) -> np.ndarray:
  """uint8[2 * TILE, TILE, 3]: the first image of a record, if it has one, and its text."""
  tile = Image.new('RGB', (TILE, 2 * TILE), 'white')
  images = record['images'] if 'images' in record else [record['image']] if 'image' in record else []
  if images:
    tile.paste(Image.fromarray(images[0]).resize((TILE, TILE)))
  words = '\n'.join(record['turns']) if 'turns' in record else record.get('text') or record['prompt']
  lines = [*caption.splitlines(), *(line for part in words.splitlines() for line in textwrap.wrap(part, 30))][:15]
  drawn = '\n'.join(lines).encode('latin-1', 'replace').decode('latin-1')  # What Pillow's own font has.
  ImageDraw.Draw(tile).multiline_text((4, TILE + 4 if images else 4), drawn, 'black', ImageFont.load_default(11))
  return np.asarray(tile)
