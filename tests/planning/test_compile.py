"""Planning a stage: the abstract arguments of its step, what the compiler says of it, what would make it fit."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from recipes import recipe
from small_checkpoint import CONFIG, write
from training import batches

from janus_jax.conversion.translate import parameter_shapes
from janus_jax.data.packing import BatchShape
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS
from janus_jax.models.initialization import initial_params
from janus_jax.planning import compile, memory, report, suggest
from janus_jax.planning.compile import (
  StagePlan,
  abstract_batch,
  abstract_samples,
  abstract_state,
  make_setup,
  plan_stage,
  start_bytes,
)
from janus_jax.planning.memory import held_bytes, memory_of, wanted_bytes
from janus_jax.planning.topologies import parse_topology
from janus_jax.runs.config import TrainConfig, parse_config, replaced
from janus_jax.runs.start import find_start
from janus_jax.sharding.accelerators import GIB
from janus_jax.sharding.mesh import rows_split
from janus_jax.training.samples import SampledAnswer, SampledImage, sample_batch
from janus_jax.training.state import flatten, start_stage, start_state

CPU_8 = parse_topology('cpu-8')


def tiny(batch_size: int = 8, **changes) -> TrainConfig:
  """The tiny recipe for eight devices, with some fields changed ('/' for the dots between them)."""
  config = recipe('tiny')
  config.compute.unroll = 1  # Less to compile.
  for stage in config.stages.values():
    stage.batch_size = batch_size
  config.update_from_flattened_dict({name.replace('/', '.'): value for name, value in changes.items()})
  return parse_config(config)


def setup_of(config, **fields):
  setup = make_setup(config, find_start(config, 'configs/tiny.py'), CPU_8)
  return dataclasses.replace(setup, **fields)


@pytest.mark.parametrize('holds_codes', [False, True], ids=['pixels', 'codes'])
def test_abstract_batch_is_like_a_real_one(tmp_path, holds_codes):
  size = None if holds_codes else batches.GENERATION_SIZE
  spec = batches.make_spec(tmp_path, size)
  pairs = [pair for pair in batches.records() if pair[0] != 'generation']
  real = batches.batch_of(batches.make_examples(spec, pairs), (0, 0, 1, 1, 2), size, streams=4)
  config = tiny(sequence_length=batches.SHAPE.length, **{'data/precompute_codes': holds_codes})
  setup = setup_of(config, start=compile.Start(batches.CONFIG, {}))
  found = abstract_batch(setup, dataclasses.replace(batches.SHAPE, rows=1), 4)
  assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
    name: (x.shape, x.dtype) for name, x in real.items()
  }


def test_abstract_samples_are_like_real_ones():
  prompt, codes = list(range(5, 12)), np.zeros(batches.NUM_CODES, np.int32)
  real = sample_batch([SampledImage({}, prompt, codes, None)] * 16, np.zeros(16, np.float32), 48, pad=0)
  found = abstract_samples(setup_of(tiny()), BatchShape(32, 48, 0, 0))
  assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
    name: (x.shape, x.dtype) for name, x in real.items()
  }


def test_abstract_answers_are_like_real_ones():
  model = batches.CONFIG
  pixels = np.zeros((1, model.image_size, model.image_size, 3), np.uint8)
  answer = SampledAnswer(
    {}, [5, *[model.image_token_id] * model.num_image_tokens, 6], [7, 8], 'a b', pixels, model.image_token_id
  )
  setup = setup_of(tiny(), start=compile.Start(model, {}))
  streams = rows_split(setup.mesh)
  real = sample_batch([answer] * 16, np.zeros(16, np.float32), 48, streams=streams, images=1)
  found = abstract_samples(setup, BatchShape(16, 48, 16, 0))
  assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
    name: (x.shape, x.dtype) for name, x in real.items()
  }


def described(state) -> dict:
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path): (x.shape, x.dtype, x.sharding) for path, x in leaves}


@pytest.mark.parametrize('stage_masks', ['static', 'traced'])
def test_abstract_state_is_that_of_a_run(stage_masks):
  config = tiny(stage_masks=stage_masks)
  setup = setup_of(config)
  model = setup.start.model
  dtypes = {path: 'bfloat16' if path.startswith('language_model/') else 'float32' for path in setup.start.dtypes}
  setup = dataclasses.replace(setup, start=compile.Start(model, dtypes))
  flat = {path: x.astype(dtypes[path]) for path, x in flatten(initial_params(model, 0)).items()}
  of_states = setup.step.optimizer, setup.placement
  state = start_state(compile.unflatten(flat), compile.moments(setup, 0), *of_states)
  for index in range(3):
    state = start_stage(state, compile.moments(setup, index), *of_states)
    abstract = abstract_state(setup, index)
    assert described(abstract) == described(state)
    on_one = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    assert held_bytes(abstract) == on_one
    # The decoder comes in bfloat16: where it begins to train its largest array is there twice for a moment.
    twice = start_bytes(setup, index) - on_one
    table = state.opt_state.mu.get('language_model/embed_tokens/table')
    begins = table is not None and index == (1 if stage_masks == 'static' else 0)
    assert (twice > 0) == begins
    assert twice == 0 or twice >= table.addressable_shards[0].data.nbytes // 2


def test_what_a_run_starts_from():
  released = find_start(parse_config(recipe('janus_pro_7b')), 'somewhere/janus_pro_7b.py')
  assert released.model == PRESETS['janus_pro_7b']
  assert released.dtypes['language_model/layers/mlp/up/kernel'] == 'bfloat16'
  assert released.dtypes['vision_encoder/pos_embed'] == 'float32'
  assert find_start(parse_config(recipe('tiny')), 'configs/tiny.py').model == PRESETS['toy']
  shared = find_start(tiny(shared_encoder=True), 'configs/tiny.py').model
  assert shared == dataclasses.replace(PRESETS['toy'], shared_encoder=True)
  with pytest.raises(InputError, match=r'configs/mine.py: which model\? init_from is empty: expected a checkpoint'):
    find_start(parse_config(recipe('janus_pro_7b')), 'configs/mine.py')


def test_a_checkpoint_says_what_a_run_starts_from(tmp_path):
  config = tiny(init_from=write(tmp_path))
  start = find_start(config, 'configs/mine.py')
  assert start.model == CONFIG
  assert start.dtypes == dict.fromkeys(parameter_shapes(CONFIG), 'float32')


def test_plan_of_a_stage(monkeypatch):
  trip_count = []
  count = compile.received_bytes
  monkeypatch.setattr(compile, 'received_bytes', lambda text, n: trip_count.append(n) or count(text, n))
  plan = plan_stage(setup_of(tiny(loss_chunk=16)), 2)
  # Rows of 104 are 7 chunks, which the loops over logits of text and of codes share.
  assert trip_count == [4]
  assert plan.memory.fits
  step, start, held_out = (plan.memory.peaks[moment] for moment in ('step', 'start', 'held-out'))
  assert step > plan.memory.arguments + plan.memory.temporaries - 1
  assert start == start_bytes(setup_of(tiny(loss_chunk=16)), 2)
  # With all of the state beside it, also what the loss does not need (the VQ, as codes are stored).
  assert start < held_out < step == plan.memory.peak
  assert plan.memory.worst == 'step'
  more = dataclasses.replace(plan.memory, peaks={**plan.memory.peaks, 'held-out': plan.memory.available + 1})
  assert (more.worst, more.fits) == ('held-out', False)
  assert plan.received['all-gather'] > 0
  found = report.plan_to_json(plan, [], None)
  assert found['stage'] == 'stage3'
  assert found['ideal_collective_bytes_per_device'] == plan.ideal
  ideal = f'GB (ideal {plan.ideal / 1e9:.1f}): '
  assert ideal in report.plan_to_text(plan, [], None)
  assert found['chips'] == found['devices'] == 8
  halves = dataclasses.replace(plan, setup=dataclasses.replace(plan.setup, topology=parse_topology('tpu7x-8')))
  found = report.plan_to_json(halves, [], None)
  assert (found['chips'], found['devices'], found['peak_bytes_per_device']) == (4, 8, plan.memory.peak)
  assert 'stage3 on tpu7x-8 (fsdp 8 on 4 chips): fits' in report.plan_to_text(halves, [], None)
  assert found['tokens'] == tiny().stages['stage3'].steps * 8 * 104
  assert found['mfu_bound'] is None  # A CPU has no known peak.
  assert 'stage3 on cpu-8 (fsdp 8): fits' in report.plan_to_text(plan, [], None)


def test_more_moments_are_more_memory():
  first, last = (plan_stage(setup_of(tiny()), index).memory.arguments for index in (0, 2))
  assert last > first


def test_a_batch_that_does_not_divide_is_refused():
  with pytest.raises(InputError, match=r'stages\.stage1\.batch_size is 8: expected a multiple of 24'):
    plan_stage(setup_of(tiny(accumulation=3)), 0)


def test_a_tpus_peak_is_not_the_sum_of_its_sizes():
  """Temporaries that lie where donated arguments were are in both; the figures are those of a 7B on v5e-8, in MB."""
  sizes = {
    'argument_size_in_bytes': 7186,
    'temp_size_in_bytes': 11486,
    'output_size_in_bytes': 7106,
    'alias_size_in_bytes': 7106,
    'generated_code_size_in_bytes': 56,
    'peak_memory_in_bytes': 14721,
  }
  compiled = types.SimpleNamespace(memory_analysis=lambda: types.SimpleNamespace(**sizes))
  memory = memory_of(compiled, parse_topology('v5e-8'))
  assert (memory.arguments, memory.temporaries, memory.peak) == (7186, 14721 - 7186, 14721 + 56)
  on_cpu = memory_of(compiled, CPU_8)
  assert (on_cpu.arguments, on_cpu.temporaries, on_cpu.peak) == (7186, 11486, 7186 + 11486 + 56)


def test_the_compilers_word_on_what_does_not_fit():
  message = (
    'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO '
    'temporaries (16.48G) exceeds available HBM (15.75G). HLO module: jit_train_step.\nSee https://openxla.org'
  )
  assert wanted_bytes(message) == int(16.48 * GIB)
  assert wanted_bytes(message.replace('16.48G', '900.00M')) == 900 * 2**20
  late = (
    'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. Ran out of memory in memory space '
    'hbm. Used 15.80G of 15.75G hbm. Exceeded hbm capacity by 53.19M.\n\nTotal hbm usage >= 16.05G:\n'
  )
  assert wanted_bytes(late) == int(15.80 * GIB)
  assert wanted_bytes('RESOURCE_EXHAUSTED: out of threads') is None
  assert wanted_bytes(message.replace('RESOURCE_EXHAUSTED', 'INTERNAL')) is None


def test_hints_name_the_first_settings_that_fit(monkeypatch):
  config = tiny(64, **{'compute/remat': 'none', 'mesh/data': 2, 'mesh/fsdp': 4, 'held_out_batches': 0})
  start = find_start(config, 'configs/tiny.py')

  def plan(**changes) -> StagePlan:
    changed = replaced(config, {name.replace('/', '.'): value for name, value in changes.items()})
    return plan_stage(make_setup(changed, start, CPU_8), 1)

  failed = plan()
  sharded = {'mesh/data': 1, 'mesh/fsdp': -1}
  twice, accumulated = (plan(**sharded, accumulation=count).memory.peak for count in (2, 4))
  assert accumulated < twice < plan(**sharded).memory.peak
  monkeypatch.setattr(memory, 'available_bytes', lambda _: accumulated)
  monkeypatch.setattr(suggest, 'available_bytes', lambda _: accumulated)
  options, found = suggest.find_fitting(config, 1, failed)
  assert options == ['--config.mesh.data=1', '--config.mesh.fsdp=-1', '--config.stages.stage2.accumulation=4']
  assert found.memory.fits
  assert '--config.stages.stage2.accumulation=4' in report.plan_to_text(failed, options, found)


def test_hints_compile_nothing_that_cannot_fit(monkeypatch):
  config = tiny(**{'compute/remat': 'none'})
  failed = plan_stage(setup_of(config), 2)
  monkeypatch.setattr(suggest, 'available_bytes', lambda _: 1000)
  monkeypatch.setattr(suggest, 'plan_stage', lambda *_: pytest.fail('compiled'))
  assert suggest.find_fitting(config, 2, failed) == ([], None)


def test_accumulation_that_cannot_be_enough_is_not_compiled(monkeypatch):
  """However well it shrinks: 8 times fewer rows hold an eighth of what there was beside the state."""
  config = tiny(64)
  failed, compiled = plan_stage(setup_of(config), 1), []
  rest = failed.memory.peak - failed.memory.arguments
  state = held_bytes(abstract_state(failed.setup, 1))
  monkeypatch.setattr(suggest, 'available_bytes', lambda _: state + rest // 3)

  def compile_nothing(setup, index):
    compiled.append((setup.run.stages['stage2'].accumulation, setup.step.optimizer.moment_dtype))
    return failed

  monkeypatch.setattr(suggest, 'plan_stage', compile_nothing)
  suggest.find_fitting(config, 1, failed)
  assert (2, 'float32') not in compiled
  assert (4, 'float32') in compiled


def test_changes_go_from_cheap_to_dear():
  config = tiny(**{'compute/remat': 'dots', 'mesh/data': 4, 'mesh/fsdp': 2})
  setup = setup_of(config)
  stage = dataclasses.replace(setup.run.run_stages[1], batch_size=64)
  assert list(suggest.candidate_changes(setup, stage)) == [
    {'mesh.data': 1, 'mesh.fsdp': -1},
    {'stages.stage2.accumulation': 2},
    {'stages.stage2.accumulation': 4},
    {'stages.stage2.accumulation': 8},
    {'compute.remat': 'full'},
    {'optimizer.moment_dtype': 'bfloat16'},
    {'optimizer.gradient_sum_dtype': 'bfloat16'},
  ]
  # Every slice has a state of its own.
  two = dataclasses.replace(setup, topology=parse_topology('2xv5e-4'))
  assert next(suggest.candidate_changes(two, stage)) == {'mesh.data': 2, 'mesh.fsdp': -1}
  best = setup_of(tiny(**{'compute/remat': 'full', 'accumulation': 1}))
  optimizer = dataclasses.replace(best.step.optimizer, moment_dtype='bfloat16', gradient_sum_dtype='bfloat16')
  best = dataclasses.replace(best, step=dataclasses.replace(best.step, optimizer=optimizer))
  assert list(suggest.candidate_changes(best, best.run.run_stages[1])) == []


@pytest.mark.parametrize('supervised', [0.0, 1.0])
def test_plan_of_a_stage_that_learns_from_samples(supervised):
  """The step is compiled with them: with a frozen copy of the model, and with the data's batch where it is read."""
  config = recipe('preference/toy')
  steps = config.stages.grpo.steps
  config.stages.grpo.preference.update({'beta': 0.1, 'supervised': supervised, 'num_prompts': 4, 'group': 8})
  config.stages.grpo.batch_size, config.compute.unroll = 8, 1
  plan = plan_stage(setup_of(parse_config(config)), 0)
  text = report.plan_to_text(plan, [], None)
  assert f'{"8 rows of 104 positions, " if supervised else ""}32 samples of 48' in text
  tokens = 32 * 48 + (8 * 104 if supervised else 0)
  assert plan.figures.tokens == tokens * steps
  state = abstract_state(plan.setup, 0)
  assert state.reference.keys() == state.opt_state.mu.keys()
