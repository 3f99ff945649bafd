"""What 'auto' makes of rematerialisation: the formula against what JAX keeps and XLA allocates, and the choice."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest
from recipes import recipe

from janus_jax.conversion.translate import parameter_shapes
from janus_jax.models.config import PRESETS, ComputeConfig, LlamaConfig, SiglipConfig
from janus_jax.models.llama import Llama
from janus_jax.models.lora import LoraConfig, adapted_shapes
from janus_jax.models.siglip import Siglip
from janus_jax.runs.config import parse_config, replaced
from janus_jax.runs.setup import read_step
from janus_jax.sharding.accelerators import GIB
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training import rematerialisation
from janus_jax.training.rematerialisation import kept_bytes, state_bytes, step_bytes, usable_bytes, with_remat
from janus_jax.training.stages import trained_paths
from janus_jax.training.state import Placement, flatten, new_state, unflatten

LENGTH = 384
MODEL = dataclasses.replace(
  PRESETS['janus_pro_1b'],
  language_model=LlamaConfig(
    vocab_size=512, width=128, mlp_dim=352, depth=16, num_heads=4, num_kv_heads=2, head_dim=32, max_positions=LENGTH
  ),
  vision_encoder=SiglipConfig(image_size=64, patch_size=4, width=64, mlp_dim=160, depth=5, num_heads=2),
  image_token_id=5,
)
ROWS = jax.ShapeDtypeStruct((1, LENGTH), 'int32')


def decoder(remat: str, kernel: str, dtype: str = 'bfloat16'):
  """A function of parameters and [1, T, D], and both, as shapes."""
  model = Llama(MODEL.language_model, ComputeConfig(dtype=dtype, remat=remat, attention=kernel))
  params = jax.eval_shape(model.init, jax.random.key(0), ROWS, ROWS)
  x = jax.ShapeDtypeStruct((1, LENGTH, 128), dtype)
  indices = jnp.arange(LENGTH)[None]
  return (lambda params, x: model.apply(params, x, indices, indices // 100, method='hidden')[0]), params, x


def encoder(remat: str, kernel: str):
  """As `decoder`, of pixels."""
  model = Siglip(MODEL.vision_encoder, ComputeConfig(dtype='bfloat16', remat=remat, vision_attention=kernel))
  x = jax.ShapeDtypeStruct((1, 64, 64, 3), 'bfloat16')
  return model.apply, jax.eval_shape(model.init, jax.random.key(0), x), x


def handed_on(function, params, x, depth: int, positions: int) -> float:
  """Bytes by position that all layers hand to their backward pass."""
  leaves = jax.tree.leaves(jax.eval_shape(lambda *inputs: jax.vjp(function, *inputs)[1], params, x))
  return sum(x.size * x.dtype.itemsize for x in leaves if x.shape[:1] == (depth,) and positions in x.shape) / positions


@pytest.mark.parametrize(('remat', 'kernel'), [('full', 'chunked'), ('dots', 'chunked'), ('dots', 'pallas')])
def test_the_formula_says_what_layers_hand_on(remat, kernel):
  of_decoder, of_encoder = kept_bytes(MODEL, 'bfloat16', remat)
  assert handed_on(*decoder(remat, kernel), 16, LENGTH) == of_decoder
  assert handed_on(*encoder(remat, 'chunked'), 5, 256) == of_encoder


@pytest.mark.parametrize('base_dtype', ['', 'int8'])
def test_factors_of_lora_hand_on_what_is_between_them_alone(base_dtype):
  function, params, x = decoder('dots', 'chunked')
  shapes = {f'language_model/{path}': leaf.shape for path, leaf in flatten(params['params']).items()}
  adapted = adapted_shapes(shapes, LoraConfig(rank=4, base_dtype=base_dtype))
  dtypes = {path: 'int8' if path.endswith('/int8') else 'float32' for path in adapted}
  leaves = {path: jax.ShapeDtypeStruct(shape, dtypes[path]) for path, shape in adapted.items()}
  tree = unflatten({path.partition('/')[2]: leaf for path, leaf in leaves.items()})
  of_decoder, _ = kept_bytes(MODEL, 'bfloat16', 'dots')
  assert handed_on(function, {'params': tree}, x, 16, LENGTH) == of_decoder + 16 * 7 * 4 * 2


def test_without_rematerialisation_three_times_as_much_is_handed_on():
  nothing = handed_on(*decoder('none', 'chunked'), 16, LENGTH)
  assert nothing > 2.8 * kept_bytes(MODEL, 'bfloat16', 'dots')[0]


def test_the_compiler_allocates_what_the_formula_says():
  temporaries = {}
  for remat in ('full', 'dots'):
    function, *inputs = decoder(remat, 'chunked', 'float32')
    gradient = jax.jit(jax.grad(lambda *inputs, function=function: function(*inputs).sum()))
    temporaries[remat] = gradient.lower(*inputs).compile().memory_analysis().temp_size_in_bytes
  full, dots = (LENGTH * kept_bytes(MODEL, 'float32', remat)[0] for remat in ('full', 'dots'))
  assert temporaries['dots'] - temporaries['full'] == pytest.approx(dots - full, rel=0.1)
  rest = temporaries['dots'] - dots
  assert 0.5 * rest < LENGTH * rematerialisation.working_bytes(MODEL, 'float32') < 2 * rest


def test_heads_and_hidden_units_are_split_over_devices():
  alone, halves = (kept_bytes(PRESETS['janus_pro_1b'], 'bfloat16', 'dots', tensor)[0] for tensor in (1, 2))
  inputs = kept_bytes(PRESETS['janus_pro_1b'], 'bfloat16', 'full')[0]
  assert halves - 2 * inputs == (alone - 2 * inputs) / 2


def run_of(devices: int = 8, **changes):
  """The arguments of `with_remat` for the tiny recipe, with 'auto'."""
  config = recipe('tiny')
  for stage in config.stages.values():
    stage.batch_size = 64
  values = {'compute.remat': 'auto', **{name.replace('/', '.'): value for name, value in changes.items()}}
  config.update_from_flattened_dict(values)
  config = parse_config(config)
  model, mesh = PRESETS['toy'], make_mesh(dataclasses.asdict(config.mesh), jax.devices()[:devices])
  placement = Placement.of(mesh, parameter_shapes(model))
  step = read_step(config, model, placement)
  # As it was requested, whatever was made of it.
  step = dataclasses.replace(step, compute=dataclasses.replace(step.compute, remat='auto'))
  return step, config.run_stages, placement, parameter_shapes(model), config.sequence_length


def test_what_fits_is_kept(monkeypatch):
  arguments = run_of()
  needed = step_bytes(*arguments, 'dots')
  assert needed > step_bytes(*arguments, 'full')
  for usable, chosen in ((needed, 'dots'), (needed - 1, 'full'), (None, 'full')):
    monkeypatch.setattr(rematerialisation, 'usable_bytes', lambda _, usable=usable: usable)
    assert with_remat(*arguments).compute.remat == chosen
  asked, *rest = arguments
  asked = dataclasses.replace(asked, compute=dataclasses.replace(asked.compute, remat='none'))
  assert with_remat(asked, *rest) == asked


def test_a_run_compiles_with_what_was_chosen(monkeypatch):
  config, placement = replaced(parse_config(recipe('tiny')), {'compute.remat': 'auto'}), run_of()[2]
  assert read_step(config, PRESETS['toy'], placement).compute.remat == 'full'
  monkeypatch.setattr(rematerialisation, 'usable_bytes', lambda _: 1e12)
  assert read_step(config, PRESETS['toy'], placement).compute.remat == 'dots'


@pytest.mark.parametrize(
  'changes',
  [
    {'accumulation': 2},
    {f'stages/{name}/accumulation': 2 for name in ('stage1', 'stage2', 'stage3')},
    {'run': ('stage1',)},
    {'optimizer/moment_dtype': 'bfloat16'},
    {'sequence_length': 96},
  ],
)
def test_what_takes_less_memory(changes):
  assert step_bytes(*run_of(**changes), 'dots') < step_bytes(*run_of(), 'dots')
  assert step_bytes(*run_of(devices=8), 'dots') < step_bytes(*run_of(devices=4), 'dots')


@pytest.mark.parametrize('muon', [(), ('language_model/.*kernel',)])
def test_the_state_is_that_of_a_run(muon):
  """Parameters and moments; beside them gradients, and copies in bfloat16 of what no loop over layers reads."""
  changes = {'compute/dtype': 'bfloat16', 'optimizer/ema_decay': 0.9, 'optimizer/muon': muon}
  step, stages, placement, shapes, _ = run_of(devices=1, **changes)
  trained = trained_paths(stages[2], placement.params)
  params = unflatten({path: jax.ShapeDtypeStruct(shape, 'float32') for path, shape in shapes.items()})
  state = jax.eval_shape(lambda params: new_state(params, trained, step.optimizer), params)

  def size(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

  copies = [jax.ShapeDtypeStruct(shape, 'bfloat16') for path, shape in shapes.items() if '/layers/' not in path]
  beside = size(state.ema) + size(copies)  # A gradient is as large as an average.
  counters = 4 * 4
  assert state_bytes(step, trained, placement, shapes) == size(state) - counters + beside


def device(kind: str, platform: str):
  return types.SimpleNamespace(device_kind=kind, platform=platform)


def test_memory_of_a_device(monkeypatch):
  monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
  assert usable_bytes(device('cpu', 'cpu')) is None
  assert usable_bytes(device('NVIDIA of the future', 'gpu')) is None
  assert usable_bytes(device('TPU v5 lite', 'tpu')) == pytest.approx(0.9 * 15.75 * GIB)
  assert usable_bytes(device('NVIDIA H100 80GB HBM3', 'gpu')) == pytest.approx(0.9 * 0.75 * 80 * GIB)
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.9')
  assert usable_bytes(device('NVIDIA H100 80GB HBM3', 'gpu')) == pytest.approx(0.9 * 0.9 * 80 * GIB)


@pytest.mark.parametrize(('rows', 'fits'), [(1, True), (4, True), (16, False)])
def test_rows_of_the_1b_on_an_h100(rows, fits, monkeypatch):
  """Stage III, a microbatch of so many rows of 4,096 positions."""
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.9')
  config, model = recipe('janus_pro_1b'), PRESETS['janus_pro_1b']
  config.run, config.accumulation = ('stage3',), config.stages.stage3.batch_size // rows
  placement = Placement.of(make_mesh({}, jax.devices()[:1]), parameter_shapes(model))
  config = parse_config(config)
  step = read_step(config, model, placement)
  needed = step_bytes(step, config.run_stages, placement, parameter_shapes(model), config.sequence_length, 'dots')
  assert (needed <= usable_bytes(device('NVIDIA H100 80GB HBM3', 'gpu'))) == fits
