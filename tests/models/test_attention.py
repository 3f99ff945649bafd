"""Every attention kernel against the plain one, on one device and on meshes; and which of them is chosen."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.models import attention_accelerators, attention_choice
from janus_jax.models.attention import WHOLE, attention
from janus_jax.models.attention_choice import AttentionShape, choose, faster_kernel, platform_of, with_attention
from janus_jax.models.attention_kernels import BLOCK, MAX_BLOCKS, Blocks, Operands, block_size, chunked_attention
from janus_jax.models.config import PRESETS, ComputeConfig
from janus_jax.sharding.layout import ActivationLayout
from janus_jax.sharding.mesh import make_mesh

DECODER, VISION = ('queries', 'keys'), ('patch_heads', 'patch_heads')
MESH = {'data': 2, 'tensor': 2, 'context': 2}


def operands(length: int, heads: int = 4, kv_heads: int = 2, head_dim: int = 16, dtype: str = 'float32'):
  """q, k, v and a gradient of the result: two rows."""
  rng = np.random.default_rng(length)
  counts = (heads, kv_heads, kv_heads, heads)
  return tuple(jnp.asarray(rng.normal(size=(2, length, count, head_dim)), dtype) for count in counts)


def packed_segments(length: int) -> jax.Array:
  """Three examples and padding in the first row; one example that fills the second."""
  rng = np.random.default_rng(length)
  cuts = np.sort(rng.choice(np.arange(1, length), 3, replace=False))
  first = np.searchsorted(cuts, np.arange(length), side='right') + 1
  return jnp.asarray(np.stack([np.where(first == 4, 0, first), np.ones(length)]), jnp.int32)


@functools.partial(jax.jit, static_argnames=('causal', 'implementation', 'layout', 'names', 'interpret'))
def results(q, k, v, gradient, segments, **options):
  """The output and the gradients of q, k and v."""
  attended, pull_back = jax.vjp(lambda q, k, v: attention(q, k, v, segments=segments, **options), q, k, v)
  return attended, *pull_back(gradient)


def assert_same(found, expected, tolerance):
  for name, one, other in zip(('output', 'dq', 'dk', 'dv'), found, expected):
    assert one.dtype == other.dtype
    scale = float(jnp.abs(other).max())
    np.testing.assert_allclose(
      np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=0, atol=tolerance * scale, err_msg=name
    )


# --- in chunks of queries and keys


@pytest.mark.parametrize('length', [7, BLOCK, 2 * BLOCK + 31])
@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('packed', [True, False])
def test_chunks_change_nothing(length, causal, packed):
  arrays = operands(length)
  segments = packed_segments(length) if packed else None
  expected = results(*arrays, segments, causal=causal, implementation='xla')
  found = results(*arrays, segments, causal=causal, implementation='chunked')
  assert_same(found, expected, 2e-6)


def test_chunks_in_bfloat16_are_as_near_the_truth_as_the_plain_kernel():
  arrays = operands(300)
  half = tuple(x.astype(jnp.bfloat16) for x in arrays)
  segments = packed_segments(300)
  exact = results(*(x.astype(jnp.float32) for x in half), segments, causal=True, implementation='xla')

  def distances(implementation):
    found = results(*half, segments, causal=True, implementation=implementation)
    assert {x.dtype for x in found} == {jnp.dtype('bfloat16')}
    return np.array([float(jnp.abs(one - other).max()) for one, other in zip(found, exact)])

  assert np.all(distances('chunked') < 1.5 * distances('xla'))


@pytest.mark.parametrize('length', [1, 127, 128, 129, 576, 640, 2048, 4096, 5000])
def test_blocks_hold_every_position_and_few_more(length):
  size = block_size(length)
  blocks = -(-length // size)
  assert blocks <= MAX_BLOCKS
  assert blocks * size - length < blocks
  assert size <= max(BLOCK, -(-length // MAX_BLOCKS))


@pytest.mark.parametrize('offset', [0, 640])
def test_causal_blocks_reach_all_that_is_needed_and_little_else(offset):
  """Half of the square and half a block's width, whichever part of the queries it is."""
  blocks, length = Blocks(queries=64, keys=128, causal=True), 1280
  reached = [int(blocks.reachable(jnp.int32(i), jnp.int32(offset), length)) for i in range(10)]
  last = [offset + 64 * (i + 1) - 1 for i in range(10)]
  assert all(index < 128 * count <= index + 128 for index, count in zip(last, reached))
  everything = Blocks(queries=64, keys=128, causal=False)
  assert int(everything.reachable(jnp.int32(0), jnp.int32(offset), length)) == 10


def test_scores_of_all_positions_never_exist_together():
  length = 1024

  def loss(implementation, q, k, v):
    return attention(q, k, v, segments=None, causal=True, implementation=implementation).sum()

  def largest(implementation):
    q, k, v, _ = operands(length)
    gradient = jax.jit(jax.grad(functools.partial(loss, implementation), argnums=(0, 1, 2)))
    return gradient.lower(q, k, v).compile().memory_analysis().temp_size_in_bytes

  scores = 4 * 2 * 4 * length**2  # Bytes.
  assert largest('xla') > 2 * scores
  assert largest('chunked') < 0.25 * scores


# --- by TPU kernel, interpreted


@pytest.mark.parametrize(
  ('length', 'causal', 'packed', 'head_dim'),
  [(256, True, True, 128), (200, True, False, 64), (144, False, False, 64)],
)
def test_splash_changes_nothing(length, causal, packed, head_dim):
  """Lengths that are no multiple of its blocks too (SigLIP has 576 patches), and grouped queries."""
  arrays = operands(length, head_dim=head_dim)
  segments = packed_segments(length) if packed else None
  expected = results(*arrays, segments, causal=causal, implementation='xla')
  found = results(*arrays, segments, causal=causal, implementation='splash', interpret=True)
  assert_same(found, expected, 3e-6)


@pytest.mark.parametrize('length', [128, 640, 1024, 4096])
def test_blocks_of_splash_divide(length):
  size = attention_accelerators.splash_block(length)
  assert length % size == 0
  assert size % attention_accelerators.LANES == 0
  assert size >= min(length, 512)


# --- on meshes


@pytest.mark.parametrize('implementation', ['xla', 'chunked', 'splash'])
def test_a_mesh_changes_nothing(implementation, monkeypatch):
  """Rows, heads and positions split: queries of the second half must know that they are."""
  monkeypatch.setattr(attention_accelerators, 'MAX_BLOCK', 128)  # More than one block of queries on a device.
  layout = ActivationLayout(make_mesh(MESH))
  arrays, segments = operands(512), packed_segments(512)
  expected = results(*arrays, segments, causal=True, implementation='xla')
  interpret = implementation == 'splash'
  found = results(
    *arrays, segments, causal=True, implementation=implementation, layout=layout, names=DECODER, interpret=interpret
  )
  assert_same(found, expected, 3e-6)
  assert found[0].sharding.shard_shape(found[0].shape) == (1, 256, 2, 16)


@pytest.mark.parametrize('implementation', ['xla', 'chunked', 'splash'])
def test_images_are_whole_on_each_device(implementation):
  layout = ActivationLayout(make_mesh(MESH))
  arrays = operands(36, kv_heads=4)
  expected = results(*arrays, None, causal=False, implementation='xla')
  interpret = implementation == 'splash'
  options = {'layout': layout, 'names': VISION, 'interpret': interpret}
  found = results(*arrays, None, causal=False, implementation=implementation, **options)
  assert_same(found, expected, 3e-6)
  assert found[0].sharding.shard_shape(found[0].shape) == (1, 36, 2, 16)


@pytest.mark.parametrize('implementation', WHOLE)
def test_kernels_of_gpus_refuse_a_split_sequence(implementation):
  layout = ActivationLayout(make_mesh(MESH))
  message = f"attention is '{implementation}': expected another where a mesh splits the sequence"
  with pytest.raises(InputError, match=message):
    results(*operands(256), None, causal=True, implementation=implementation, layout=layout, names=DECODER)


def test_a_part_of_the_queries_may_begin_anywhere():
  q, k, v, _ = operands(300)
  segments = packed_segments(300)
  whole = attention(q, k, v, segments=segments, causal=True, implementation='xla')
  part = chunked_attention(Operands(q[:, 70:], k, v, segments[:, 70:], segments), causal=True, offset=jnp.int32(70))
  np.testing.assert_allclose(part, whole[:, 70:], atol=2e-6)


# --- cuDNN cannot run here: what it is asked for can


@pytest.mark.parametrize('packed', [True, False])
def test_what_cudnn_is_asked_for_is_the_same_attention(packed, monkeypatch):
  asked = {}
  plain = jax.nn.dot_product_attention

  def instead(*args, implementation, **kwargs):
    asked.update(kwargs, implementation=implementation)
    return plain(*args, implementation='xla', **kwargs)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', instead)
  q, k, v, _ = operands(64)
  segments = packed_segments(64) if packed else None
  found = attention(q, k, v, segments=segments, causal=True, implementation='cudnn')
  expected = attention(q, k, v, segments=segments, causal=True, implementation='xla')
  np.testing.assert_allclose(found, expected, atol=2e-6)
  assert asked['implementation'] == 'cudnn'
  # A mask that is broadcast along queries is refused by it, and causality in the mask would hide what can be skipped.
  assert asked['is_causal']
  assert asked['mask'] is None if not packed else asked['mask'].shape == (2, 1, 64, 64)


# --- the choice

LLAMA = AttentionShape(4096, 128, causal=True, packed=True, dtype='bfloat16')


PROMPT = {'trained': False}
IMAGES = {'length': 577, 'causal': False, 'packed': False}


@pytest.fixture
def tokamax(monkeypatch, request):
  """Says whether tokamax is installed (parameter: what of it is), whatever is."""
  installed = getattr(request, 'param', attention_choice.TOKAMAX_MODULES)
  find = lambda name: types.SimpleNamespace() if name in installed else None  # noqa: E731
  monkeypatch.setattr(attention_choice.importlib.util, 'find_spec', find)


@pytest.mark.parametrize(
  ('platform', 'changes', 'expected'),
  [
    ('tpu', {}, 'splash'),
    ('tpu', {'head_dim': 64, 'length': 576, 'causal': False, 'packed': False}, 'splash'),
    ('tpu', {'parts': 4}, 'splash'),
    ('tpu', {'parts': 4, 'length': 4352}, 'chunked'),  # Parts of 1088 positions: eight blocks of 128 and a half.
    ('sm90', {}, 'tokamax'),
    ('sm100', {'length': 4095}, 'tokamax'),
    ('gpu', {}, 'pallas'),
    ('gpu', {'length': 4095}, 'pallas'),
    ('gpu', PROMPT, 'cudnn'),
    ('sm90', PROMPT, 'cudnn'),
    ('sm90', {**PROMPT, 'length': 601}, 'chunked'),
    ('gpu', {'dtype': 'float32'}, 'chunked'),
    ('sm90', {'dtype': 'float32'}, 'chunked'),
    ('sm90', {'head_dim': 192}, 'chunked'),
    ('gpu', {'head_dim': 36, 'length': 80}, 'xla'),
    ('gpu', {'head_dim': 8}, 'chunked'),
    ('gpu', IMAGES, 'cudnn'),
    ('sm100', IMAGES, 'cudnn'),
    ('sm90', {'parts': 2}, 'chunked'),
    ('cpu', {}, 'chunked'),
    ('cpu', {'length': 80}, 'xla'),
    ('cpu', {'length': 576, 'causal': False, 'packed': False}, 'xla'),
  ],
)
@pytest.mark.usefixtures('tokamax')
def test_automatic_choice(platform, changes, expected):
  assert choose('auto', platform, dataclasses.replace(LLAMA, **changes)) == expected


@pytest.mark.parametrize('tokamax', [(), ('tokamax',), ('jax_triton',)], indirect=True)
@pytest.mark.usefixtures('tokamax')
def test_without_tokamax_packed_rows_get_the_pallas_kernel():
  assert choose('auto', 'sm90', LLAMA) == 'pallas'
  assert 'pip install janus_jax[gpu]' in faster_kernel('sm90', 'pallas')
  assert not faster_kernel('sm90', 'tokamax')
  assert not faster_kernel('gpu', 'pallas')
  with pytest.raises(InputError, match=r"attention 'tokamax' wants .*: expected `pip install janus_jax\[gpu\]`"):
    choose('tokamax', 'sm90', LLAMA)


@pytest.mark.parametrize(
  ('requested', 'platform', 'changes', 'message'),
  [
    ('flash', 'tpu', {}, "attention is 'flash': expected one of auto, xla, chunked, splash, cudnn, pallas, tokamax"),
    ('xla', 'cuda', {}, "platform is 'cuda': expected one of cpu, gpu, sm90, sm100, tpu"),
    ('splash', 'cpu', {}, "attention 'splash' runs on a TPU only: the platform is cpu"),
    ('splash', 'tpu', {'parts': 4, 'length': 4352}, '4 parts of a multiple of 128 positions: there are 4352 in all'),
    ('cudnn', 'tpu', {}, "attention 'cudnn' runs on NVIDIA's GPUs since Ampere only: the platform is tpu"),
    ('pallas', 'cpu', {}, "attention 'pallas' runs on NVIDIA's GPUs since Ampere only: the platform is cpu"),
    ('tokamax', 'other', {}, "attention 'tokamax' runs on NVIDIA's GPUs since Ampere only: the platform is other"),
    ('cudnn', 'gpu', {'dtype': 'float32'}, 'wants bfloat16 or float16: the dtype is float32'),
    ('pallas', 'gpu', {'head_dim': 36}, 'wants heads of a multiple of 8 from 16 to 128 dimensions: they have 36'),
    ('cudnn', 'gpu', {'length': 4095}, 'wants an even number of positions: there are 4095'),
    ('tokamax', 'sm90', {'parts': 2}, 'wants whole sequences: the mesh splits them into 2 parts'),
    ('tokamax', 'gpu', {}, r"runs on Hopper and on data centres' Blackwell \(sm90, sm100\) only: the GPU is another"),
    ('tokamax', 'sm90', {'causal': False}, 'wants causality where rows are packed'),
  ],
)  # fmt: skip
@pytest.mark.usefixtures('tokamax')
def test_a_forced_choice_that_cannot_be_is_an_error(requested, platform, changes, message):
  with pytest.raises(InputError, match=message):
    choose(requested, platform, dataclasses.replace(LLAMA, **changes))


@pytest.mark.parametrize('requested', ['xla', 'chunked'])
def test_a_forced_choice_is_kept(requested):
  for platform in ('cpu', 'gpu', 'sm90', 'tpu'):
    assert choose(requested, platform, LLAMA) == requested


@pytest.mark.parametrize(
  ('device', 'expected'),
  [
    ({'platform': 'cpu'}, 'cpu'),
    ({'platform': 'tpu'}, 'tpu'),
    ({'platform': 'gpu', 'compute_capability': '8.0'}, 'gpu'),
    ({'platform': 'gpu', 'compute_capability': '9.0'}, 'sm90'),
    ({'platform': 'gpu', 'compute_capability': '10.3'}, 'sm100'),
    ({'platform': 'gpu', 'compute_capability': '12.0'}, 'gpu'),
    ({'platform': 'gpu', 'compute_capability': '7.5'}, 'other'),
    ({'platform': 'gpu', 'compute_capability': 'gfx942'}, 'other'),
    ({'platform': 'METAL'}, 'other'),
  ],
)
@pytest.mark.usefixtures('tokamax')
def test_gpus_without_fused_attention_get_plain_kernels(device, expected):
  platform = platform_of(types.SimpleNamespace(**device))
  assert platform == expected
  shape = AttentionShape(512, 64, causal=True, packed=True, dtype='bfloat16')
  written = {'gpu': 'pallas', 'sm90': 'tokamax', 'sm100': 'tokamax', 'tpu': 'splash'}
  assert choose('auto', platform, shape) == written.get(platform, 'chunked')


def test_each_tower_has_its_own_choice():
  compute = ComputeConfig(dtype='bfloat16', attention='auto', vision_attention='auto')
  found = with_attention(compute, PRESETS['test_tiny'], 'cpu', length=512, parts=1)
  assert (found.attention, found.vision_attention) == ('chunked', 'xla')
  found = with_attention(compute, PRESETS['janus_pro_7b'], 'gpu', length=4096, parts=2)
  assert (found.attention, found.vision_attention) == ('chunked', 'cudnn')
  forced = dataclasses.replace(compute, attention='xla')
  assert with_attention(forced, PRESETS['janus_pro_7b'], 'gpu', length=4096, parts=1).attention == 'xla'
  with pytest.raises(InputError, match='a row of 80 positions does not split into 3 parts'):
    with_attention(compute, PRESETS['test_tiny'], 'cpu', length=80, parts=3)


def test_an_implementation_that_nobody_chose_is_an_error():
  with pytest.raises(
    InputError, match="attention is 'auto': expected one of xla, chunked, splash, cudnn, pallas, tokamax"
  ):
    attention(*operands(8)[:3], segments=None, causal=True, implementation='auto')
