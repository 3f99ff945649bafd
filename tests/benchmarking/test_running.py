"""Every mode beside the peer on a model that compiles fast, and answers to mistakes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from training.batches import CONFIG, params

from janus_jax.benchmarking import evaluation_speed, inference, report, running, settings
from janus_jax.benchmarking.benchmark_model import BenchmarkModel, resized
from janus_jax.benchmarking.settings import BenchmarkSettings, Request
from janus_jax.benchmarking.train import make_work
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.errors import InputError
from janus_jax.runs.config import default_config, parse_config, replaced, set_stages
from janus_jax.runs.setup import read_step
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training import rematerialisation
from janus_jax.training.run_config import row_length
from janus_jax.training.state import Placement

ADAPTORS = ('vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head')
SETTINGS = BenchmarkSettings(repeats=2, steps=1, peer=True)
ALONE = dataclasses.replace(SETTINGS, peer=False)
REQUEST = Request((1,), prompt_tokens=6, answer_tokens=8, dtype='float32')


@pytest.fixture(scope='module')
def model() -> BenchmarkModel:
  config = default_config()
  config.data.precompute_codes = False
  config.sequence_length = 96
  config.loss_chunk = 32
  config.compute.dtype = 'float32'
  config.compute.remat = 'none'
  common = {
    'steps': 10,
    'batch_size': 2,
    'learning_rate': 1e-3,
    'sources': {'understanding': {'shapes': 1}, 'text': {'captions': 1}, 'generation': {'shapes': 1}},
    'ratio': (5, 1, 4),
    'trainable': (*ADAPTORS, 'language_model'),
  }
  # Several examples in a row; and one, which needs no mask.
  lengths = CONFIG.num_image_tokens + 48, 20, CONFIG.vq.num_tokens + 15
  stages = {'packed': {**common, 'expected_tokens': lengths}, 'single': {**common, 'ratio': (1, 0, 0)}}
  set_stages(config, stages)
  config.run = ('packed', 'single')
  placement = Placement.of(make_mesh({}, jax.devices()[:1]), parameter_shapes(CONFIG))
  return BenchmarkModel(parse_config(config), CONFIG, params, placement)


def inferred(mode: str, model: BenchmarkModel, settings: BenchmarkSettings = SETTINGS, **changes) -> dict:
  return running.benchmark_inference(mode, model, dataclasses.replace(REQUEST, **changes), settings)


def printed(found: dict) -> list[str]:
  assert json.loads(json.dumps(report.rounded(found)))
  return report.to_text(found).splitlines()


@pytest.fixture
def torch():
  pytest.importorskip('transformers')
  return pytest.importorskip('torch')


class PeerHere:
  """`PeerProcess` without its process, which takes long to start."""

  def __init__(self, make):
    self._made = make()

  def call(self, method, *arguments):
    return getattr(self._made, method)(*arguments)


@pytest.fixture
def here(monkeypatch):
  monkeypatch.setattr(running, 'PeerProcess', PeerHere)
  # Tests have eight devices, these use one.
  monkeypatch.setattr(jax, 'device_count', lambda: 1)


def test_training_is_what_the_peer_trains(torch, here, model):
  found = running.benchmark_train(model, 'packed', SETTINGS)
  # After one update, so that the update is the same too.
  assert found['peer_second_loss'] == pytest.approx(found['second_loss'], rel=1e-5)
  assert 'block-diagonal attention' in found['peer']
  assert found['tokens_per_second'] == pytest.approx(found['tokens_per_step'] / found['step_seconds']['median'])
  assert found['tokens_per_step'] == 2 * 96
  assert found['images_asked_about_per_step'] == found['images_drawn_per_step'] == 2
  ratio = found['times_the_peer_by_step_seconds']
  assert ratio['low'] <= ratio['median'] <= ratio['high']
  assert found['mfu'] is None
  assert len(printed(found)) > 20


def test_rows_of_one_example_need_no_mask(torch, here, model):
  found = running.benchmark_train(model, 'single', SETTINGS)
  assert found['peer_second_loss'] == pytest.approx(found['second_loss'], rel=1e-5)
  assert 'causal attention' in found['peer']


def test_images_are_those_that_the_peer_generates(torch, here, model):
  found = inferred('generate', model, batches=(1, 2))
  assert found['greedy_agreement'] == 1.0
  assert [row['batch'] for row in found['images']] == [1, 2]
  for row in found['images']:
    seconds = row['seconds_of_codes']['median'] + row['seconds_of_pixels']['median']
    assert row['images_per_second'] == pytest.approx(row['batch'] / seconds)
    assert row['times_the_peer_by_seconds_of_codes']['low'] > 0
    assert row['share_of_roofline'] is None
  assert len(printed(found)) > 20


def test_windows_are_timed_beside_each_other(torch, here, model):
  found = inferred('generate', model, batches=(1, 2), windows=(1, 4, 'auto'))
  assert [(row['batch'], row['window']) for row in found['images']] == [
    (batch, window) for batch in (1, 2) for window in (1, 4, 'auto')
  ]
  for row in found['images']:
    codes = model.config.vq.num_tokens
    if row['window'] == 4:
      assert row['codes_of_a_pass_at_most'] == 4
      assert 1 + (codes - 1) / 4 <= row['passes_per_image'] <= codes
      assert row['codes_per_pass'] >= 1
    else:  # So small a model is drawn one code at a time.
      assert row['codes_of_a_pass_at_most'] == row['codes_per_pass'] == 1
      assert row['passes_per_image'] == codes
    assert row.get('same_images_as_by_first_window', 1.0) == 1.0
    assert row['times_the_peer_by_seconds_of_codes']['low'] > 0
  assert len({line.split()[0] for line in printed(found)}) == len(printed(found))  # No two figures have one name.


def test_prompts_in_words_need_a_tokenizer(model):
  with pytest.raises(InputError, match=r'--prompt: expected with --config.init_from=PATH'):
    inferred('generate', model, ALONE, prompts=('a red circle',))


def test_weights_that_the_peer_does_not_know(model):
  unguided = dataclasses.replace(model, run=replaced(model.run, {'sampling.cfg_weight': 0.0}))
  with pytest.raises(InputError, match=r'sampling\.cfg_weight is 0\.0: expected more than 1'):
    inferred('generate', unguided)


def test_answers_are_those_of_the_peer(torch, here, model):
  found = inferred('understand', model, batches=(2,), answer_tokens=12)
  assert found['greedy_agreement'] == 1.0
  (row,) = found['answers']
  assert row['seconds_to_first_token']['low'] > 0
  assert row['times_the_peer_by_seconds_of_answer']['low'] > 0
  assert row['tokens_per_second'] == pytest.approx(2 * 12 / row['seconds_of_answer']['median'])
  assert len(printed(found)) > 20


@pytest.mark.parametrize(
  ('mode', 'options', 'largest'),
  [
    ('generate', {'weights': 'int8_products'}, 1e-2),
    ('generate', {'cache_dtype': 'int8'}, 3e-4),
    ('understand', {'weights': 'int8'}, 3e-4),
  ],
)
def test_the_cost_of_rounding_is_a_figure(model, mode, options, largest):
  """Measured: 0.0045, 0.0001, 0.00013. Guidance multiplies the cost of generation."""
  found = inferred(mode, model, ALONE, **options)
  print(mode, options, found['rounding'])
  assert 0 < found['rounding']['kl_mean'] < largest
  assert found.items() >= options.items()
  assert any(line.startswith('rounding.kl_mean ') for line in printed(found))


def test_what_is_shared_is_what_the_peer_runs_for_each(torch, here, model):
  found = inferred('understand', model, batches=(4,), rows_per_prefix=2)
  assert found['greedy_agreement'] == 1.0
  assert found['share'] == 2


def test_questions_of_a_benchmark_are_those_of_the_peer_one_by_one(torch, here, model, monkeypatch):
  monkeypatch.setattr(evaluation_speed, 'QUESTIONS', 5)
  found = inferred('evaluate', model, batches=(4,), rows_per_prefix=3)
  assert (found['greedy_agreement'], found['questions'][0]['batch'], found['asked']) == (1.0, 4, 6)
  (row,) = found['questions']
  for side in ('', 'peer_'):
    seconds = row[f'{side}seconds_of_questions']['median']
    assert row[f'{side}questions_per_second'] == pytest.approx(6 / seconds)
  assert row['times_the_peer_by_seconds_of_questions']['low'] > 0
  assert len(printed(found)) > 15


def test_slots_of_a_cache_that_is_shared_are_read_once(model):
  P, guided = CONFIG.num_image_tokens, 5.0
  separate = inference.questions(model, 6, 10)
  assert separate.slots_read(5) == 6 * (1 + P + 10 + 5)
  shared = inference.questions(model, 6, 10, per_image=3)
  assert shared.slots_read(5) == 2 * (1 + P) + 6 * (10 + 5)
  np.testing.assert_array_equal(shared.pixels[[1, 2, 4, 5]], shared.pixels[[0, 0, 3, 3]])
  assert (shared.pixels[0] != shared.pixels[3]).any()
  assert inference.image_prompts(model, 6, 10, guided, per_prompt=3).slots_read(5) == 4 * 10 + 12 * 5


def test_nothing_is_said_of_rounding_where_there_is_none(model):
  assert 'rounding' not in inferred('understand', model, ALONE, dtype='bfloat16', cache_dtype='bfloat16')


def test_what_differs_is_refused():
  running.check_same_loss(5.0001, 5.0, 1e-3)
  for loss in (5.01, float('nan')):
    with pytest.raises(InputError, match=r'of the peer 5\.000000: expected the same work'):
      running.check_same_loss(loss, 5.0, 1e-3)
  ours = np.arange(20).reshape(1, 20)
  late, early = ours.copy(), ours.copy()
  late[0, 15], early[0, 3] = 0, 0
  assert running.check_same_choices(ours, late) == 0.95
  with pytest.raises(InputError, match=r'95\.0% agree; ours begin'):
    running.check_same_choices(ours, early)
  with pytest.raises(InputError, match=r' 0\.0% agree'):
    running.check_same_choices(ours, ours[:, :9])


def test_a_decode_step_reads_weights_and_cache(model):
  decoder = inference.benchmark_decoder(model, 'bfloat16')
  llama, layers = CONFIG.language_model, jax.tree.leaves(decoder.layers)
  heads = {
    'lm_head': llama.width * llama.vocab_size,
    'gen_head': sum(
      leaf.size for name in ('gen_head', 'gen_aligner') for leaf in jax.tree.leaves(model.make_params()[name])
    ),
  }
  for head, parameters in heads.items():
    weights = 2 * (sum(leaf.size for leaf in layers) + parameters)
    assert inference.bytes_per_step(decoder, head, 0) == weights
    cached = 2 * 2 * llama.num_kv_heads * llama.head_dim * llama.depth
    assert inference.bytes_per_step(decoder, head, 400) == weights + 400 * cached
  assert inference.roofline_fraction(3350e9, 2.0, 'NVIDIA H100 80GB HBM3') == 0.5
  assert inference.roofline_fraction(819e9, 4.0, 'TPU v5 lite') == 0.25
  assert inference.roofline_fraction(1e9, 1.0, 'cpu') is None


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (('data', ['peer']), '--peer: expected with --mode=train or generate or understand or evaluate, not data'),
    (('data', ['profile']), '--profile: expected'),
    (('generate', ['scaling']), '--scaling: expected with --mode=train or understand, not generate'),
    (('train', ['weights']), '--weights: expected with --mode=generate or understand, not train'),
    (('understand', ['window']), '--window: expected with --mode=generate, not understand'),
    (('train', ['cache_dtype']), '--cache_dtype: expected with'),
    (('data', ['share']), '--share: expected with'),
    (('train', ['peer', 'scaling']), '--scaling: expected without --peer'),
  ],
)
def test_flags_that_a_mode_does_not_have_are_refused(given, message):
  with pytest.raises(InputError, match=message):
    settings.check_mode_flags(*given)


@pytest.mark.parametrize('texts', [['1', 'x'], ['0'], ['-1'], [], ['1.5']])
def test_batches_are_positive_integers(texts):
  with pytest.raises(InputError, match='expected positive integers'):
    settings.read_batches(texts)


def test_batches_hold_whole_groups():
  assert settings.read_batches(['3', '12'], 3) == (3, 12)
  with pytest.raises(InputError, match='--batch=3,4: expected multiples of --share=3'):
    settings.read_batches(['3', '4'], 3)


def test_a_stage_that_is_not_there_is_refused(model):
  with pytest.raises(InputError, match="stage is 'stage9': expected one of packed, single"):
    running.benchmark_train(model, 'stage9', SETTINGS)


def test_a_batch_that_the_mesh_does_not_divide_is_refused(model):
  placement = Placement.of(make_mesh({'data': 4}, jax.devices()[:4]), parameter_shapes(CONFIG))
  with pytest.raises(InputError, match=r'stages.packed.batch_size is 2: expected a multiple of 4'):
    running.benchmark_train(dataclasses.replace(model, placement=placement), 'packed', SETTINGS)


def test_the_stage_that_is_measured_decides_alone_what_its_backward_pass_is_handed(model, monkeypatch):
  config = replaced(model.run, {'compute.remat': 'auto', 'stages.single.batch_size': 10**6})
  both = dataclasses.replace(model, run=config)
  monkeypatch.setattr(rematerialisation, 'usable_bytes', lambda device: 10**9)
  assert make_work(both, both.run.find_stage('packed'), True).step.compute.remat == 'dots'
  assert read_step(config, CONFIG, model.placement).compute.remat == 'full'


def test_sizes_change_what_is_measured(model):
  longer = resized(model, 192, CONFIG.language_model.depth)
  assert make_work(longer, longer.run.find_stage(None), True).counts.tokens == 2 * 192
  assert longer.make_params is model.make_params
  deeper = resized(model, 96, 3)
  kernels = deeper.make_params()['language_model']['layers']['attn']['q']['kernel']
  assert len(kernels) == 3
  assert model.run.sequence_length == 96


@pytest.mark.parametrize(('samples', 'supervised'), [('images', 0.0), ('answers', 1.0)])
def test_an_update_from_samples_is_measured(model, samples, supervised):
  """Beside a batch of data or alone, and with the copy of the model that it is compared with."""
  preference = {'num_prompts': 2, 'group': 3, 'beta': 0.1, 'supervised': supervised, 'samples': samples}
  changes = {'objective': 'grpo', **{f'preference.{name}': value for name, value in preference.items()}}
  config = replaced(model.run, {f'stages.packed.{name}': value for name, value in changes.items()})
  found = running.benchmark_train(dataclasses.replace(model, run=config), 'packed', ALONE)
  data = running.benchmark_train(model, 'packed', ALONE) if supervised else {}
  length = row_length(round(config.find_stage('packed').expected_tokens[0 if samples == 'answers' else 2]))
  assert found['rows'] == 6 + data.get('rows', 0)
  assert found['tokens_per_step'] == 6 * length + data.get('tokens_per_step', 0)
  drawn, asked = (6, 0) if samples == 'images' else (0, 6)
  assert found['images_drawn_per_step'] == drawn + data.get('images_drawn_per_step', 0)
  assert found['images_asked_about_per_step'] == asked + data.get('images_asked_about_per_step', 0)
  with pytest.raises(InputError, match="--peer learns from data alone: expected the objective 'sft', not 'grpo'"):
    running.benchmark_train(dataclasses.replace(model, run=config), 'packed', SETTINGS)
