"""The toy world on disk: TFDS builders that write ArrayRecord, and the records that training reads from them.

Nothing here needs TensorFlow or the network: images are stored as uint8 tensors (TFDS' Image feature would import
TensorFlow), and both worlds are made on the spot.
"""

import contextlib
import dataclasses
import hashlib
import io
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds

from janus_jax.errors import InputError
from janus_jax.models.config import JanusConfig
from janus_jax.toy import captions, digits, questions, scenes, shapes
from janus_jax.toy.shapes import World, sized_world

NAMES = ('shapes', 'digits')
TURNS = 3


def world_for(model: JanusConfig, grid: int, num_train: int, seed: int) -> World:
  """The toy world at the size of a model's images.

  Args:
    model: architecture.
    grid: steps in pixels in which objects are placed; 0: what fits the size.
    num_train: scenes to train on.
    seed: of the scenes.

  Raises:
    InputError: the encoders have different image sizes.
  """
  if model.image_size != model.vq.image_size:
    raise InputError('the toy world needs one image size for both encoders')
  size = model.vq.image_size
  # A grid step of 4 px fits the codes of the tiny model; larger pictures show the same world, larger.
  return sized_world(size, grid or min(size // 4, 8), num_train, seed)


@dataclasses.dataclass
class WorldConfig(tfds.core.BuilderConfig):
  """Named by `name_of` its world."""

  world: World = dataclasses.field(default_factory=World)


def name_of(world: World) -> str:
  """A name that changes whenever the world does, so that what is stored of one is never taken for another's."""
  digest = hashlib.blake2b(repr(world).encode(), digest_size=4).hexdigest()
  return f'{world.size}px_{digest}'


class JanusShapes(tfds.core.GeneratorBasedBuilder):
  """Scenes of coloured shapes: image uint8[size, size, 3], scene int8[4, 5] as `shapes.encode` gives it."""

  # Goes up when the same World draws other pictures.
  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    size = self.builder_config.world.size
    image = tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8)
    scene = tfds.features.Tensor(shape=(shapes.MAX_OBJECTS, 5), dtype=np.int8)
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({'image': image, 'scene': scene}))

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    world = self.builder_config.world
    counts = zip(scenes.SPLITS, (world.num_train, world.num_test, world.num_held_out), strict=True)
    return {split: self._generate_examples(split, count) for split, count in counts}

  def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict]]:
    world = self.builder_config.world
    encoded = np.array([shapes.encode(scenes.draw(world, split, index)) for index in range(count)])
    for index, (image, scene) in enumerate(zip(shapes.render_encoded(world, encoded), encoded, strict=True)):
      yield index, {'image': image, 'scene': scene}


class JanusDigits(tfds.core.GeneratorBasedBuilder):
  """scikit-learn's handwritten digits: image uint8[size, size, 3], label int64."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    size = self.builder_config.world.size
    image = tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8)
    label = tfds.features.Scalar(dtype=np.int64)
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({'image': image, 'label': label}))

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    return {split: self._generate_examples(split) for split in digits.SPLITS}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    world = self.builder_config.world
    for index, (image, label) in enumerate(zip(*digits.load_digits(world.size, split), strict=True)):
      yield index, {'image': image, 'label': label}


BUILDERS = {'shapes': JanusShapes, 'digits': JanusDigits}


def _builder(kind: type[tfds.core.GeneratorBasedBuilder], world: World, directory: str | os.PathLike):
  # TFDS warns of every config that is not on a builder's list. Not `set_verbosity`, which would overrule the program's.
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    return kind(
      config=WorldConfig(name=name_of(world), world=world), data_dir=os.fspath(directory), file_format='array_record'
    )
  finally:
    logger.setLevel(level)


def prepare_dataset(world: World, directory: str | os.PathLike) -> None:
  """Makes the files of the world under `directory`, where they are not there already.

  Raises:
    InputError: scikit-learn is missing, or `directory` cannot be written.
  """
  tfds.disable_progress_bar()
  try:
    # TFDS prints that it downloads, which is not so.
    with contextlib.redirect_stdout(io.StringIO()):
      for kind in BUILDERS.values():
        _builder(kind, world, directory).download_and_prepare()
  except OSError as error:
    raise InputError(f'{directory}: {error.strerror or error}: expected a directory to write to') from None


def data_source(name: str, world: World, directory: str | os.PathLike, split: str):
  """Random access to the stored examples of 'shapes' or 'digits'.

  Raises:
    InputError: `prepare` has not run there.
  """
  builder = _builder(BUILDERS[name], world, directory)
  if not builder.is_prepared():
    raise InputError(f'{directory}: no {name} of {world}: expected after `prepare`')
  return builder.as_data_source(split)


def sources(
  world: World,
  directory: str | os.PathLike,
  split: str,
  seed: int,
  codes: Mapping[str, np.ndarray] | None = None,
) -> dict[str, grain.MapDataset]:
  """What training reads, by name. What a record says is drawn anew at each index, epochs included.

  Args:
    world: as given to `prepare`.
    directory: as given to `prepare`.
    split: 'train', 'test' or 'held_out'; the digits have no third one.
    seed: of what is said about each image.
    codes: int[n, P] of the stored images of 'shapes' or 'digits' or both, to be drawn in place of their pixels.

  Returns:
    'shapes_und', 'digits_und': {'images': [uint8[size, size, 3]], 'turns': [question, answer, ...]};
    'captions_text': {'text': str}, of both worlds;
    'shapes_gen', 'digits_gen': {'prompt': str, 'image': uint8[size, size, 3]}, or {'prompt': str, 'codes': int[P]}.

  Raises:
    InputError: `prepare` has not run there.
  """
  stored = {'shapes': data_source('shapes', world, directory, split)}
  if split in digits.SPLITS:
    stored['digits'] = data_source('digits', world, directory, split)
  found = {f'{name}_und': _dataset(source, Conversation(), seed) for name, source in stored.items()}
  for name, source in stored.items():
    drawn = _WithCodes(source, codes[name]) if codes and name in codes else source
    found[f'{name}_gen'] = _dataset(drawn, GenerationPrompt(), seed)
  texts = [_dataset(source, Sentence(), seed) for source in stored.values()]
  return found | {'captions_text': grain.MapDataset.concatenate(texts)}


@dataclasses.dataclass(frozen=True)
class _WithCodes:
  """Stored examples, each with its codes. What Grain takes as a source: a length and random access."""

  source: Any
  codes: np.ndarray

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict:
    return {**self.source[index], 'codes': self.codes[index]}


def _dataset(source, transform: grain.transforms.RandomMap, seed: int) -> grain.MapDataset:
  return grain.MapDataset.source(source).seed(seed).random_map(transform)


@dataclasses.dataclass(frozen=True)
class Conversation(grain.transforms.RandomMap):
  """A stored example to an understanding record."""

  def random_map(self, element: dict, rng: np.random.Generator) -> dict:
    turns = questions.draw_turns(questions_about(element), rng, TURNS)
    return {'images': [element['image']], 'turns': turns}


@dataclasses.dataclass(frozen=True)
class GenerationPrompt(grain.transforms.RandomMap):
  """A stored example to a generation record. Half of the prompts say all there is to say, as dense captions do."""

  def random_map(self, element: dict, rng: np.random.Generator) -> dict:
    drawn = 'codes' if 'codes' in element else 'image'
    prompt = _draw_prompt(element, rng, dense=rng.random() < 0.5)
    return {'prompt': prompt, drawn: element[drawn]}


@dataclasses.dataclass(frozen=True)
class Sentence(grain.transforms.RandomMap):
  """A stored example to a text record: a caption, or a question with its answer."""

  def random_map(self, element: dict, rng: np.random.Generator) -> dict:
    if rng.random() < 0.5:
      return {'text': _draw_prompt(element, rng)}
    return {'text': ' '.join(questions.draw_turns(questions_about(element), rng, 1))}


def questions_about(element: dict) -> list[questions.SceneQuestion]:
  """Every question about a stored example, of either world."""
  if 'scene' in element:
    return questions.ask(shapes.decode(element['scene']))
  return questions.ask_digit(int(element['label']))


def true_captions(element: dict) -> list[str]:
  """Every caption that is true of a stored example, of either world. Any other caption is false of it."""
  if 'scene' in element:
    return [description.text for description in captions.scene_descriptions(shapes.decode(element['scene']))]
  return [digits.phrase(int(element['label']))]


def _draw_prompt(element: dict, rng: np.random.Generator, dense: bool = False) -> str:
  phrases = true_captions(element)[-1:] if dense else true_captions(element)
  return captions.draw_prompt(phrases[rng.integers(len(phrases))], rng)
