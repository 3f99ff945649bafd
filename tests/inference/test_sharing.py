"""Rows that begin alike: their beginning is run, stored and read once, and nothing else changes."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.inference.answering import TextPrompts, decode_chunk, generate_text, prefill
from janus_jax.inference.cache import CACHE_DTYPES, Block, Buffer, attend_to_blocks, init_cache
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
U, B, STEPS = 2, 6, 5
SHARED, REST = (7, 4), (3, 1, 5, 2, 5, 4)  # Real tokens of each.
SOME_ROWS = (0, 4)  # One of each prompt: another length is another program.
GREEDY, SAMPLED = Sampling(temperature=0), Sampling(temperature=1)

run = jax.jit(Decoder.hidden)


@functools.cache
def random_params(config: JanusConfig) -> dict:
  """Larger than freshly initialised weights, so that attention is far from uniform."""
  return jax.device_put(
    jax.tree.map(lambda leaf: leaf * np.float32(2) if leaf.ndim > 2 else leaf, initial_params(config, seed=0))
  )


@functools.cache
def decoder_of(num_kv_heads: int) -> Decoder:
  llama = dataclasses.replace(TINY.language_model, num_kv_heads=num_kv_heads)
  config = dataclasses.replace(TINY, language_model=llama)
  return make_decoder(config, COMPUTE, random_params(config))


@pytest.fixture(scope='module')
def decoder() -> Decoder:
  return decoder_of(TINY.language_model.num_kv_heads)


def padding(lengths: tuple[int, ...]) -> np.ndarray:
  """bool[len(lengths), longest], False on left padding."""
  longest = max(lengths)
  return np.arange(longest) >= longest - np.array(lengths)[:, None]


def keys(count: int) -> jax.Array:
  return jnp.stack([row_key(3, i) for i in range(count)])


def stored(x: jax.Array, dtype: str) -> Buffer:
  return Buffer(*quantize(x)) if dtype == 'int8' else Buffer(x.astype(dtype), None)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def attended(dtype: str, num_kv_heads: int, rows: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """Attention to shared blocks, and to copies of them for each row."""
  kq, kk, kv, km = jax.random.split(jax.random.key(3), 4)
  sizes = range(5, 5 + len(rows))
  q = jax.random.normal(kq, (B, 3, 4, 16))
  mask = jax.random.bernoulli(km, 0.7, (B, 3, sum(sizes))).at[:, :, 0].set(True)

  def blocks(key: jax.Array) -> list[Buffer]:
    shapes = [(held, num_kv_heads, size, 16) for held, size in zip(rows, sizes)]
    return [stored(jax.random.normal(jax.random.fold_in(key, i), s), dtype) for i, s in enumerate(shapes)]

  def copies(buffers: list[Buffer]) -> jax.Array:
    """float32[B, S, K, H]."""
    parts = [b.values if b.scale is None else b.values * b.scale[..., None] for b in buffers]
    whole = [jnp.repeat(part.astype(jnp.float32), B // len(part), axis=0) for part in parts]
    return jnp.concatenate(whole, axis=2).swapaxes(1, 2)

  # Stored before either reads them: a program of both must not see through the rounding.
  q, k, v, mask = jax.lax.optimization_barrier((q, blocks(kk), blocks(kv), mask))
  return attend_to_blocks(q, list(map(Block, k, v)), mask), masked_attention(q, copies(k), copies(v), mask)


# Every dtype with every split of the rows, and every kind of grouping of heads.
@pytest.mark.parametrize(
  ('dtype', 'num_kv_heads', 'rows'),
  [
    *itertools.product(CACHE_DTYPES, [2], [(2, 6), (1, 3, 6), (6, 2)]),
    *itertools.product(['float32', 'int8'], [1, 4], [(1, 3, 6)]),
  ],
)
def test_attention_to_shared_blocks_is_attention_to_their_copies(dtype, num_kv_heads, rows):
  result, expected = attended(dtype, num_kv_heads, rows)
  np.testing.assert_allclose(result, expected, atol=1e-5)
  assert result.std() > 0.3


def embeddings() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Inputs shared [U, 7, D], of the rest [B, 5, D] and of what follows [B, STEPS, D]; padding is not zero."""
  random, width = np.random.default_rng(7), TINY.language_model.width
  sizes = [(U, max(SHARED)), (B, max(REST)), (B, STEPS)]
  return tuple(random.standard_normal((*size, width), np.float32) for size in sizes)


def hidden_states(decoder: Decoder, held: int, dtype: str) -> np.ndarray:
  """[B, 5 + STEPS, D] of the rest and of what follows, where `held` rows hold what is shared."""
  shared, rest, after = embeddings()
  masks = [np.repeat(padding(SHARED), held // U, axis=0), padding(REST)]
  shared = np.repeat(shared, held // U, axis=0)
  cache = init_cache(decoder.config.language_model, tuple(map(jnp.asarray, masks)), B, (3, STEPS - 3), dtype)
  _, cache = run(decoder, shared, prompt_positions(masks[0]), cache)
  first = np.repeat(SHARED, B // U)[:, None]
  piece, cache = run(decoder, rest, first + prompt_positions(masks[1]), cache.writing(1))
  pieces = [piece]
  for i in range(STEPS):
    positions = first + np.array(REST)[:, None] + i
    piece, cache = run(decoder, after[:, i : i + 1], positions, cache.writing(2 if i < 3 else 3))
    pieces.append(piece)
  assert cache.layers[0][0].k.values.shape[0] == held
  return np.concatenate(pieces, axis=1)


def real(x: np.ndarray) -> np.ndarray:
  """Drops the padding of the rest."""
  return x[np.concatenate([padding(REST), np.ones((B, STEPS), bool)], axis=1)]


def test_decode_after_a_shared_prompt_equals_the_full_pass_of_each_row():
  """Without padding, a cache or neighbours; grouped queries."""
  decoder = decoder_of(2)
  shared, rest, after = embeddings()
  result = hidden_states(decoder, U, 'float32')
  assert np.isfinite(result).all()  # Padding too.
  full = functools.partial(Janus(decoder.config, COMPUTE).apply, method='hidden')
  for row in SOME_ROWS:
    prompt = row // (B // U)
    x = np.concatenate([shared[prompt, -SHARED[prompt] :], rest[row, -REST[row] :], after[row]])
    states, _ = full({'params': random_params(decoder.config)}, x[None], np.arange(len(x))[None])
    expected = states[0, SHARED[prompt] :]
    np.testing.assert_allclose(result[row, -len(expected) :], expected, atol=1e-4)
  assert np.std(result) > 0.3


# float16 is stored as bfloat16 is, by a cast.
@pytest.mark.parametrize('dtype', [dtype for dtype in CACHE_DTYPES if dtype != 'float16'])
def test_a_shared_cache_equals_its_copies(decoder, dtype):
  one, copies = (real(hidden_states(decoder, held, dtype)) for held in (U, B))
  # A stored number may round the other way where float32 sums differ in their last bit.
  np.testing.assert_allclose(one, copies, atol=1e-4 if dtype == 'float32' else 0.03)


def text_arrays() -> tuple[np.ndarray, np.ndarray]:
  random = np.random.default_rng(0)
  return random.integers(0, 256, (U, max(SHARED))), random.integers(0, 256, (B, max(REST)))


def test_text_of_shared_prompts_is_that_of_whole_ones(decoder):
  """Each whole prompt alone, without padding."""
  (shared, rest), options = text_arrays(), {'eos_id': -1, 'max_new_tokens': 40, 'sampling': SAMPLED}
  prompts = TextPrompts(shared, padding(SHARED), rest=(rest, padding(REST)))
  chunks = generate_text(decoder, prompts, keys(B), **options)
  result = np.concatenate(list(chunks), axis=1)
  for row in SOME_ROWS:
    prompt = row // (B // U)
    ids = np.concatenate([shared[prompt, -SHARED[prompt] :], rest[row, -REST[row] :]])[None]
    whole = TextPrompts(ids, np.ones(ids.shape, bool))
    alone = generate_text(decoder, whole, keys(B)[row : row + 1], **options)
    np.testing.assert_array_equal(result[row], np.concatenate(list(alone), axis=1)[0])
  assert len(np.unique(result, axis=0)) == B


def test_whole_prompts_that_are_equal_are_answered_by_their_keys(decoder):
  (shared, _), options = text_arrays(), {'eos_id': -1, 'max_new_tokens': 10, 'sampling': SAMPLED}
  mask = padding(SHARED)
  together, apart = (
    np.concatenate(list(generate_text(decoder, TextPrompts(tokens, m), keys(B), **options)), axis=1)
    for tokens, m in [(shared, mask), (np.repeat(shared, 3, axis=0), np.repeat(mask, 3, axis=0))]
  )
  np.testing.assert_array_equal(together, apart)
  assert len(np.unique(together, axis=0)) == B


@pytest.mark.parametrize('dtype', ['float32', 'int8'])
def test_what_is_shared_is_stored_once_and_never_repeated(decoder, dtype):
  (shared, rest), llama = text_arrays(), TINY.language_model
  shared, mask = np.tile(shared, (1, 9)), np.ones((U, 63), bool)
  eos, settings = jnp.array(-1), {'max_new_tokens': 4, 'sampling': GREEDY}
  decoder = dataclasses.replace(decoder, cache_dtype=dtype)
  prompts = TextPrompts(shared, mask, rest=(rest, padding(REST)))
  state = prefill(decoder, prompts, keys(B), eos, **settings)
  sizes = [(U, 63), (B, max(REST)), (B, 3)]
  for layer in state.cache.layers:
    for block, (held, slots) in zip(layer, sizes, strict=True):
      for buffer in (block.k, block.v):
        assert buffer.values.swapaxes(2, buffer.axis).shape == (held, llama.num_kv_heads, slots, llama.head_dim)
        assert buffer.scale is None or buffer.scale.shape == (held, llama.num_kv_heads, slots)
  state = state.replace(cache=state.cache.writing(2))
  program = str(decode_chunk.trace(decoder, state, keys(B), eos, steps=3, sampling=GREEDY).jaxpr)
  shapes = [list(map(int, found.split(','))) for found in re.findall(r'\w\[([\d,]+)\]', program)]
  of_keys = [np.prod(shape) for shape in shapes if 63 in shape and llama.head_dim in shape]
  assert set(of_keys) == {U * llama.num_kv_heads * 63 * llama.head_dim}


def flops(lowered: jax.stages.Lowered) -> float:
  return lowered.compile().cost_analysis()['flops']


def test_what_is_shared_is_run_once(decoder):
  tokens, mask = np.ones((1, 64), np.int32), np.ones((1, 64), bool)
  eos, options = jnp.array(-1), {'max_new_tokens': 4, 'sampling': GREEDY}
  shared = TextPrompts(tokens, mask, rest=(np.ones((8, 4), np.int32), np.ones((8, 4), bool)))
  whole = TextPrompts(np.ones((8, 68), np.int32), np.ones((8, 68), bool))
  one, each = (prefill.lower(decoder, prompts, keys(8), eos, **options) for prompts in (shared, whole))
  assert flops(one) < 0.3 * flops(each)  # 64 + 8 * 4 tokens of 8 * 68 are 0.18, and the logits are as many.


@pytest.mark.parametrize(('guidance', 'sampling'), [(1.0, GREEDY), (5.0, SAMPLED)])
def test_images_of_one_prompt_are_those_of_its_copies(decoder, guidance, sampling):
  tokens, _ = text_arrays()
  mask = padding(SHARED)
  if guidance != 1:
    tokens = np.concatenate([tokens, np.where(np.arange(7) == 6, tokens, 9)])
    mask = np.concatenate([mask, mask])

  def generate(*arguments: jax.Array) -> jax.Array:
    return generate_codes(decoder, *arguments, guidance=guidance, sampling=sampling).codes

  together = generate(tokens, mask, keys(B))
  np.testing.assert_array_equal(together, generate(np.repeat(tokens, 3, axis=0), np.repeat(mask, 3, axis=0), keys(B)))
  for row in SOME_ROWS:
    prompts = slice(row // 3, None, U)
    alone = generate(tokens[prompts], mask[prompts], keys(B)[row : row + 1])
    np.testing.assert_array_equal(together[row], alone[0])
  assert len(np.unique(together, axis=0)) == (B if sampling.temperature else U)


def test_the_prompt_of_images_is_stored_once(decoder):
  tokens, mask = np.ones((4, 23), np.int32), np.ones((4, 23), bool)
  traced = generate_codes.trace(decoder, tokens, mask, keys(B), guidance=5.0, sampling=SAMPLED)
  program, llama = str(traced.jaxpr), TINY.language_model
  buffer = rf'f32\[(\d+),{llama.num_kv_heads},(\d+),{llama.head_dim}\] = broadcast_in_dim'
  # Two prompts with guidance; 6 images with guidance; keys and values.
  sizes = [(4, 23), (12, 3), (12, 4), (12, 4), (12, 4)] * 2 * llama.depth
  assert sorted((int(held), int(slots)) for held, slots in re.findall(buffer, program)) == sorted(sizes)
