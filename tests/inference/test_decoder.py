"""Weights prepared for decoding: what rounding them to int8 saves and costs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.inference import decoder as decoding
from janus_jax.inference.cache import init_cache
from janus_jax.inference.decoder import WEIGHTS, Decoder, make_decoder, prompt_positions
from janus_jax.inference.drawing import NUM_BLOCKS, generate_codes
from janus_jax.inference.sampling import Sampling
from janus_jax.models.config import PRESETS, ComputeConfig
from janus_jax.models.initialization import initial_params

TINY = PRESETS['test_tiny']
LENGTH = 12


@functools.cache
def decoder(weights: str, dtype: str = 'float32') -> Decoder:
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), initial_params(TINY, seed=0))
  return make_decoder(TINY, ComputeConfig(dtype=dtype), params, weights)


def logits(decoder: Decoder) -> np.ndarray:
  """Text and image logits of random embeddings, side by side."""
  mask = jnp.ones((3, LENGTH), bool)
  x = np.random.default_rng(0).standard_normal((*mask.shape, TINY.language_model.width), np.float32)
  cache = init_cache(TINY.language_model, (mask,), len(mask), (), decoder.compute.dtype)
  hidden, _ = decoder.hidden(jnp.asarray(x), prompt_positions(mask), cache)
  return np.concatenate([decoder.method(name, hidden) for name in ('text_logits', 'image_logits')], axis=-1)


# Relative to the standard deviation of exact logits, root mean square. Measured: 0.0149, 0.0227.
@pytest.mark.parametrize(('weights', 'largest'), [('int8', 0.02), ('int8_products', 0.03)])
def test_error_of_logits(weights, largest):
  """Freshly initialised weights."""
  exact = logits(decoder('full'))
  error = np.sqrt(np.square((logits(decoder(weights)) - exact) / exact.std()).mean())
  print(weights, error)
  assert 0 < error < largest


def test_the_two_kinds_of_int8_differ_in_their_products():
  same = jax.tree.map(np.array_equal, decoder('int8').layers, decoder('int8_products').layers)
  assert all(jax.tree.leaves(same))
  assert (logits(decoder('int8')) != logits(decoder('int8_products'))).any()


def kernels(decoder: Decoder) -> dict[str, jax.Array]:
  """By path, of the layers and of both heads."""
  parts = {'layers': decoder.layers, 'lm_head': decoder.rest['language_model']['lm_head']}
  parts['gen_head'] = decoder.rest['gen_head']
  leaves = jax.tree.leaves_with_path(parts)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
    if path[-1].key in ('int8', 'input_first')
  }


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('weights', ['int8', 'int8_products'])
def test_every_kernel_of_a_step_has_a_byte_per_weight(weights, dtype):
  full, rounded = (kernels(decoder(name, dtype)) for name in ('full', weights))
  assert len(full) == len(rounded) == 4 * TINY.language_model.depth + 3  # q_k_v o gate_up down; lm_head, fc1, fc2.
  size = sum(leaf.size for leaf in full.values())
  assert sum(leaf.nbytes for leaf in rounded.values()) == size
  assert sum(leaf.nbytes for leaf in full.values()) == size * jnp.dtype(dtype).itemsize


def test_other_names_are_refused():
  with pytest.raises(InputError, match=f"weights are 'int4': expected one of {', '.join(WEIGHTS)}"):
    decoder('int4')


def test_prompts_on_a_gpu_are_left_to_cudnn(monkeypatch):
  """They are short and have no gradient, so that its mask costs nothing."""
  monkeypatch.setattr(decoding, 'platform_of', lambda device: 'sm90')
  compute = ComputeConfig(dtype='bfloat16', attention='auto')
  asked = dataclasses.replace(decoder('full'), compute=compute)
  assert asked.empty_cache((jnp.ones((2, LENGTH), bool),), 2, ()).kernels == ('cudnn', 'xla')


def test_codes_are_drawn_by_one_program_whose_loops_have_known_lengths():
  """Whose host has nothing to read or to compute between steps, and which a GPU can run as CUDA graphs."""
  mask = jnp.ones((2, LENGTH), bool)
  arguments = decoder('full'), jnp.ones(mask.shape, jnp.int32), mask, jax.random.split(jax.random.key(0), 1)
  traced = generate_codes.trace(*arguments, guidance=5.0, sampling=Sampling())
  text = traced.lower(lowering_platforms=('cuda',)).as_text()
  assert text.count('stablehlo.while') == NUM_BLOCKS
  assert 'custom_call' not in text
  compiled = traced.lower().compile().as_text()
  assert compiled.count(' while(') == compiled.count('known_trip_count') >= NUM_BLOCKS
