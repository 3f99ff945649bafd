"""Chooses how many codes a pass draws at most, where that is left open: what pays on this device.

A pass over a window takes longer than one over a single code, the less so the more the device waits for its memory. In
float32, where the codes are the same either way, the time of passes is measured. In other dtypes their rounding, and
with it some codes, would depend on what was measured, so one code at a time is drawn unless a window is asked for.
"""

import dataclasses
import functools
import timeit

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.errors import InputError
from janus_jax.inference.cache import KVCache
from janus_jax.inference.decoder import COMPILER_OPTIONS, Decoder
from janus_jax.inference.drawing import ONE_BY_ONE, Window
from janus_jax.models.config import JanusConfig

AUTO = 'auto'
# Codes that a pass draws, by window, between what models of the toy world took at 36 codes an image (2.2, 2.9, 3.1,
# guidance 1.5) and at 576 (2.7 to 3.3, 4.4 to 6, 7 to 10). Where they are fewer, `drawing.ALLOWANCE` is what it costs.
EXPECTED = {4: 2.5, 8: 4.0, 16: 5.5}
# A decoder of fewer bytes draws an image in less time than it takes to compile a second loop.
LEAST_BYTES = 64e6
RUNS = 4  # The first compiles; the shortest counts.


def check_window(config: JanusConfig, window: int | str) -> None:
  """Raises InputError for a window of no codes, or of more than an image has."""
  codes = config.vq.num_tokens
  if window != AUTO and not 1 <= int(window) <= codes:
    raise InputError(f'window is {window}: expected {AUTO}, or 1 to {codes}, the codes of an image')


def choose_window(decoder: Decoder, rows: int, prompt_length: int) -> Window:
  """The window that is expected to draw images fastest, of `rows` rows whose prompts have so many positions.

  Passes are measured layer after layer, with a cache that is full.
  """
  if decoder.compute.dtype != 'float32' or decoder.cache_dtype != 'float32':
    return ONE_BY_ONE
  if sum(leaf.nbytes for leaf in jax.tree.leaves(decoder.layers)) < LEAST_BYTES:
    return ONE_BY_ONE
  sizes = [size for size in EXPECTED if size <= decoder.config.vq.num_tokens]
  one, *others = (_seconds(decoder, rows, prompt_length, size) for size in (1, *sizes))
  costs = {size: seconds / one for size, seconds in zip(sizes, others)}
  gain, size = max((EXPECTED[size] / cost, size) for size, cost in costs.items())
  return Window(size, costs[size]) if gain > 1 else ONE_BY_ONE


def _seconds(decoder: Decoder, rows: int, prompt_length: int, size: int) -> float:
  """Time of a pass over `size` codes of each row."""
  config, P = decoder.config, decoder.config.vq.num_tokens
  language_model = dataclasses.replace(config.language_model, depth=1)
  rest = {'language_model': {'final_norm': decoder.rest['language_model']['final_norm']}}
  single = decoder.replace(rest=rest, config=dataclasses.replace(config, language_model=language_model))
  mask = jnp.ones((rows, prompt_length), bool)
  middle = np.full((rows,), prompt_length + P // 2, np.int32)
  position, positions = (middle[0] if size == 1 else middle), middle[:, None] + np.arange(size)
  cache = single.empty_cache((mask,), rows, [P - 2 + size]).writing(1)
  caches = [jax.tree.map(jnp.copy, cache) for _ in decoder.layers]
  start = jnp.zeros((rows, size, config.language_model.width), decoder.compute.dtype)

  def run() -> None:
    x = start
    for i, layer in enumerate(decoder.layers):
      x, caches[i] = _layer(single.replace(layers=(layer,)), x, positions, caches[i].replace(position=position))
    jax.block_until_ready(_logits(decoder, x))

  return min(timeit.repeat(run, number=1, repeat=RUNS))


@functools.partial(jax.jit, donate_argnames=('cache',), compiler_options=COMPILER_OPTIONS)
def _layer(decoder: Decoder, x: jax.Array, positions: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
  return decoder.hidden(x, positions, cache)


@jax.jit
def _logits(decoder: Decoder, x: jax.Array) -> jax.Array:
  return decoder.method('image_logits', x.reshape(-1, x.shape[-1]))
