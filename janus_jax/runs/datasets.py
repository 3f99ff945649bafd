"""What a run reads: the toy world, or the files that its config names."""

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np

from janus_jax.conversion.checkpoint import Checkpoint
from janus_jax.conversion.lazy import LazyArray
from janus_jax.conversion.load import load_params
from janus_jax.data.examples import TASKS
from janus_jax.data.resizing import find_resize
from janus_jax.data.sources import build, manifest
from janus_jax.data.sources.build import ImageSizes, SourceSpec
from janus_jax.data.tokenizer import IMAGE_PLACEHOLDER
from janus_jax.errors import InputError
from janus_jax.models.config import JanusConfig
from janus_jax.runs.config import DataConfig, TrainConfig
from janus_jax.runs.image_codes import image_encoder, only_codes, stored_codes
from janus_jax.toy import dataset
from janus_jax.toy.shapes import World
from janus_jax.toy.test_set import build_prompts, build_questions
from janus_jax.training.training_run import Sources


@dataclasses.dataclass(frozen=True)
class Samples:
  """What is looked at along the way.

  Attributes:
    prompts: drawn.
    questions: asked, each about an image uint8[h, w, 3].
  """

  prompts: list[str]
  questions: list[tuple[np.ndarray, str]]


@dataclasses.dataclass(frozen=True)
class RunData:
  """Sources of records by kind and name.

  Attributes:
    train: to train on.
    held_out: to measure the loss on; kinds may be missing.
    holds_codes: whether images to draw come as codes, not as pixels.
    samples: what is drawn and asked along the way.
  """

  train: Sources
  held_out: Sources
  holds_codes: bool
  samples: Samples


def check_data(config: TrainConfig, model: JanusConfig) -> None:
  """Raises InputError for what is wrong with the config of the data, before anything is written."""
  if config.data.name == 'toy':
    read_world(config, model)
    return
  if config.data.precompute_codes:
    raise InputError('data.precompute_codes is for the toy world: expected False, and `janus_jax.tokenize` instead')
  if not config.data.specs:
    raise InputError(
      "data.sources is empty: expected an entry for each source that the stages name, as data.name is 'files'"
    )
  hold_codes(config.data)


def read_world(config: TrainConfig, model: JanusConfig) -> World:
  """The toy world that a run reads."""
  return dataset.world_for(model, config.data.toy_grid, config.data.num_train, config.seed)


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
    config: of the run.
    model: its architecture.
    workdir: of the run; made data and indices lie in it, where `config.data.directory` is not set.
    open_start: gives the checkpoint that the run starts from, for its VQ.
    num_samples: how many prompts and questions to look at along the way.
    is_new: whether the run begins here. One that goes on does not need the checkpoint that it began with.

  Raises:
    InputError: files that are missing or of another format, codes of another VQ.
  """
  directory = os.path.expanduser(config.data.directory) or os.path.join(workdir, 'data')
  if config.data.name == 'toy':
    return _open_world(config, model, workdir, directory, open_start, num_samples, is_new)
  specs = config.data.specs
  sizes = ImageSizes(model.image_size, model.vq.image_size, find_resize(config.data.resize))
  opened = build.open_sources(specs, sizes, config.seed, os.path.join(directory, 'index'))
  if is_new:
    _check_manifests(specs, model, open_start)
  samples = _samples(opened['held_out'], num_samples)
  return RunData(opened['train'], opened['held_out'], hold_codes(config.data), samples)


def hold_codes(data: DataConfig) -> bool:
  """Whether images to generate come as codes, so that the VQ encoder is not part of a step; InputError where those of
  some sources do and those of others do not.
  """
  if data.name == 'toy':
    return data.precompute_codes
  generated = [spec for spec in data.specs.values() if spec.kind == 'generation']
  coded = [spec.name for spec in generated if spec.fields.codes]
  if coded and len(coded) < len(generated):
    found = f'{", ".join(coded)} of {len(generated)} generation sources have codes'
    raise InputError(f'data.sources: {found}: expected all of them or none')
  return bool(coded)


def _check_manifests(specs: Mapping[str, SourceSpec], model: JanusConfig, open_start: Callable[[], Checkpoint]) -> None:
  """Raises InputError where codes were made by another VQ than the run's, or at another size."""
  coded = {os.path.dirname(path) for spec in specs.values() if spec.fields.codes for path in spec.path}
  if not coded:
    return
  vq_hash = manifest.parameters_hash({path: leaf[...] for path, leaf in vq_params(open_start()).items()})
  for directory in sorted(coded):
    manifest.check_manifest(manifest.read_manifest(directory), vq_hash, model.vq.image_size, model.vq.codebook_size)


def vq_params(start: Checkpoint) -> dict[str, LazyArray]:
  """Those parameters of a checkpoint that make codes."""
  return {path: leaf for path, leaf in start.params.items() if path.startswith('vq/')}


def vq_digest(start: Checkpoint) -> str:
  """16 digits that change with the VQ of a checkpoint."""
  return manifest.parameters_hash({path: leaf[...] for path, leaf in vq_params(start).items()})[:16]


def _samples(held_out: Sources, count: int) -> Samples:
  """The first good held-out records: prompts to draw, and first questions about one image."""
  prompts = (record['prompt'] for record in _good_records(held_out['generation']))
  found = (record for record in _good_records(held_out['understanding']) if 'turns' in record)
  asked = (record for record in found if len(record['images']) == 1)
  questions = ((record['images'][0], record['turns'][0].replace(IMAGE_PLACEHOLDER, '').strip()) for record in asked)
  return Samples(list(itertools.islice(prompts, count)), list(itertools.islice(questions, count)))


def _good_records(sources: Mapping[str, grain.MapDataset]) -> Iterator[dict[str, Any]]:
  """In turn from each source."""
  for index in range(max(map(len, sources.values()), default=0)):
    for source in sources.values():
      # A bad record is the stream's to count.
      with contextlib.suppress(InputError):
        if index < len(source):
          yield source[index]


def _open_world(
  config: TrainConfig,
  model: JanusConfig,
  workdir: str,
  directory: str,
  open_start: Callable[[], Checkpoint],
  num_samples: int,
  is_new: bool,
) -> RunData:
  world = read_world(config, model)
  dataset.prepare_dataset(world, directory)
  codes = dict.fromkeys(('train', 'test'))
  if config.data.precompute_codes:
    named = _generation_sources(config)
    codes = {split: _drawn_codes(named, world, directory, split, workdir, open_start, is_new) for split in codes}
  sources = {split: _toy_sources(world, directory, split, config.seed, codes[split]) for split in codes}
  prompts = [case.prompt for case in _spread(build_prompts(1, config.seed), num_samples)]
  asked = _spread(build_questions(world, 1, config.seed), num_samples) if num_samples else []
  samples = Samples(prompts, [(case.image, case.question) for case in asked])
  return RunData(sources['train'], sources['test'], config.data.precompute_codes, samples)


def _generation_sources(config: TrainConfig) -> list[str]:
  """Stored images that some stage generates; also stages that do not run yet, so that they find their codes later."""
  weights = [stage.sources.get('generation', {}) for stage in config.stages.values()]
  return [name for name in dataset.NAMES if any(of_stage.get(name) for of_stage in weights)]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
  """`count` of the items, evenly over all of them."""
  return [items[i * len(items) // count] for i in range(min(count, len(items)))]


def _toy_sources(
  world: World, directory: str, split: str, seed: int, codes: Mapping[str, np.ndarray] | None = None
) -> Sources:
  """The sources of the toy world by kind, under the names that configs use; `codes` as `dataset.sources`."""
  found = dataset.sources(world, directory, split, seed, codes)
  endings = dict(zip(TASKS, ('_und', '_text', '_gen')))
  return {
    kind: {name.removesuffix(ending): source for name, source in found.items() if name.endswith(ending)}
    for kind, ending in endings.items()
  }


def _drawn_codes(
  names: Sequence[str],
  world: World,
  directory: str,
  split: str,
  workdir: str,
  open_start: Callable[[], Checkpoint],
  is_new: bool,
) -> dict[str, np.ndarray]:
  """int32[n, P] of the stored images of each of the embedded sources, encoded by the VQ that the run starts from.

  A run that goes on needs no VQ: its codes are those that it began with.
  """

  @functools.cache
  def tokenizer() -> Checkpoint:
    start = open_start()
    return dataclasses.replace(start, params=vq_params(start))

  @functools.cache
  def encoder() -> Callable[[np.ndarray], jax.Array]:
    return image_encoder(tokenizer().config.vq, load_params(tokenizer(), None)['vq'])

  codes = {}
  for name in names:
    source = dataset.data_source(name, world, directory, split)
    read = lambda source=source: [source[index]['image'] for index in range(len(source))]  # noqa: E731
    stem = f'{name}-{split}-{dataset.name_of(world)}-{dataset.BUILDERS[name].VERSION}'
    kept = None if is_new else only_codes(workdir, stem)
    codes[name] = stored_codes(
      workdir, kept or f'{stem}-{vq_digest(tokenizer())}', read, lambda pixels: encoder()(pixels)
    )
  return codes
