"""The toy world on disk: TFDS builders that write ArrayRecord, and the records that training reads from them.

Nothing here needs TensorFlow or the network: images are stored as uint8 tensors (TFDS' Image feature would import
TensorFlow), and both domains, shapes and digits, are made on the spot.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import logging
import os
from collections.abc import Iterator, Mapping
from typing import ClassVar

import grain
import numpy as np
import tensorflow_datasets as tfds

from janus_jax.errors import InputError
from janus_jax.models.config import JanusConfig
from janus_jax.toy import captions, digits, questions, scenes, shapes
from janus_jax.toy.shapes import World

# Records of a source whose scenes are rendered as they are read: a run ends long before.
ENDLESS = 10**9
ENDLESS_SPLITS = ('train', scenes.DRAWN)
# Half the widths of small and large objects in steps of the grid, by the number of sizes.
WIDTHS = {2: (0.625, 0.85), 3: (0.45, 0.9)}
# Fraction of the digits among texts about an endless world.
DIGIT_TEXTS = 0.15


def world_for(model: JanusConfig, seed: int, *, grid: int = 0, num_train: int = World.num_train, **fields) -> World:
  """The toy world at the size of a model's images.

  Args:
    model: gives the size.
    seed: of its scenes.
    grid: steps along a side; 0: what fits the size.
    num_train: scenes to train on; there are no more to test on, unless it is 0.
    **fields: others of `World`.

  Raises:
    InputError: the encoders have different image sizes, or there is no such world.
  """
  if model.image_size != model.vq.image_size:
    raise InputError('the toy world needs one image size for both encoders')
  size = model.vq.image_size
  small, large = WIDTHS.get(fields.get('num_sizes'), (World.small, World.large))
  few = {name: min(getattr(World, name), num_train) for name in ('num_test', 'num_held_out') if num_train}
  # A grid step of 4 px fits the codes of the tiny model; larger images show the same world, larger.
  grid = grid or min(size // 4, 8)
  return World(size=size, grid=grid, small=small, large=large, num_train=num_train, seed=seed, **few, **fields)


@dataclasses.dataclass
class WorldConfig(tfds.core.BuilderConfig):
  """Named by `name_of` its world."""

  world: World = dataclasses.field(default_factory=World)


def name_of(world: World) -> str:
  """A name that changes whenever the world does, so that what is stored of one is never taken for another's."""
  digest = hashlib.blake2b(repr(world).encode(), digest_size=4).hexdigest()
  return f'{world.size}px_{digest}'


class _ToyBuilder(tfds.core.GeneratorBasedBuilder):
  """Stores image uint8[size, size, 3] and label, made by `examples`."""

  # Goes up when the same World looks otherwise, or is stored otherwise.
  VERSION = tfds.core.Version('1.2.0')
  SPLITS: ClassVar[tuple[str, ...]]
  LABEL: ClassVar[str]
  FEATURE: ClassVar[tfds.features.FeatureConnector]

  def examples(self, world: World, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split."""
    raise NotImplementedError

  def _info(self) -> tfds.core.DatasetInfo:
    size = self.builder_config.world.size
    image = tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8, encoding='zlib')
    features = tfds.features.FeaturesDict({'image': image, self.LABEL: self.FEATURE})
    return self.dataset_info_from_configs(features=features)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    endless = ENDLESS_SPLITS if self.LABEL == 'scene' and not self.builder_config.world.num_train else ()
    return {split: self._generate_examples(split) for split in self.SPLITS if split not in endless}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    for index, (image, label) in enumerate(zip(*self.examples(self.builder_config.world, split), strict=True)):
      yield index, {'image': image, self.LABEL: label}


class JanusShapes(_ToyBuilder):
  """Scenes of coloured shapes, each with its int8[4, 5] as `shapes.encode` gives it."""

  SPLITS, LABEL = (*scenes.SPLITS, scenes.DRAWN), 'scene'
  FEATURE = tfds.features.Tensor(shape=(shapes.MAX_OBJECTS, 5), dtype=np.int8)

  def examples(self, world: World, split: str) -> tuple[np.ndarray, np.ndarray]:
    count = {'test': world.num_test, 'held_out': world.num_held_out}.get(split, world.num_train)
    encoded = [shapes.encode(scenes.scene_at(world, split, index)) for index in range(count)]
    encoded = np.array(encoded, np.int8).reshape(-1, shapes.MAX_OBJECTS, 5)
    return shapes.render_encoded(world, encoded), encoded


class JanusDigits(_ToyBuilder):
  """scikit-learn's handwritten digits."""

  SPLITS, LABEL, FEATURE = digits.SPLITS, 'label', tfds.features.Scalar(dtype=np.int64)

  def examples(self, world: World, split: str) -> tuple[np.ndarray, np.ndarray]:
    return digits.load_digits(world.size, split)


BUILDERS = {'shapes': JanusShapes, 'digits': JanusDigits}
NAMES = tuple(BUILDERS)


def _builder(name: str, world: World, directory: str | os.PathLike) -> tfds.core.DatasetBuilder:
  config = WorldConfig(name=name_of(world), world=world)
  return BUILDERS[name](config=config, data_dir=os.fspath(directory), file_format='array_record')


# TFDS warns of every config that is not on a builder's list, also where a worker process receives a data source.
logging.getLogger('absl').addFilter(lambda record: not str(record.msg).startswith('Using custom data configuration'))


def prepare_dataset(world: World, directory: str | os.PathLike) -> None:
  """Makes the files of the world under `directory`, where they are not there already.

  Raises:
    InputError: scikit-learn is missing, or `directory` cannot be written.
  """
  tfds.disable_progress_bar()
  try:
    # TFDS prints that it downloads, which is not so.
    with contextlib.redirect_stdout(io.StringIO()):
      for name in NAMES:
        _builder(name, world, directory).download_and_prepare()
  except OSError as error:
    raise InputError(f'{directory}: {error.strerror or error}: expected a directory to write to') from None


class EndlessShapes:
  """The training scenes of a world that stores none, each rendered (unless only texts are made of it) when read; with a
  layout (`scenes.LAYOUTS`) all of that one.
  """

  def __init__(self, world: World, split: str = 'train', rendered: bool = True, scene_layout: str | None = None):
    self._world, self._split, self._rendered, self._layout = world, split, rendered, scene_layout

  def __len__(self) -> int:
    return ENDLESS

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    encoded = shapes.encode(scenes.scene_at(self._world, self._split, index, self._layout))
    image = {'image': shapes.render_encoded(self._world, encoded[None])[0]} if self._rendered else {}
    return {**image, 'scene': encoded}

  def __repr__(self) -> str:
    return f'EndlessShapes({self._world}, {self._split!r}, {self._layout!r})'


def data_source(name: str, world: World, directory: str | os.PathLike, split: str):
  """Random access to the examples of 'shapes' or 'digits': as stored, or of an endless world as they are read.

  Raises:
    InputError: `prepare_dataset` has not run there.
  """
  if name == 'shapes' and split in ENDLESS_SPLITS and not world.num_train:
    return EndlessShapes(world, split)
  builder = _builder(name, world, directory)
  if not builder.is_prepared():
    raise InputError(f'{directory}: no {name} of {world}: expected after `prepare_dataset`')
  return builder.as_data_source(split)


def generated_split(name: str, split: str) -> str:
  """The stored split of 'shapes' or 'digits' that is generated where `split` is understood."""
  return scenes.DRAWN if (name, split) == ('shapes', 'train') else split


def sources(
  world: World,
  directory: str | os.PathLike,
  split: str,
  seed: int,
  codes: Mapping[str, np.ndarray] | None = None,
) -> dict[str, grain.MapDataset]:
  """Records to train on, by name. Their words are sampled anew at each index, epochs included.

  Args:
    world: as given to `prepare_dataset`.
    directory: as given to `prepare_dataset`.
    split: 'train', 'test' or 'held_out'; the digits have no third one.
    seed: decides what is said about each image.
    codes: int[n, P] of the stored images (of `generated_split`) of 'shapes' or 'digits' or both, to be generated in
      place of their pixels.

  Returns:
    'shapes_und', 'digits_und': {'images': [uint8[size, size, 3]], 'turns': [question, answer, ...]};
    'captions_text': {'text': str}, of both domains;
    'shapes_gen', 'digits_gen': {'prompt': str, 'image': uint8[size, size, 3]}, or {'prompt': str, 'codes': int[P]};
    of an endless world to train on also 'objects_und', 'objects_gen': as those of 'shapes', of one object each.

  Raises:
    InputError: `prepare_dataset` has not run there.
  """
  names = [name for name in NAMES if split in BUILDERS[name].SPLITS]
  stored = {name: grain.MapDataset.source(data_source(name, world, directory, split)) for name in names}
  converse = functools.partial(_conversation, world)
  found = {f'{name}_und': source.seed(seed).random_map(converse) for name, source in stored.items()}
  for name in names:
    source = grain.MapDataset.source(data_source(name, world, directory, generated_split(name, split)))
    if codes and name in codes:
      source = source.map_with_index(functools.partial(_add_codes, codes[name]))
    found[f'{name}_gen'] = source.seed(seed).random_map(functools.partial(_generation, world))
  endless = len(stored['shapes']) == ENDLESS
  if endless:
    one = {
      task: grain.MapDataset.source(EndlessShapes(world, found_split, scene_layout=scenes.LAYOUTS[0])).seed(seed)
      for task, found_split in (('und', split), ('gen', generated_split('shapes', split)))
    }
    found['objects_und'] = one['und'].random_map(converse)
    found['objects_gen'] = one['gen'].random_map(functools.partial(_generation, world))
    stored['shapes'] = grain.MapDataset.source(EndlessShapes(world, rendered=False))
  texts = [source.seed(seed).random_map(_sentence) for source in stored.values()]
  if not endless:
    return found | {'captions_text': grain.MapDataset.concatenate(texts)}
  weights = 1 - DIGIT_TEXTS, DIGIT_TEXTS
  return found | {'captions_text': grain.MapDataset.mix([texts[0], texts[1].repeat()], weights)}


def _add_codes(codes: np.ndarray, index: int, element: dict) -> dict:
  return {**element, 'codes': codes[index % len(codes)]}


def _conversation(world: World, element: dict, rng: np.random.Generator) -> dict:
  """An understanding record."""
  turns = questions.sample_turns(questions_about(element), rng, world.questions)
  return {'images': [element['image']], 'turns': turns}


def _generation(world: World, element: dict, rng: np.random.Generator) -> dict:
  """A generation record. Half of the prompts say all there is to say, as dense captions do; none what is held out."""
  generated = 'codes' if 'codes' in element else 'image'
  phrases = prompts_of(world, element, dense=rng.random() < 0.5)
  return {'prompt': captions.sample_prompt(phrases[rng.integers(len(phrases))], rng), generated: element[generated]}


def _sentence(element: dict, rng: np.random.Generator) -> dict:
  """A text record: a caption, or a question with its answer."""
  if rng.random() < 0.5:
    phrases = true_captions(element)
    return {'text': captions.sample_prompt(phrases[rng.integers(len(phrases))], rng)}
  return {'text': ' '.join(questions.sample_turns(questions_about(element), rng, 1))}


def questions_about(element: dict) -> list[questions.SceneQuestion]:
  """Every question about a stored example, of either domain."""
  if 'scene' in element:
    return questions.ask(shapes.decode(element['scene']))
  return questions.ask_digit(int(element['label']))


def true_captions(element: dict) -> list[str]:
  """Every caption that is true of a stored example, of either domain. Any other caption is false of it."""
  if 'scene' in element:
    return [description.text for description in captions.scene_descriptions(shapes.decode(element['scene']))]
  return [digits.phrase(int(element['label']))]


def dense_captions(element: dict) -> list[str]:
  """The captions of a stored example, of either domain, that say all there is to say."""
  if 'scene' in element:
    return [description.text for description in captions.dense_descriptions(shapes.decode(element['scene']))]
  return true_captions(element)


def near_misses(world: World, element: dict) -> list[str]:
  """Captions that are false of a stored example in one thing, of either domain."""
  if 'scene' in element:
    return captions.near_misses(world, shapes.decode(element['scene']))
  return digits.near_misses(int(element['label']))


def prompts_of(world: World, element: dict, dense: bool) -> list[str]:
  """The true captions of a stored example, of either domain, that say nothing held out; the densest of them only."""
  if 'scene' not in element:
    return true_captions(element)
  scene = shapes.decode(element['scene'])
  # Where a triple is held out, all but its size is the most that may be said.
  found = [captions.dense_descriptions(scene, detail) for detail in reversed(captions.DETAILS)] if dense else []
  found.append(captions.scene_descriptions(scene))
  allowed = ([item.text for item in items if not captions.says_held_out(world, item)] for items in found)
  return next(filter(None, allowed))
