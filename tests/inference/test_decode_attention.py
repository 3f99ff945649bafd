"""The kernel of decode steps on GPUs: interpreted against plain attention, and in whole requests against XLA's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from janus_jax.inference import cache as caching
from janus_jax.inference import decoder as decoding
from janus_jax.inference.answering import TextPrompts, generate_text
from janus_jax.inference.decode_attention import PART, can_read, decode_attention
from janus_jax.inference.decoder import Decoder, make_decoder
from janus_jax.inference.drawing import generate_codes
from janus_jax.inference.sampling import Sampling
from janus_jax.models.attention import masked_attention
from janus_jax.models.config import PRESETS, ComputeConfig
from janus_jax.models.initialization import initial_params

TINY = PRESETS['test_tiny']
B, N, K, H, S = 4, 4, 2, 32, 2 * PART
interpreted = jax.jit(functools.partial(decode_attention, interpret=True))


def normal(seed: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize('slot', [0, 5, PART - 1, PART, S - 1])
def test_it_is_attention_to_the_filled_slots_and_stores_its_own(slot):
  """Grouped queries; two blocks of a prompt, of which one is shared; left padding; what is not filled yet is large."""
  q, new = normal(0, B, N, H), (normal(1, B, K, H), normal(2, B, K, H))
  masks = [
    jnp.arange(length) >= jnp.array(padding)[:, None] for length, padding in ((48, (3, 40)), (16, (0, 1, 9, 15)))
  ]
  prompts = [(normal(3, 2, K, 48, H), normal(4, 2, K, 48, H), masks[0])]
  prompts += [(normal(5, B, K, 16, H), normal(6, B, K, 16, H), masks[1])]
  filled = jnp.arange(S)[:, None] < slot
  generated = tuple(jnp.where(filled, normal(seed, B, K, S, H), 1e4) for seed in (7, 8))

  attended, *stored = interpreted(q, new, prompts, generated, jnp.int32(slot))

  for found, before, own in zip(stored, generated, new):
    np.testing.assert_array_equal(found, before.at[:, :, slot].set(own))
  blocks = [(keys, values) for keys, values, _ in prompts] + [[x[:, :, : slot + 1] for x in stored]]
  keys, values = (
    jnp.concatenate([x.repeat(B // len(x), axis=0) for x in kind], axis=2).swapaxes(1, 2) for kind in zip(*blocks)
  )
  mask = jnp.concatenate([masks[0].repeat(2, axis=0), masks[1], jnp.ones((B, slot + 1), bool)], axis=1)
  expected = masked_attention(q[:, None], keys, values, mask[:, None])[:, 0]
  np.testing.assert_allclose(attended, expected, atol=2e-6)


def test_what_it_can_read():
  assert can_read((16, 576), 128)
  assert not can_read((17, 576), 128)  # Parts of one slot.
  assert not can_read((16, 576), 96)  # Triton wants powers of two.


@functools.cache
def decoder(of: str) -> Decoder:
  """The same for 'gpu' and for 'cpu', but for a setting without a meaning here: each has its own compiled programs."""
  params = jax.tree.map(lambda leaf: 3 * leaf if leaf.ndim > 2 else leaf, initial_params(TINY, seed=0))
  return make_decoder(TINY, ComputeConfig(attention='auto', remat={'gpu': 'full', 'cpu': 'none'}[of]), params)


@pytest.fixture
def calls(monkeypatch) -> list:
  """Takes this device for a GPU, whose kernel is interpreted; the calls of that."""
  made = []

  def call(*args):
    made.append(args)
    return interpreted(*args)

  monkeypatch.setattr(decoding, 'platform_of', lambda device: 'sm90')
  monkeypatch.setattr(caching, 'decode_attention', call)
  return made


PROMPTS = np.random.default_rng(0).integers(3, 90, (4, 16)).astype(np.int32)
MASK = np.arange(16) >= np.array([0, 3, 9, 15])[:, None]


def codes(decoder: Decoder) -> np.ndarray:
  """Two images of each of two prompts."""
  keys = jax.random.split(jax.random.key(1), 4)
  return np.asarray(generate_codes(decoder, PROMPTS, MASK, keys, guidance=3.0, sampling=Sampling()).codes)


def answers(decoder: Decoder) -> np.ndarray:
  """Two answers to each of two beginnings."""
  keys, rest = jax.random.split(jax.random.key(2), 4), (PROMPTS[:, :8], MASK[:, 8:])
  prompts = TextPrompts(PROMPTS[:2], MASK[:2], rest=rest)
  options = {'eos_id': -1, 'max_new_tokens': 9, 'sampling': Sampling()}
  return np.concatenate(list(generate_text(decoder, prompts, keys, **options)), axis=1)


@pytest.mark.parametrize('generate', [codes, answers])
def test_requests_are_answered_as_without_it(generate, calls, monkeypatch):
  found = generate(decoder('gpu'))
  assert len(calls) == TINY.language_model.depth
  monkeypatch.undo()
  np.testing.assert_array_equal(found, generate(decoder('cpu')))


def test_lowered_for_cuda_a_step_has_one_kernel_of_a_layer_in_one_loop(monkeypatch):
  monkeypatch.setattr(decoding, 'platform_of', lambda device: 'sm90')
  arguments = decoder('gpu'), PROMPTS, MASK, jax.random.split(jax.random.key(0), 4)
  device = AbstractDevice(device_kind='NVIDIA H100 80GB HBM3', num_cores=None, platform='gpu')
  with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
    traced = generate_codes.trace(*arguments, guidance=2.0, sampling=Sampling())
    text = traced.lower(lowering_platforms=('cuda',)).as_text()
  assert text.count('stablehlo.while') == 1
  assert text.count('custom_call @__gpu$xla.gpu.triton') == TINY.language_model.depth


@pytest.mark.parametrize('dtype', ['float32', 'int8'])
def test_int8_caches_are_read_by_xla(dtype, monkeypatch):
  monkeypatch.setattr(decoding, 'platform_of', lambda device: 'sm90')
  made = make_decoder(TINY, ComputeConfig(attention='auto'), initial_params(TINY, seed=0), cache_dtype=dtype)
  cache = made.empty_cache((jnp.asarray(MASK),), 4, (4, 4))
  assert cache.kernels[1] == ('xla' if dtype == 'int8' else 'pallas')
  assert cache.generated_blocks == ([4, 4] if dtype == 'int8' else [PART])
