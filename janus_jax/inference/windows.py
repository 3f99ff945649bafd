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
from janus_jax.inference.drawing import ONE_BY_ONE, Window, draw_codes, has_guidance
from janus_jax.inference.sampling import Sampling

AUTO = 'auto'
# The windows that are measured, and the codes that their passes are hoped to draw: models of the toy world drew, of 576
# codes an image, 4.4 to 6 and 12 to 14. Where they are fewer, `drawing.ALLOWANCE` is what it costs.
EXPECTED = {8: 4.0, 32: 10.0}
# Measuring and compiling a second loop take some ten seconds, so less work than this is done one code at a time:
# seconds that reading the weights takes at so many bytes a second.
LEAST_SECONDS, BYTES_PER_SECOND = 30, 1e10
RUNS = 4  # The first compiles; the shortest counts.


def check_window(codes: int, window: int | str) -> None:
  """Raises InputError for a window of no codes, or of more than the `codes` of an image."""
  if window != AUTO and not 1 <= int(window) <= codes:
    raise InputError(f'window is {window}: expected {AUTO}, or 1 to {codes}, the codes of an image')


def choose_window(
  decoder: Decoder, shape: tuple[int, int, int], guidance: float, sampling: Sampling, batches: int
) -> Window:
  """The window that is expected to draw so many batches of images fastest.

  Passes are measured layer after layer, with a cache that is full.

  Args:
    decoder: weights.
    shape: rows of a batch, positions of their prompts, and codes of an image.
    guidance: weight.
    sampling: how codes are chosen.
    batches: of that shape, to be drawn.
  """
  P, read = shape[-1], sum(leaf.nbytes for leaf in jax.tree.leaves(decoder.layers))
  is_exact = decoder.compute.dtype == decoder.cache_dtype == 'float32'
  sizes = [size for size in EXPECTED if size <= P // 2]
  if not is_exact or not sizes or read * P * batches < LEAST_SECONDS * BYTES_PER_SECOND:
    return ONE_BY_ONE
  seconds = {size: _seconds(decoder, shape, size, guidance, sampling) for size in (1, *sizes)}
  size = min(sizes, key=lambda size: seconds[size] / EXPECTED[size])
  return Window(size, seconds[size] / seconds[1]) if seconds[size] < EXPECTED[size] * seconds[1] else ONE_BY_ONE


def _seconds(decoder: Decoder, shape: tuple[int, int, int], size: int, guidance: float, sampling: Sampling) -> float:
  """Time of a pass over `size` codes of each row."""
  (rows, prompt_length, P), config = shape, decoder.config
  language_model = dataclasses.replace(config.language_model, depth=1)
  rest = {'language_model': {'final_norm': decoder.rest['language_model']['final_norm']}}
  single = decoder.replace(rest=rest, config=dataclasses.replace(config, language_model=language_model))
  mask = jnp.ones((rows, prompt_length), bool)
  middle = np.full((rows,), prompt_length + P // 2, np.int32)
  position, positions = (middle[0] if size == 1 else middle), middle[:, None] + np.arange(size)
  cache = single.empty_cache((mask,), rows, [P - 2 + size]).writing(1)
  caches = [jax.tree.map(jnp.copy, cache) for _ in decoder.layers]
  start = jnp.zeros((rows, size, config.language_model.width), decoder.compute.dtype)
  keys = jax.random.split(jax.random.key(0), rows // 2 if has_guidance(guidance) else rows)
  draw = jax.jit(functools.partial(draw_codes, guidance=guidance, sampling=sampling, ahead=size - 1))

  def run() -> None:
    x = start
    for i, layer in enumerate(decoder.layers):
      x, caches[i] = _layer(single.replace(layers=(layer,)), x, positions, caches[i].replace(position=position))
    jax.block_until_ready(draw(decoder, x, keys, 0))

  return min(timeit.repeat(run, number=1, repeat=RUNS))


@functools.partial(jax.jit, donate_argnames=('cache',), compiler_options=COMPILER_OPTIONS)
def _layer(decoder: Decoder, x: jax.Array, positions: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
  return decoder.hidden(x, positions, cache)
