"""The parts of a small Janus, pretrained on the toy world by the objectives that real parts are pretrained by."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import logging
import math
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tqdm

from janus_jax.conversion.checkpoint import Checkpoint, write_checkpoint
from janus_jax.conversion.export import published
from janus_jax.conversion.lazy import from_numpy
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS, ComputeConfig, JanusConfig
from janus_jax.models.initialization import initial_params
from janus_jax.toy import dataset, scenes, shapes, tokenizer_training
from janus_jax.toy import digits as digits_lib
from janus_jax.toy.pretraining import Optimization, PackedText, PretrainingSetup, pretrain_decoder
from janus_jax.toy.pretraining_vision import Contrast, pretrain_vision
from janus_jax.toy.pretraining_vq import pretrain_vq
from janus_jax.toy.shapes import World
from janus_jax.training.state import flatten

TEXT_LENGTH = 128  # Tokens of a packed row of text.
TEXT_EXAMPLES = 20000
NEAR_MISSES = 6  # Captions for each image that are nearly true of it.
MOST_SCENES = 32000  # Of an endless world.
DIGIT_REPEATS = 3  # Among the images of the understanding encoder.


@dataclasses.dataclass(frozen=True)
class Pretraining:
  """Settings of the pretraining of a small Janus' parts.

  Attributes:
    model: a preset (`models.config.PRESETS`).
    vq: optimization of the VQ.
    vq_sizes: pixels along a side of the images that the VQ learns, for stages of other sizes than the model's; its
      own where there are none.
    vision: optimization of the understanding encoder.
    contrast: the text tower that it is trained with.
    decoder: optimization of the decoder.
  """

  model: str = ''
  vq: Optimization | None = None
  vq_sizes: tuple[int, ...] = ()
  vision: Optimization | None = None
  contrast: Contrast = dataclasses.field(default_factory=Contrast)
  decoder: Optimization | None = None


def check_parts(settings: Pretraining | None) -> None:
  """Raises InputError, naming the field, where a config does not say how all parts are made."""
  if settings is None:
    raise InputError('pretraining is missing')
  for field in dataclasses.fields(settings):
    if not getattr(settings, field.name) and field.name != 'vq_sizes':
      raise InputError(f'pretraining.{field.name} is missing')


def write_parts(
  settings: Pretraining | None,
  world: Mapping[str, Any],
  seed: int,
  data: str,
  output: str,
  overwrite: bool = False,
) -> None:
  """Pretrains the parts and writes them as a checkpoint to start from, which appears whole or not at all.

  Args:
    settings: what to train, and how long.
    world: what the config says of it (`dataset.world_for`).
    seed: of the toy world and of the parts.
    data: directory of the toy world, made if missing; '' for data/ beside the output.
    output: directory of the checkpoint.
    overwrite: replace one that is there.

  Raises:
    InputError: a part is missing in the settings; the output exists or cannot be written.
  """
  check_parts(settings)
  began = time.perf_counter()
  with published(output, overwrite, needed=0) as directory:
    model = PRESETS[settings.model]
    for size in settings.vq_sizes:
      model.resized(generation_size=size)
    world = dataset.world_for(model, seed, **world)
    data = os.path.expanduser(data) or os.path.join(os.path.dirname(os.path.abspath(output)), 'data')
    dataset.prepare_dataset(world, data)
    path = pathlib.Path(directory, 'tokenizer.json')
    tokenizer_training.train_tokenizer(tokenizer_training.toy_texts(world), path, model.language_model.vocab_size)
    tokenizer = Tokenizer(str(path))
    params = flatten(_pretrain(settings, model, world, data, tokenizer))
    arrays = {name: from_numpy(np.asarray(leaf), name) for name, leaf in params.items()}
    model = dataclasses.replace(model, image_token_id=tokenizer.special.image_placeholder)
    checkpoint = Checkpoint(model, arrays, {path.name: path.read_bytes()}, {}, ())
    write_checkpoint(checkpoint, directory, 'orbax', lambda _: None)
  logging.info('wrote %s in %.0f s', output, time.perf_counter() - began)


def _pretrain(
  settings: Pretraining, model: JanusConfig, world: World, data: str, tokenizer: Tokenizer
) -> dict[str, Any]:
  """Trains VQ, understanding encoder and decoder side by side; returns the parameters of the whole model."""
  seed, params = world.seed, initial_params(model, world.seed)
  sources = {name: dataset.data_source(name, world, data, 'train') for name in dataset.NAMES}
  elements = {name: [source[i] for i in range(min(len(source), MOST_SCENES))] for name, source in sources.items()}
  stopping = threading.Event()

  def setup(optimization: Optimization, progress: Callable, model: JanusConfig = model) -> PretrainingSetup:
    # Unrolled: these towers are shallow, and a loop costs more than it saves.
    return PretrainingSetup(model, ComputeConfig(unroll=4), optimization, seed, progress)

  def train_vq() -> Any:
    sizes = settings.vq_sizes or (world.size,)
    images = _tokenizer_images(world, elements, sizes, world.size // model.vq.grid, np.random.default_rng(seed))
    with _bar('VQ', settings.vq, 0, stopping) as progress:
      own = setup(settings.vq, progress, model.resized(generation_size=max(sizes)))
      return pretrain_vq(own, params['vq'], images)

  def train_vision_encoder() -> Any:
    # Scanned digits are few, and harder to tell apart than shapes.
    shown = [*elements['shapes'], *(elements['digits'] * DIGIT_REPEATS)]
    inputs = (np.stack([element['image'] for element in shown]), *_captions(world, shown, tokenizer))
    with _bar('SigLIP', settings.vision, 1, stopping) as progress:
      return pretrain_vision(setup(settings.vision, progress), params['vision_encoder'], *inputs, settings.contrast)

  def train_decoder() -> Any:
    rows = _text_rows(dataset.sources(world, data, 'train', seed)['captions_text'], tokenizer)
    with _bar('decoder', settings.decoder, 2, stopping) as progress:
      return pretrain_decoder(setup(settings.decoder, progress), params['language_model'], rows)

  # At once: one alone is made of operations too small to keep even two cores busy. None depends on another.
  trainers = {'vq': train_vq, 'vision_encoder': train_vision_encoder, 'language_model': train_decoder}
  pool = concurrent.futures.ThreadPoolExecutor(len(trainers))
  try:
    trained = {name: pool.submit(train) for name, train in trainers.items()}
    params |= {name: part.result() for name, part in trained.items()}
  finally:  # Ctrl-C comes to this thread, which would otherwise wait for the others to the end.
    stopping.set()
    pool.shutdown(wait=False)
  # As the released table is close to its codebook.
  codebook = np.asarray(params['vq']['codebook'])
  params['gen_embed'] = {'table': codebook / np.linalg.norm(codebook, axis=-1, keepdims=True)}
  return jax.device_get(params)


def _tokenizer_images(
  world: World, elements: dict[str, list[dict]], sizes: tuple[int, ...], cell: int, rng: np.random.Generator
) -> np.ndarray:
  """uint8[N, canvas, canvas, 3]: half crowds, a quarter scenes, a quarter digits (repeating), of each size. The canvas
  is the largest size, and shows several images of a smaller one.
  """
  canvas, scenes_shown, found = max(sizes), [element['scene'] for element in elements['shapes']], []
  most = math.ceil(canvas / min(sizes)) ** 2
  for size in sizes:
    sized, a_side = dataclasses.replace(world, size=size), math.ceil(canvas / size)
    quarter = len(scenes_shown) // (2 * len(sizes) * most) * a_side**2
    digits, _ = digits_lib.load_digits(size, 'train')
    crowds = scenes.render_crowds(sized, 2 * quarter, rng)
    shown = shapes.render_encoded(sized, np.stack(scenes_shown[:quarter]))
    images = np.concatenate([crowds, shown, digits[rng.integers(len(digits), size=quarter)]])
    found.append(_canvases(images, a_side, canvas, cell, rng))
  return np.concatenate(found)


def _canvases(images: np.ndarray, a_side: int, canvas: int, cell: int, rng: np.random.Generator) -> np.ndarray:
  """uint8[N, size, size, 3] -> [N / a_side^2, canvas, canvas, 3]: images side by side, cut between cells at random."""
  if a_side == 1:
    return images
  size = images.shape[1]
  joined = rng.permutation(images).reshape(-1, a_side, a_side, size, size, 3).swapaxes(2, 3)
  joined = joined.reshape(-1, a_side * size, a_side * size, 3)
  corners = cell * rng.integers((a_side * size - canvas) // cell + 1, size=(len(joined), 2))
  return np.stack([image[y : y + canvas, x : x + canvas] for image, (y, x) in zip(joined, corners)])


def _captions(
  world: World, elements: list[dict], tokenizer: Tokenizer
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
  """Distinct dense captions as ids int32[C, L] padded with -1; and for each element the one that is true of it, int[N],
  and NEAR_MISSES that are not quite, int[N, M].

  With sparse captions among them few batches tell a small object from a large one: its size is then 2 % of the
  variance of the features, not 10 %, and the decoder often never learns to read it.
  """
  rng = np.random.default_rng(world.seed)
  texts = [rng.choice(dataset.dense_captions(element)).item() for element in elements]
  others = [
    rng.choice(found, NEAR_MISSES, replace=len(found) < NEAR_MISSES).tolist()
    for found in (dataset.near_misses(world, element) for element in elements)
  ]
  index = {text: i for i, text in enumerate(dict.fromkeys([*texts, *itertools.chain(*others)]))}
  ids = [tokenizer.encode(text, add_bos=False) for text in index]
  captions = np.full((len(ids), max(map(len, ids))), -1, np.int32)
  for row, words in zip(captions, ids):
    row[: len(words)] = words
  return captions, (np.array([index[text] for text in texts]), np.array([[index[t] for t in row] for row in others]))


def _text_rows(source: Any, tokenizer: Tokenizer) -> PackedText:
  """Texts of a source, packed in order into rows of TEXT_LENGTH."""
  view = source.seed(0).shuffle().repeat()
  rows, row = [], []
  for i in range(TEXT_EXAMPLES):
    ids = [*tokenizer.encode(view[i]['text']), tokenizer.special.eos][:TEXT_LENGTH]
    if sum(map(len, row)) + len(ids) > TEXT_LENGTH:
      rows, row = [*rows, row], []
    row.append(ids)
  packed = PackedText(*np.zeros((3, len(rows), TEXT_LENGTH), np.int32))
  for r, row in enumerate(rows):
    lengths = list(map(len, row))
    used = slice(sum(lengths))
    packed.tokens[r, used] = np.concatenate(row)
    packed.segments[r, used] = np.repeat(np.arange(1, len(row) + 1), lengths)
    packed.positions[r, used] = np.concatenate(list(map(np.arange, lengths)))
  return packed


@contextlib.contextmanager
def _bar(name: str, optimization: Optimization, line: int, stopping: threading.Event) -> Iterator[Callable]:
  """A progress bar over the steps of a part, on a line of its own; says its last loss. Raises in the training once
  another part has ended early.
  """
  last = {}
  described = {'desc': f'pretraining {name}', 'unit': 'step', 'dynamic_ncols': True, 'position': line}
  with tqdm.tqdm(total=optimization.steps, **described) as bar:

    def progress(step: int, loss: jax.Array) -> None:
      if stopping.is_set():
        raise InputError(f'{name}: another part has ended early')
      last['loss'] = loss
      bar.update()

    yield progress
    logging.info('%s: loss %.4f after %d steps', name, float(last['loss']), optimization.steps)
