"""The key/value cache: cached decode equals the full forward pass, reads no further than told, and int8 stays close."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.inference.cache import Buffer, KVCache, Readable, init_cache, quantize
from janus_jax.inference.decoder import Decoder, make_decoder, prompt_positions
from janus_jax.inference.image import generate_codes
from janus_jax.inference.sampling import Sampling, row_key
from janus_jax.inference.text import generate_text, prefill
from janus_jax.models.attention import masked_attention
from janus_jax.models.config import PRESETS, ComputeConfig, JanusConfig
from janus_jax.models.initialization import initial_params
from janus_jax.models.janus import Janus

TINY = PRESETS['tiny']
COMPUTE = ComputeConfig()
T, STEPS = 6, 10
S = T + STEPS
# Rows of 6, 2 and 5 real tokens in the prompt, then 10 that are generated.
MASK = np.array([[True] * S, [False] * 4 + [True] * (S - 4), [False] + [True] * (S - 1)])
GREEDY = Sampling(temperature=0)

run = jax.jit(Decoder.hidden)
POSITIONS = np.asarray(prompt_positions(MASK))


@functools.cache
def random_params(config: JanusConfig, gain: float = 2) -> dict:
  """By default larger than freshly initialised weights, so that attention is far from uniform."""
  tree = initial_params(config, seed=0)
  return jax.device_put(jax.tree.map(lambda leaf: leaf * np.float32(gain) if leaf.ndim > 2 else leaf, tree))


@pytest.fixture(scope='module')
def decoder() -> Decoder:
  return make_decoder(TINY, COMPUTE, random_params(TINY))


def embeddings() -> np.ndarray:
  return np.random.default_rng(7).standard_normal((*MASK.shape, TINY.language_model.width), np.float32)


def empty_cache(decoder: Decoder, dtype: str = 'float32') -> KVCache:
  return init_cache(decoder.config.language_model, jnp.asarray(MASK[:, :T]), S, dtype)


def prefilled(decoder: Decoder, x: np.ndarray, dtype: str = 'float32') -> tuple[jax.Array, KVCache]:
  return run(decoder, x[:, :T], POSITIONS[:, :T], empty_cache(decoder, dtype))


def decoded(decoder: Decoder, x: np.ndarray, cache: KVCache, sizes: list[int]) -> jax.Array:
  """Hidden states of the positions after the prompt, fed `sizes` at a time: [B, sum(sizes), D]."""
  pieces, start = [], T
  for size in sizes:
    here = slice(start, start + size)
    piece, cache = run(decoder, x[:, here], POSITIONS[:, here], cache)
    pieces.append(piece)
    start += size
  assert int(cache.position) == start
  return jnp.concatenate(pieces, axis=1)


@jax.jit
def both_logits(decoder: Decoder, hidden: jax.Array) -> jax.Array:
  """Text and image logits side by side."""
  return jnp.concatenate([decoder.method(name, hidden) for name in ('text_logits', 'image_logits')], axis=-1)


@functools.cache
def full_pass(config: JanusConfig) -> jax.Array:
  """Hidden states of all positions without a cache."""
  forward = jax.jit(functools.partial(Janus(config, COMPUTE).apply, method='hidden'))
  params = {'params': random_params(config)}
  return forward(params, embeddings(), POSITIONS, jnp.asarray(MASK, jnp.int32))[0]


@pytest.mark.parametrize('num_kv_heads', [1, 2, 4])
def test_cached_decode_equals_the_full_pass(num_kv_heads):
  llama = dataclasses.replace(TINY.language_model, num_kv_heads=num_kv_heads)
  config = dataclasses.replace(TINY, language_model=llama)
  decoder = make_decoder(config, COMPUTE, random_params(config))
  x, expected = embeddings(), full_pass(config)
  prompt, cache = prefilled(decoder, x)
  sizes = [1] * (STEPS - 3) + [3]  # Several positions at once go through the same code.
  steps = decoded(decoder, x, cache.reading(S), sizes)
  result = np.asarray(both_logits(decoder, jnp.concatenate([prompt, steps], axis=1)))
  expected = np.asarray(both_logits(decoder, expected))
  assert np.isfinite(result).all()  # Padding too.
  np.testing.assert_allclose(result[MASK], expected[MASK], atol=1e-4, rtol=0)
  assert expected.std() > 0.3  # 1e-4 means something.


def test_a_read_that_just_covers_equals_reading_everything(decoder):
  x = embeddings()
  _, cache = prefilled(decoder, x)
  everything = decoded(decoder, x, cache.reading(S), [1])
  np.testing.assert_allclose(decoded(decoder, x, cache.reading(T + 1), [1]), everything, atol=1e-5)
  # One slot less is too little: the bound is what is read.
  assert np.abs(decoded(decoder, x, cache.reading(T), [1]) - everything).max() > 1e-2


def fill(cache: KVCache, slots: np.ndarray, value: float) -> KVCache:
  """Keys and values replaced where bool[B, S] `slots` says so."""
  put = lambda leaf: jnp.where(slots[:, None, :, None], jnp.asarray(value, leaf.dtype), leaf)  # noqa: E731
  return cache.replace(layers=jax.tree.map(put, cache.layers))


@pytest.mark.parametrize(
  ('name', 'value'), [('beyond what is read', np.nan), ('not written yet', 1e30), ('left padding', 1e30)]
)
def test_other_slots_never_matter(decoder, name, value):
  x = embeddings()
  _, cache = prefilled(decoder, x)
  cache = cache.reading(T + 3)
  slots = {
    'beyond what is read': np.arange(S) >= T + 3,
    'not written yet': np.arange(S) >= T,
    'left padding': ~MASK,
  }[name]
  slots = np.broadcast_to(slots, MASK.shape)
  result = decoded(decoder, x, fill(cache, slots, value), [1, 1, 1])
  np.testing.assert_array_equal(result, decoded(decoder, x, cache, [1, 1, 1]))


@pytest.fixture
def attended() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """q [2, 3, 4, 64], k and v [2, 2, 100, 64] of unit normals, and a mask."""
  kq, kk, kv, km = jax.random.split(jax.random.key(3), 4)
  q = jax.random.normal(kq, (2, 3, 4, 64))
  k, v = (jax.random.normal(key, (2, 2, 100, 64)) for key in (kk, kv))
  return q, k, v, jax.random.bernoulli(km, 0.7, (2, 3, 100))


def buffers(dtype: str, *arrays: jax.Array) -> list[Buffer]:
  return [Buffer(*quantize(x)) if dtype == 'int8' else Buffer(x.astype(dtype), None) for x in arrays]


def test_quantisation_rounds_to_the_nearest_step_of_each_vector():
  x = jax.random.normal(jax.random.key(0), (3, 5, 64)) * jnp.array([1e-3, 1, 1e3])[:, None, None]
  values, scale = quantize(x)
  assert values.dtype == jnp.int8
  np.testing.assert_allclose(scale * 127, np.abs(x).max(-1), rtol=1e-6)
  np.testing.assert_array_equal(np.abs(values).max(-1), 127)
  error = np.abs(np.asarray(values, np.float32) * np.asarray(scale)[..., None] - x)
  assert (error <= np.asarray(scale)[..., None] * 0.501).all()


def test_quantisation_of_zeros_and_of_nan():
  values, scale = quantize(jnp.array([[0.0, 0.0], [jnp.nan, 1.0]]))
  np.testing.assert_array_equal(values[0], 0)
  np.testing.assert_array_equal(scale, [0, np.nan])


def test_int8_attention_is_attention_to_the_dequantised_cache(attended):
  q, k, v, mask = attended
  readable = Readable(*buffers('int8', k * 3, v), mask)
  k, v = ((b.values * b.scale[..., None]).swapaxes(1, 2) for b in (readable.k, readable.v))
  np.testing.assert_allclose(readable.attend(q), masked_attention(q, k, v, mask), atol=1e-5)


# Relative to the standard deviation of what is exact: root mean square, and the largest error. Measured on six seeds:
# int8 0.008 to 0.009 and 0.05, bfloat16 0.0023 and 0.015.
@pytest.mark.parametrize(('dtype', 'rms', 'largest'), [('bfloat16', 0.004, 0.03), ('int8', 0.012, 0.08)])
def test_error_of_attention(attended, dtype, rms, largest):
  q, k, v, mask = attended
  exact = np.asarray(Readable(*buffers('float32', k, v), mask).attend(q))
  error = (np.asarray(Readable(*buffers(dtype, k, v), mask).attend(q)) - exact) / exact.std()
  print('attention', dtype, np.sqrt(np.square(error).mean()), np.abs(error).max())
  assert 0 < np.sqrt(np.square(error).mean()) < rms
  assert np.abs(error).max() < largest


# Measured: int8 0.005 and 0.027, bfloat16 0.0018 and 0.013.
@pytest.mark.parametrize(('dtype', 'rms', 'largest'), [('bfloat16', 0.003, 0.025), ('int8', 0.008, 0.05)])
def test_error_of_logits(dtype, rms, largest):
  """Teacher-forced, freshly initialised weights, text and image logits together."""
  decoder, x = make_decoder(TINY, COMPUTE, random_params(TINY, gain=1)), embeddings()

  def logits(dtype: str) -> np.ndarray:
    _, cache = prefilled(decoder, x, dtype)
    assert all(buffer.values.dtype == dtype for layer in cache.layers for buffer in (layer.k, layer.v))
    return np.asarray(both_logits(decoder, decoded(decoder, x, cache.reading(S), [1] * STEPS)))

  exact = logits('float32')
  error = (logits(dtype) - exact) / exact.std()
  print('logits', dtype, np.sqrt(np.square(error).mean()), np.abs(error).max())
  assert 0 < np.sqrt(np.square(error).mean()) < rms
  assert np.abs(error).max() < largest


def test_bytes_of_each_cache(decoder):
  def stored(dtype: str) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(empty_cache(decoder, dtype).layers))

  H = TINY.language_model.head_dim
  assert stored('bfloat16') * 2 == stored('float32')
  assert stored('int8') * 4 * H == stored('float32') * (H + 4)


def test_generation_keeps_its_cache_in_int8(decoder):
  tokens, mask, keys = jnp.array([[1, 2, 3]]), jnp.ones((1, 3), bool), row_key(0)[None]
  options = {'sampling': GREEDY, 'cache_dtype': 'int8'}
  state = prefill(decoder, tokens, mask, None, keys, jnp.array(0), slots=8, **options)
  assert state.cache.layers[0].k.values.dtype == jnp.int8
  chunks = generate_text(decoder, tokens, mask, None, keys, eos_id=0, max_new_tokens=3, **options)
  assert np.concatenate(list(chunks), axis=1)[0, 0] == state.token[0]
  draw = functools.partial(generate_codes, guidance=1.0, **options)
  llama, slots = TINY.language_model, 3 + TINY.vq.num_tokens - 1
  buffer = f'i8[1,{llama.num_kv_heads},{slots},{llama.head_dim}]'
  assert buffer in str(jax.make_jaxpr(draw)(decoder, tokens, mask, keys))


def test_unknown_cache_dtype_is_named(decoder):
  with pytest.raises(InputError, match=r"^dtype of the key/value cache is 'int4': expected one of .*int8$"):
    empty_cache(decoder, 'int4')


def test_image_logits_equal_transformers_at_every_step():
  torch = pytest.importorskip('torch')
  pytest.importorskip('transformers')
  import reference

  model, decoder = reference.huggingface_model(), make_decoder(TINY, COMPUTE, reference.our_params())
  P = TINY.vq.num_tokens
  rng = np.random.default_rng(0)
  tokens, codes = rng.integers(0, 256, (3, T)), rng.integers(0, TINY.vq.codebook_size, (3, P))
  mask = np.concatenate([MASK[:, :T], np.ones((3, P), bool)], axis=1)
  positions = np.asarray(prompt_positions(mask))

  @jax.jit
  def step(decoder: Decoder, x: jax.Array, positions: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
    hidden, cache = decoder.hidden(x, positions, cache)
    return decoder.method('image_logits', hidden[:, -1]), cache

  cache = init_cache(TINY.language_model, jnp.asarray(mask[:, :T]), T + P, 'float32')
  logits, cache = step(decoder, decoder.method('embed_text', tokens), positions[:, :T], cache)
  cache, ours = cache.reading(T + P), [logits]
  for i in range(P):
    x = decoder.method('embed_codes', codes[:, i : i + 1])
    logits, cache = step(decoder, x, positions[:, T + i : T + i + 1], cache)
    ours.append(logits)

  with torch.no_grad():
    image = model.prepare_embeddings_for_image_generation(torch.from_numpy(codes))
    x = torch.cat([model.get_input_embeddings()(torch.from_numpy(tokens)), image], dim=1)
    theirs = model.model.language_model(
      inputs_embeds=x,
      attention_mask=torch.from_numpy(mask).long(),
      position_ids=reference.to_torch(positions).long(),
      use_cache=False,
    ).last_hidden_state[:, T - 1 :]
    theirs = model.model.generation_head(theirs)
  assert reference.difference(np.stack(ours, axis=1), theirs) < 1e-4
  assert theirs.std() > 0.3
