"""What attention is for an NVIDIA GPU where there is none: lowered for CUDA, forward and backward, and interpreted."""

import functools
import importlib
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from models.test_attention import DECODER, assert_same, operands, packed_segments, results

from janus_jax.errors import InputError
from janus_jax.models.attention_accelerators import segment_starts
from janus_jax.models.config import ComputeConfig, LlamaConfig
from janus_jax.models.llama import Llama
from janus_jax.sharding.layout import ActivationLayout
from janus_jax.sharding.mesh import make_mesh

LENGTH = 1024
SCORES = f'{LENGTH}x{LENGTH}x'
CARDS = {'sm90': ('NVIDIA H100 80GB HBM3', '9.0'), 'sm100': ('NVIDIA B200', '10.0')}


@pytest.mark.parametrize(
  ('length', 'causal', 'packed', 'head_dim'),
  [(256, True, True, 128), (200, True, True, 64), (144, False, False, 64)],
)
def test_the_pallas_kernel_changes_nothing(length, causal, packed, head_dim):
  """Lengths that are no multiple of its blocks too, and grouped queries."""
  arrays = operands(length, head_dim=head_dim)
  segments = packed_segments(length) if packed else None
  expected = results(*arrays, segments, causal=causal, implementation='xla')
  found = results(*arrays, segments, causal=causal, implementation='pallas', interpret=True)
  assert_same(found, expected, 3e-6)


def test_a_mesh_of_rows_and_heads_changes_nothing_in_the_pallas_kernel():
  arrays, segments = operands(128), packed_segments(128)
  expected = results(*arrays, segments, causal=True, implementation='xla')
  layout = ActivationLayout(make_mesh({'data': 2, 'tensor': 2}, jax.devices()[:4]))
  options = {'layout': layout, 'names': DECODER, 'interpret': True}
  found = results(*arrays, segments, causal=True, implementation='pallas', **options)
  assert_same(found, expected, 3e-6)


def test_a_segment_starts_where_its_first_position_lies():
  segments = jnp.array([[1, 1, 2, 2, 2, 3, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1]])
  assert segment_starts(segments).tolist() == [[0, 0, 2, 2, 2, 5, 6, 6], [0, 0, 0, 3, 3, 3, 3, 3]]


@functools.cache
def lowered_for_cuda(implementation: str, card: str, remat: str = 'full') -> str:
  """The text of the gradient of a decoder's layers over packed rows."""
  config = LlamaConfig(
    vocab_size=64, width=64, mlp_dim=64, depth=2, num_heads=2, num_kv_heads=1, head_dim=64, max_positions=LENGTH
  )
  model = Llama(config, ComputeConfig(dtype='bfloat16', remat=remat, attention=implementation))
  x, rows = jax.ShapeDtypeStruct((2, LENGTH, 64), 'bfloat16'), jax.ShapeDtypeStruct((2, LENGTH), 'int32')
  params = jax.eval_shape(Llama(config, ComputeConfig()).init, jax.random.key(0), rows, rows)

  def loss(params, x, positions, segments):
    return model.apply(params, x, positions, segments, method='hidden')[0].astype(jnp.float32).sum()

  device = AbstractDevice(device_kind=CARDS[card][0], num_cores=None, platform='gpu')
  mesh = AbstractMesh((1,), ('x',), axis_types=(AxisType.Auto,), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    return jax.jit(jax.grad(loss)).trace(params, x, rows, rows).lower(lowering_platforms=('cuda',)).as_text()


def test_scores_of_all_positions_would_be_seen():
  assert SCORES in lowered_for_cuda('xla', 'sm90')


def test_lowered_for_cuda_the_pallas_kernel_holds_no_scores_of_all_positions():
  # Forward, forward again for the backward pass, its preparation and itself.
  for remat, kernels in (('full', 4), ('dots', 3)):
    text = lowered_for_cuda('pallas', 'sm90', remat)
    assert SCORES not in text
    assert text.count('custom_call @__gpu$xla.gpu.triton') == kernels


@pytest.fixture
def tokamax():
  pytest.importorskip('jax_triton', reason='needs Python 3.12 and `pip install janus_jax[gpu]`')
  return pytest.importorskip('tokamax')


@pytest.mark.usefixtures('tokamax')
def test_what_tokamax_is_asked_for_is_the_same_attention(monkeypatch):
  """Its kernels cannot run here: its reference for them can."""
  reference = importlib.import_module('tokamax._src.ops.attention.base').DotProductAttention
  monkeypatch.setattr('tokamax.ops.gpu.PallasMosaicFlashAttention', reference)
  arrays, segments = operands(96), packed_segments(96)
  expected = results(*arrays, segments, causal=True, implementation='xla')
  assert_same(results(*arrays, segments, causal=True, implementation='tokamax'), expected, 3e-6)
  images = results(*arrays, None, causal=False, implementation='tokamax')
  assert_same(images, results(*arrays, None, causal=False, implementation='xla'), 3e-6)
  with pytest.raises(InputError, match="attention is 'tokamax': expected another for segments without causality"):
    results(*arrays, segments, causal=False, implementation='tokamax')


# Forward, forward again for the backward pass where it is not kept, and one kernel each for dq, and dk and dv.
@pytest.mark.parametrize(('card', 'remat', 'kernels'), [('sm90', 'full', 4), ('sm90', 'dots', 3), ('sm100', 'full', 4)])
def test_lowered_for_cuda_tokamax_holds_no_scores_of_all_positions(card, remat, kernels, tokamax, monkeypatch):
  kind, capability = CARDS[card]
  # It chooses a kernel by the default device.
  device = types.SimpleNamespace(platform='gpu', device_kind=kind, compute_capability=capability, core_count=132)
  monkeypatch.setattr('jax.extend.backend.get_default_device', lambda: device)
  with tokamax.config.cross_compile(True):
    text = lowered_for_cuda('tokamax', card, remat)
  assert SCORES not in text
  assert text.count('custom_call @mosaic_gpu') == kernels
