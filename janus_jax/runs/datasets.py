"""Data of a run: the toy world, or the files that its config names."""

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.traverse_util
import grain
import jax
import numpy as np
from PIL import Image

from janus_jax.conversion.checkpoint import Checkpoint
from janus_jax.data.examples import TASKS
from janus_jax.data.resizing import find_resize
from janus_jax.data.sources import build, manifest
from janus_jax.data.sources.build import ImageSizes
from janus_jax.data.tokenizer import IMAGE_PLACEHOLDER
from janus_jax.errors import InputError
from janus_jax.models.config import JanusConfig, VQConfig
from janus_jax.runs.config import DataConfig, TrainConfig
from janus_jax.runs.image_codes import image_encoder, only_codes, stored_codes, vq_arrays
from janus_jax.toy import dataset
from janus_jax.toy.image_pairs import PairedImages
from janus_jax.toy.shapes import World
from janus_jax.toy.test_set import build_prompts, build_questions
from janus_jax.training.training_run import Sources


@dataclasses.dataclass(frozen=True)
class Samples:
  """Requests that are sampled along the way: prompts, and questions each about an image uint8[h, w, 3]."""

  prompts: list[str]
  questions: list[tuple[np.ndarray, str]]


@dataclasses.dataclass(frozen=True)
class RunData:
  """Sources of records by task and name (held out: of some tasks), and requests that are sampled along the way.

  `holds_codes` is True where images to generate come as codes, not as pixels.
  """

  train: Sources
  held_out: Sources
  holds_codes: bool
  samples: Samples


def check_data(config: TrainConfig, model: JanusConfig) -> None:
  """Raises InputError for what is wrong with the config of the data, before anything is written."""
  if config.data.name == 'toy':
    read_world(config, model)
    if config.data.precompute_codes and not config.data.num_train:
      raise InputError('data.precompute_codes is for stored scenes: expected False, as data.num_train is 0')
    return
  if config.data.precompute_codes:
    raise InputError('data.precompute_codes is for the toy world: expected False, and `janus_jax.tokenize` instead')
  if not config.data.specs and any(stage.reads_data for stage in config.run_stages):
    expected = "expected an entry for each source that the stages name, as data.name is 'files'"
    raise InputError(f'data.sources is empty: {expected}')
  hold_codes(config.data)


def read_world(config: TrainConfig, model: JanusConfig) -> World:
  """The toy world that a run reads."""
  return dataset.world_for(model, config.seed, **config.data.toy)


def open_data(
  config: TrainConfig,
  model: JanusConfig,
  workdir: str,
  open_start: Callable[[], Checkpoint],
  num_samples: int,
  is_new: bool = True,
) -> RunData:
  """Opens everything the stages read.

  Args:
    config: the run's.
    model: its architecture.
    workdir: holds made data and indices where `config.data.directory` is not set.
    open_start: returns the checkpoint that the run starts from, for its VQ.
    num_samples: number of prompts and questions that are sampled along the way.
    is_new: whether the run begins here. One that goes on does not need the checkpoint that it began with.

  Raises:
    InputError: files that are missing or of another format.
  """
  directory = os.path.expanduser(config.data.directory) or os.path.join(workdir, 'data')
  if config.data.name == 'toy':
    world = read_world(config, model)
    dataset.prepare_dataset(world, directory)
    coded = _generation_sources(config) if config.data.precompute_codes else ()
    codes = _ToyCodes(world, model.vq, directory, workdir, functools.cache(open_start), is_new)
    train, held_out = (
      _toy_sources(
        world,
        directory,
        split,
        config.seed,
        {name: codes.of(name, dataset.generated_split(name, split)) for name in coded},
      )
      for split in ('train', 'test')
    )
    prompts = [case.prompt for case in _spread(build_prompts(world, 1, config.seed), num_samples)]
    asked = _spread(build_questions(world, 1, config.seed), num_samples) if num_samples else []
    samples = Samples(prompts, [(case.image, case.question) for case in asked])
    return RunData(train, held_out, config.data.precompute_codes, samples)
  specs = config.data.specs
  sizes = ImageSizes(model.image_size, model.vq.image_size, find_resize(config.data.resize))
  opened = build.open_sources(specs, sizes, config.seed, os.path.join(directory, 'index'))
  samples = _samples(opened['held_out'], num_samples)
  return RunData(opened['train'], opened['held_out'], hold_codes(config.data), samples)


def open_image_pairs(
  config: TrainConfig, model: JanusConfig, directory: str
) -> tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]]:
  """Images for the refiner that `config.refining` describes: to train on, and held out.

  Of files they are those of all generation sources; the smaller ones are made of the larger by the run's own filter.

  Args:
    config: of the training.
    model: architecture, whose VQ has the smaller size.
    directory: holds indices where `config.data.directory` is not set.

  Returns:
    Twice, by index: {'small': uint8[size, size, 3], 'large': uint8[scale size, scale size, 3]}. Reading raises
    RecordError where one cannot be used.

  Raises:
    InputError: files that are missing or of another format, no source of images.
  """
  settings, size = config.refining, model.vq.image_size
  if config.data.name == 'toy':
    world = read_world(config, model)
    held_out = PairedImages(world, settings.scale, 'test', settings.held_out)
    return PairedImages(world, settings.scale, 'train'), held_out
  found = {
    name: spec for name, spec in config.data.specs.items() if spec.kind == 'generation' and not spec.fields.codes
  }
  if not found:
    raise InputError('data.sources: no generation source has images: expected one, for the refiner to learn from')
  count = -(-settings.held_out // len(found))
  specs = {name: dataclasses.replace(spec, held_out=max(spec.held_out, count)) for name, spec in found.items()}
  resize = find_resize(config.data.resize)
  directory = os.path.expanduser(config.data.directory) or directory
  sizes = ImageSizes(model.image_size, settings.scale * size, resize)
  opened = build.open_sources(specs, sizes, config.seed, os.path.join(directory, 'index'))

  def pair(record: dict[str, Any]) -> dict[str, Any]:
    return {'small': resize(Image.fromarray(record['image']), (size, size), None), 'large': record['image']}

  train, held_out = (list(opened[split]['generation'].values()) for split in ('train', 'held_out'))
  if not held_out:
    raise InputError('data.sources: too few images to hold some out: expected 10 or more in a generation source')
  train, held_out = (grain.MapDataset.concatenate(sources).map(pair) for sources in (train, held_out))
  return train, held_out


def hold_codes(data: DataConfig) -> bool:
  """True if images to generate come as codes, so that the VQ encoder is not part of a step. Raises InputError where
  those of some sources do and those of others do not.
  """
  if data.name == 'toy':
    return data.precompute_codes
  generated = [spec for spec in data.specs.values() if spec.kind == 'generation']
  coded = [spec.name for spec in generated if spec.fields.codes]
  if coded and len(coded) < len(generated):
    found = f'{", ".join(coded)} of {len(generated)} generation sources have codes'
    raise InputError(f'data.sources: {found}: expected all of them or none')
  return bool(coded)


def check_codes(config: TrainConfig, models: Sequence[JanusConfig], open_start: Callable[[], Checkpoint]) -> None:
  """Raises InputError where stored codes that a stage reads were made by another VQ than the run's, or at another size
  than the stage's, or have aspects and their source names no grid, or the other way round; `models` are the
  architectures in the stages.
  """
  specs, checked = config.data.specs if config.data.name == 'files' else {}, {}
  for stage, model in zip(config.run_stages, models):
    used = [specs[name] for name in stage.sources.get('generation', {}) if name in specs]
    for spec in (spec for spec in used if spec.fields.codes):
      checked |= {(os.path.dirname(path), model.vq): None for path in spec.path}
      _check_aspects(spec)
  if not checked:
    return
  vq_hash = manifest.parameters_hash(vq_arrays(open_start()))
  for directory, vq in sorted(checked, key=lambda found: found[0]):
    manifest.check_manifest(manifest.read_manifest(directory), vq_hash, vq.image_size, vq.codebook_size)


def _check_aspects(spec: build.SourceSpec) -> None:
  """Raises InputError where a source names a grid of codes that have none, or none of codes that have one."""
  for directory in dict.fromkeys(map(os.path.dirname, spec.path)):
    found = manifest.read_manifest(directory)
    if found.settings.aspects != bool(spec.fields.grid):
      expected = "'grid', as the codes" if found.settings.aspects else "'', as no codes"
      where = f'data.sources.{spec.name}.grid is {spec.fields.grid!r}'
      raise InputError(f'{where}: expected {expected} of {found.path} have aspects')


def _samples(held_out: Sources, count: int) -> Samples:
  """The first good held-out records: prompts, and first questions about one image."""
  prompts = (record['prompt'] for record in _good_records(held_out['generation']))
  found = (record for record in _good_records(held_out['understanding']) if 'turns' in record)
  asked = (record for record in found if len(record['images']) == 1)
  questions = ((record['images'][0], record['turns'][0].replace(IMAGE_PLACEHOLDER, '').strip()) for record in asked)
  return Samples(list(itertools.islice(prompts, count)), list(itertools.islice(questions, count)))


def _good_records(sources: Mapping[str, grain.MapDataset]) -> Iterator[dict[str, Any]]:
  """Records that can be read, one from each source in rotation."""
  for index in range(max(map(len, sources.values()), default=0)):
    for source in sources.values():
      with contextlib.suppress(InputError):  # A bad record is the stream's to count.
        if index < len(source):
          yield source[index]


def _generation_sources(config: TrainConfig) -> list[str]:
  """Stored images that some stage generates; also stages that do not run yet, so that they find their codes later."""
  weights = [stage.sources.get('generation', {}) for stage in config.stages.values()]
  return [name for name in dataset.NAMES if any(weight.get(name) for weight in weights)]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
  """`count` of the items, evenly over all of them."""
  return [items[i * len(items) // count] for i in range(min(count, len(items)))]


def _toy_sources(world: World, directory: str, split: str, seed: int, codes: Mapping[str, np.ndarray]) -> Sources:
  """The sources of the toy world by task, under the names that configs use; arguments as `dataset.sources`."""
  found, tasks = {task: {} for task in TASKS}, dict(zip(('und', 'text', 'gen'), TASKS))
  for key, source in dataset.sources(world, directory, split, seed, codes).items():
    name, ending = key.rsplit('_', 1)
    found[tasks[ending]][name] = source
  return found


@dataclasses.dataclass(frozen=True)
class _ToyCodes:
  """Codes of stored images of the toy world, made by the VQ that a run starts from.

  A run that goes on (not `is_new`) needs no VQ: its codes are those that it began with.
  """

  world: World
  vq: VQConfig
  directory: str
  workdir: str
  open_start: Callable[[], Checkpoint]
  is_new: bool

  def of(self, name: str, split: str) -> np.ndarray:
    """int32[n, P] of a stored source."""
    source = dataset.data_source(name, self.world, self.directory, split)
    stem = f'{name}-{split}-{dataset.name_of(self.world)}-{dataset.BUILDERS[name].VERSION}'
    kept = None if self.is_new else only_codes(self.workdir, stem)
    return stored_codes(
      self.workdir,
      kept or f'{stem}-{manifest.parameters_hash(self._arrays)[:16]}',
      lambda: [source[index]['image'] for index in range(len(source))],
      lambda pixels: self._encode(pixels),
    )

  @functools.cached_property
  def _arrays(self) -> dict[str, np.ndarray]:
    return vq_arrays(self.open_start())

  @functools.cached_property
  def _encode(self) -> Callable[[np.ndarray], jax.Array]:
    params = flax.traverse_util.unflatten_dict(self._arrays, sep='/')['vq']
    return image_encoder(self.vq, jax.device_put(params))
