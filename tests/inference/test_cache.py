"""The key/value cache: cached decode equals the full forward pass, reads no further than told, and int8 stays close."""

import bisect
import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.inference import answering
from janus_jax.inference.answering import TextPrompts, generate_text, prefill
from janus_jax.inference.cache import Block, Buffer, KVCache, attend_to_blocks, init_cache
from janus_jax.inference.decode_attention import PART
from janus_jax.inference.decoder import Decoder, make_decoder, prompt_positions
from janus_jax.inference.drawing import generate_codes
from janus_jax.inference.sampling import Sampling, row_key
from janus_jax.models.attention import masked_attention
from janus_jax.models.config import PRESETS, ComputeConfig, JanusConfig
from janus_jax.models.initialization import initial_params
from janus_jax.models.janus import Janus
from janus_jax.models.quantization import quantize

TINY = PRESETS['test_tiny']
COMPUTE = ComputeConfig()
T, STEPS = 6, 10
S = T + STEPS
BLOCKS = (4, 3, 3)  # Of the steps.
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


def empty_cache(decoder: Decoder, dtype: str = 'float32', blocks: Sequence[int] = BLOCKS) -> KVCache:
  return init_cache(decoder.config.language_model, (jnp.asarray(MASK[:, :T]),), len(MASK), blocks, dtype)


def prefilled(
  decoder: Decoder, x: np.ndarray, dtype: str = 'float32', blocks: Sequence[int] = BLOCKS
) -> tuple[jax.Array, KVCache]:
  return run(decoder, x[:, :T], POSITIONS[:, :T], empty_cache(decoder, dtype, blocks))


def ends(cache: KVCache) -> list[int]:
  """The slot after each block, the prompt's first."""
  return list(itertools.accumulate(block.size for block in cache.layers[0]))


def decoded(decoder: Decoder, x: np.ndarray, cache: KVCache, sizes: list[int]) -> jax.Array:
  """Hidden states of the positions after the prompt, fed `sizes` at a time: [B, sum(sizes), D]."""
  pieces, start = [], T
  for size in sizes:
    here = slice(start, start + size)
    current = bisect.bisect_right(ends(cache), start)
    piece, cache = run(decoder, x[:, here], POSITIONS[:, here], cache.writing(current))
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
  steps = decoded(decoder, x, cache, sizes)
  result = np.asarray(both_logits(decoder, jnp.concatenate([prompt, steps], axis=1)))
  expected = np.asarray(both_logits(decoder, expected))
  assert np.isfinite(result).all()  # Padding too.
  np.testing.assert_allclose(result[MASK], expected[MASK], atol=1e-4, rtol=0)
  assert expected.std() > 0.3  # 1e-4 means something.


@pytest.mark.parametrize('dtype', ['float32', 'int8'])
def test_several_blocks_equal_one_large_block(decoder, dtype):
  x = embeddings()
  one, several = (
    decoded(decoder, x, prefilled(decoder, x, dtype, blocks)[1], [1] * STEPS) for blocks in [(STEPS,), BLOCKS]
  )
  # An int8 key may round the other way where float32 sums differ in their last bit.
  np.testing.assert_allclose(several, one, atol=1e-5 if dtype == 'float32' else 0.02)
  assert np.std(one) > 0.3


def fill(cache: KVCache, slots: np.ndarray, value: float) -> KVCache:
  """Keys and values replaced where bool[B, S] `slots` says so."""

  def put(block: Block, chosen: np.ndarray) -> Block:
    return jax.tree.map(lambda leaf: jnp.where(chosen[:, None, :, None], jnp.asarray(value, leaf.dtype), leaf), block)

  parts = np.split(np.broadcast_to(slots, MASK.shape), ends(cache)[:-1], axis=1)
  return cache.replace(layers=tuple(tuple(map(put, layer, parts)) for layer in cache.layers))


def test_no_block_after_the_current_one_is_read(decoder):
  x, nan = embeddings(), functools.partial(fill, value=np.nan)
  prompt, cache = prefilled(decoder, x)
  result, _ = run(decoder, x[:, :T], POSITIONS[:, :T], nan(empty_cache(decoder), np.arange(S) >= T))
  np.testing.assert_array_equal(result, prompt)
  after = T + BLOCKS[0]  # Where the second block begins.
  sizes = [1] * BLOCKS[0]
  expected = decoded(decoder, x, cache, sizes)
  np.testing.assert_array_equal(decoded(decoder, x, nan(cache, np.arange(S) >= after), sizes), expected)
  # One slot earlier lies in the current block, which is read as a whole.
  assert np.isnan(decoded(decoder, x, nan(cache, np.arange(S) >= after - 1), [1])).all()


@pytest.mark.parametrize(
  ('slots', 'matter'),
  [(np.arange(S) >= T, False), (~MASK, False), (np.arange(S) == T - 1, True)],
  ids=['not written yet', 'left padding', 'end of the prompt'],
)
def test_only_slots_with_a_real_token_matter(decoder, slots, matter):
  x = embeddings()
  _, cache = prefilled(decoder, x)
  result, expected = (decoded(decoder, x, c, [1] * STEPS) for c in (fill(cache, slots, 1e30), cache))
  assert np.array_equal(result, expected) != matter


@pytest.fixture
def attended() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """q [2, 3, 4, 64], k and v [2, 2, 100, 64] of unit normals, and a mask."""
  kq, kk, kv, km = jax.random.split(jax.random.key(3), 4)
  q = jax.random.normal(kq, (2, 3, 4, 64))
  k, v = (jax.random.normal(key, (2, 2, 100, 64)) for key in (kk, kv))
  return q, k, v, jax.random.bernoulli(km, 0.7, (2, 3, 100))


def in_blocks(
  dtype: str, k: jax.Array, v: jax.Array, sizes: Sequence[int] = (60, 40), keys_axis: int = 2
) -> list[Block]:
  """k and v in blocks of `sizes`."""

  def buffers(x: jax.Array, axis: int) -> list[Buffer]:
    parts = jnp.split(x, list(itertools.accumulate(sizes))[:-1], axis=2)
    stored = [quantize(part) if dtype == 'int8' else (part.astype(dtype), None) for part in parts]
    return [Buffer(values.swapaxes(2, axis), scale, axis) for values, scale in stored]

  return list(map(Block, buffers(k, keys_axis), buffers(v, 2)))


@pytest.mark.parametrize('keys_axis', [2, 3])
def test_int8_attention_is_attention_to_the_dequantised_cache(attended, keys_axis):
  q, k, v, mask = attended
  stored = in_blocks('int8', k * 3, v, keys_axis=keys_axis)
  k, v = (
    jnp.concatenate([b.values.swapaxes(2, b.axis) * b.scale[..., None] for b in buffers], axis=2).swapaxes(1, 2)
    for buffers in ([block.k for block in stored], [block.v for block in stored])
  )
  np.testing.assert_allclose(attend_to_blocks(q, stored, mask), masked_attention(q, k, v, mask), atol=1e-5)


@pytest.mark.parametrize('keys_axis', [2, 3])
def test_attention_to_blocks_of_any_sizes_is_attention_to_all_slots(attended, keys_axis):
  q, k, v, mask = attended
  expected = masked_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask)
  for sizes in [(100,), (60, 40), (1, 98, 1)]:
    blocks = in_blocks('float32', k, v, sizes, keys_axis)
    np.testing.assert_allclose(attend_to_blocks(q, blocks, mask), expected, atol=1e-5)


# Relative to the standard deviation of what is exact: root mean square, and the largest error. Measured on six seeds:
# int8 0.008 to 0.009 and 0.05, bfloat16 0.0023 and 0.015.
@pytest.mark.parametrize(('dtype', 'rms', 'largest'), [('bfloat16', 0.004, 0.03), ('int8', 0.012, 0.08)])
def test_error_of_attention(attended, dtype, rms, largest):
  q, k, v, mask = attended
  found, exact = (np.asarray(attend_to_blocks(q, in_blocks(name, k, v), mask)) for name in (dtype, 'float32'))
  error = (found - exact) / exact.std()
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
    blocks = itertools.chain.from_iterable(cache.layers)
    assert {str(buffer.values.dtype) for block in blocks for buffer in (block.k, block.v)} == {dtype}
    return np.asarray(both_logits(decoder, decoded(decoder, x, cache, [1] * STEPS)))

  exact = logits('float32')
  error = (logits(dtype) - exact) / exact.std()
  print('logits', dtype, np.sqrt(np.square(error).mean()), np.abs(error).max())
  assert 0 < np.sqrt(np.square(error).mean()) < rms
  assert np.abs(error).max() < largest


def test_bytes_of_each_cache(decoder):
  def stored(dtype: str) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(empty_cache(decoder, dtype).layers))

  llama, H = TINY.language_model, TINY.language_model.head_dim
  assert stored('float32') == 4 * 2 * llama.depth * len(MASK) * llama.num_kv_heads * S * H  # No slot too many.
  assert stored('bfloat16') * 2 == stored('float32')
  assert stored('int8') * 4 * H == stored('float32') * (H + 4)


def test_generation_keeps_its_cache_in_int8():
  decoder = make_decoder(TINY, COMPUTE, random_params(TINY), cache_dtype='int8')
  tokens, mask, keys = jnp.array([[1, 2, 3]]), jnp.ones((1, 3), bool), row_key(0)[None]
  state = prefill(decoder, TextPrompts(tokens, mask), keys, jnp.array(0), max_new_tokens=3, sampling=GREEDY)
  assert state.cache.layers[0][0].k.values.dtype == jnp.int8
  chunks = generate_text(decoder, TextPrompts(tokens, mask), keys, eos_id=0, max_new_tokens=3, sampling=GREEDY)
  assert np.concatenate(list(chunks), axis=1)[0, 0] == state.token[0]
  traced = generate_codes.trace(decoder, tokens, mask, keys, guidance=1.0, sampling=GREEDY)
  program, llama = str(traced.jaxpr), TINY.language_model
  buffer = rf'i8\[1,{llama.num_kv_heads},(\d+),{llama.head_dim}\] = broadcast_in_dim'
  # The prompt, then 15 fed codes in four blocks; keys and values.
  sizes = [3, 3, 4, 4, 4] * 2 * llama.depth
  assert sorted(map(int, re.findall(buffer, program))) == sorted(sizes)


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of 4 steps. Compiled functions hold the sizes they were traced with."""
  answering.prefill.clear_cache()
  with monkeypatch.context() as patch:
    patch.setattr(answering, 'STEPS_PER_BLOCK', 4)
    yield
  answering.prefill.clear_cache()


def sampled_text(decoder: Decoder, **changes: int) -> list[np.ndarray]:
  tokens = np.random.default_rng(0).integers(0, 256, (len(MASK), T))
  keys = jnp.stack([row_key(seed) for seed in range(len(MASK))])
  options = {'eos_id': -1, 'max_new_tokens': 12, 'sampling': Sampling(temperature=1)}
  return list(generate_text(decoder, TextPrompts(tokens, MASK[:, :T]), keys, **options, **changes))


@pytest.fixture
def text_of_one_block(decoder):
  return np.concatenate(sampled_text(decoder), axis=1)


def test_text_that_crosses_blocks_equals_text_of_one_block(decoder, text_of_one_block, small_blocks, monkeypatch):
  written, writing = [], KVCache.writing
  monkeypatch.setattr(KVCache, 'writing', lambda cache, block: written.append(block) or writing(cache, block))
  chunks = sampled_text(decoder, steps_per_chunk=2)
  np.testing.assert_array_equal(np.concatenate(chunks, axis=1), text_of_one_block)
  assert [chunk.shape[1] for chunk in chunks] == [1, 2, 2, 2, 2, 2, 1]
  assert written == [1, 1, 2, 2, 3, 3]
  assert len(np.unique(text_of_one_block)) > 20  # Not one token all over.


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

  cache = init_cache(TINY.language_model, (jnp.asarray(mask[:, :T]),), len(mask), [P], 'float32')
  logits, cache = step(decoder, decoder.method('embed_text', tokens), positions[:, :T], cache)
  cache, ours = cache.writing(1), [logits]
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


@pytest.mark.parametrize('dtype', ['float32', 'int8'])
@pytest.mark.parametrize('keys_axis', [2, 3])
def test_a_cache_that_is_cut_and_grows_keeps_what_is_stored(dtype, keys_axis):
  mask = jnp.ones((2, 3), bool)
  cache = init_cache(TINY.language_model, (mask,), 2, [5], dtype, keys_axis=keys_axis).writing(1)
  q = jax.random.normal(jax.random.key(0), (2, 5, TINY.language_model.num_heads, TINY.language_model.head_dim))
  k = q[:, :, : TINY.language_model.num_kv_heads]
  _, cache = cache.replace(position=jnp.int32(3)).attend(0, q, k, 2 * k)
  cache = cache.replace(position=jnp.int32(7))
  for sizes in ([7], [2, 3, 1]):
    other = cache.cut(sizes)
    assert other.generated_blocks == sizes
    other = other.writing(min(len(sizes), 2))  # Slot 7 lies in the first block, or in the second.
    expected, found = (c.attend(0, q[:, :1], k[:, :1], k[:, :1])[0] for c in (cache, other))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_cache_for_the_kernel_of_gpus_stays_one_block_and_grows_by_whole_parts():
  cache = init_cache(TINY.language_model, (jnp.ones((2, 8), bool),), 2, [PART], 'float32', ('xla', 'pallas'))
  for sizes, expected in (([3, 4], PART), ([PART + 1], 2 * PART), ([20, 20, 30], 3 * PART)):
    assert cache.cut(sizes).generated_blocks == [expected]
  assert cache.cut([2 * PART]).cut([3]).generated_blocks == [2 * PART]
