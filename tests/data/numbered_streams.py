"""Streams of records that can be told apart, and what is found in their batches."""

import collections

import grain
import numpy as np
from conversion.fixtures import BOS, EOS, JANUS_TOKENS, make_tokenizer

from janus_jax.data import prompts
from janus_jax.data.examples import GENERATION_LOSS, TEXT_LOSS, UNDERSTANDING_LOSS, ExampleSpec
from janus_jax.data.mixture import make_mixture, shuffled
from janus_jax.data.packing import BatchShape
from janus_jax.data.pipeline import StreamOptions, batches
from janus_jax.data.shard_state import unused_parts
from janus_jax.data.tokenizer import Tokenizer

SIZE, GENERATION_SIZE = 4, 2
COUNTS = {'understanding/a': 37, 'understanding/b': 11, 'text/c': 29, 'generation/real': 23, 'generation/synthetic': 50}
WEIGHTS = {'understanding': {'a': 2, 'b': 1}, 'text': {'c': 1}, 'generation': {'real': 1, 'synthetic': 1}}
SHAPE = BatchShape(4, 100, 12, 16)


def make_spec(directory):
  (directory / 'tokenizer.json').write_bytes(make_tokenizer((BOS, EOS, *JANUS_TOKENS)))
  tokenizer = Tokenizer.from_directory(directory)
  return ExampleSpec(tokenizer, prompts.TEMPLATES['deepseek'], 3, 5, SIZE, GENERATION_SIZE, 100, system='')


def record_of(kind, number):
  """A record that can be told from the others of its kind by its example."""
  if kind == 'understanding':
    return {'images': [np.full((SIZE, SIZE, 3), number, np.uint8)], 'turns': ['Which?', 'a' * (number % 20 + 1)]}
  if kind == 'text':
    return {'text': f'number {number}'}
  return {'prompt': 'three', 'image': np.full((GENERATION_SIZE, GENERATION_SIZE, 3), number, np.uint8)}


def make_sources(bad=(), counts=COUNTS):
  """Records numbered through each kind; `bad` holds (source, index) of those that are None."""
  sources, first = collections.defaultdict(dict), collections.Counter()
  for key, count in counts.items():
    kind, name = key.split('/')
    records = [None if (key, i) in bad else record_of(kind, first[kind] + i) for i in range(count)]
    sources[kind][name] = grain.MapDataset.source(records)
    first[kind] += count
  return sources


def start(spec, ratio=(2, 3, 5), state=None, sources=None, weights=WEIGHTS, shape=SHAPE, seed=0, **options):
  """One stream, going on from a state of it."""
  options = StreamOptions(seed, **options)
  return batches(sources or make_sources(), make_mixture(ratio, weights), spec, shape, options, state and [state])


def state_of(iterator):
  """State of its one stream."""
  (state,) = iterator.get_state()['streams']
  return state


def contents(batch, spec):
  """(kind, number) of every example in a batch."""
  result = []
  images, generation_images = iter(batch['pixels'][0, :, 0, 0, 0]), iter(batch['generation_pixels'][0, :, 0, 0, 0])
  for row in range(len(batch['tokens'])):
    for segment in range(1, batch['segments'][row].max() + 1):
      where = batch['segments'][row] == segment
      losses = set(batch['loss_ids'][row, where])
      if UNDERSTANDING_LOSS in losses:
        result.append(('understanding', int(next(images))))
      elif GENERATION_LOSS in losses:
        result.append(('generation', int(next(generation_images))))
      else:
        assert TEXT_LOSS in losses
        result.append(('text', int(spec.tokenizer.decode(batch['tokens'][row, where]).split()[1])))
  return result


def identity(kind, record):
  """(kind, number) of a record, as `contents` has it."""
  match kind:
    case 'understanding':
      return kind, int(record['images'][0][0, 0, 0])
    case 'text':
      return kind, int(record['text'].split()[1])
  return kind, int(record['image'][0, 0, 0])


def unused(state, sources=None):
  """(kind, number) of every example that was read and is in no batch yet."""
  found, sources = [], sources or make_sources()
  for key, parts in unused_parts(state).items():
    kind, name = key.split('/')
    view = shuffled(sources[kind][name], 0, key)
    found += [identity(kind, view[record]) for record, _, _ in parts]
  return found


def same(first, second):
  assert first.keys() == second.keys()
  for name, value in first.items():
    assert value.dtype == second[name].dtype
    np.testing.assert_array_equal(value, second[name])
