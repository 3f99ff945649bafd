"""Cost against size: the fit, the sizes, and that each size is measured at its own."""

import jax
import pytest
from training.batches import CONFIG, params

from janus_jax.benchmarking import report, scaling
from janus_jax.benchmarking.benchmark_model import BenchmarkModel
from janus_jax.benchmarking.scaling import Cost, fit_power_law, sizes_around
from janus_jax.benchmarking.timing import Timing
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.errors import InputError
from janus_jax.runs.config import TrainConfig, default_config, parse_config, set_stages
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training.state import Placement


@pytest.mark.parametrize('exponent', [0.0, 1.0, 2.0, 1.37])
def test_the_exponent_of_a_power_law_is_found(exponent):
  sizes = [3, 10, 50, 400]
  found = fit_power_law(sizes, [0.02 * size**exponent for size in sizes])
  assert found.exponent == pytest.approx(exponent, abs=1e-9)
  assert found.factor == pytest.approx(0.02)
  assert found.at(7) == pytest.approx(0.02 * 7**exponent)


def test_sizes_are_multiples_and_different():
  assert sizes_around(640) == [160, 320, 640, 1280]
  assert sizes_around(4, multiple=2) == [2, 4, 8]
  assert sizes_around(1) == [1, 2]


def test_a_size_that_does_not_fit_ends_the_axis():
  def seconds_of(size: int) -> Timing:
    if size > 2:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')
    return Timing((float(size),))

  cost = scaling._cost('batch', 'step', [1, 2, 4], seconds_of)
  assert list(cost.seconds) == [1, 2]
  assert cost.to_dict()['exponent'] == pytest.approx(1.0)
  with pytest.raises(InputError, match='--scaling: batch 2 to 8: expected two sizes that fit'):
    scaling._cost('batch', 'step', [2, 4, 8], seconds_of)


def test_decoding_is_measured_at_every_batch_and_position(monkeypatch):
  asked = []

  def answer(decoder, prompts, count):
    rows, words = prompts.tokens.shape
    asked.append((rows, words))
    return prompts.tokens, 0.5 * words * (count - 1)

  monkeypatch.setattr(scaling.inference, 'answer_tokens', answer)
  model = BenchmarkModel(TrainConfig(sequence_length=32), CONFIG, None, None)
  batch, position = scaling.decode_costs(model, None, count=5, repeats=1)
  assert asked[::2] == [(1, 8), (2, 8), (4, 8), (8, 8), (1, 8), (1, 16), (1, 32), (1, 64)]
  assert asked[1::2] == asked[::2]  # Once to compile.
  assert [timing.median for timing in position.seconds.values()] == [4.0, 8.0, 16.0, 32.0]
  assert (batch.fit.exponent, position.fit.exponent) == (pytest.approx(0.0, abs=1e-9), pytest.approx(1.0))


def test_results_table_and_charts_are_written(tmp_path):
  seconds = {size: Timing((0.9 * size, 1.0 * size, 1.3 * size)) for size in (160, 320, 640)}
  cost = Cost('length', 'seconds of a step against length', seconds)
  found = {'mode': 'train', 'mfu': None, 'scaling': {'length': report.rounded(cost.to_dict())}}
  report.write_results(str(tmp_path), found, [cost])
  assert {path.name for path in tmp_path.iterdir()} == {'results.json', 'table.md', 'length.png'}
  assert '| scaling.length.points.length=320.seconds | 320  (288 to 416) |' in (tmp_path / 'table.md').read_text()
  assert 'mfu                                       not known' in report.to_text(found)
  figure = report.cost_chart(cost)
  assert figure.get_suptitle() == 'seconds of a step against length: exponent 1.00'
  (axes,) = figure.axes
  assert (axes.get_xlabel(), axes.get_ylabel()) == ('length', 'seconds')
  assert axes.get_xscale() == axes.get_yscale() == 'log'
  median, fit = axes.lines
  assert median.get_xydata().tolist() == [[160, 160], [320, 320], [640, 640]]
  assert fit.get_ydata() == pytest.approx([160, 320, 640])


def test_one_size_grows_at_a_time(monkeypatch):
  measured = []

  class Recorder:
    def __init__(self, work):
      measured.append((*work.batch['tokens'].shape, work.model.config.language_model.depth))
      assert work.batch['segments'].max() == 1

    def run(self, steps):
      pass

  monkeypatch.setattr(scaling, 'Trainer', Recorder)
  config = default_config()
  config.sequence_length = 32
  fields = {'steps': 1, 'batch_size': 2, 'learning_rate': 1e-3, 'ratio': (5, 1, 4), 'trainable': ('language_model',)}
  sources = {'understanding': {'shapes': 1}, 'text': {'captions': 1}, 'generation': {'shapes': 1}}
  set_stages(config, {'stage': {**fields, 'sources': sources}})
  config.run = ('stage',)
  placement = Placement.of(make_mesh({}, jax.devices()[:1]), parameter_shapes(CONFIG))
  model = BenchmarkModel(parse_config(config), CONFIG, params, placement)
  costs = scaling.train_costs(model, model.run.find_stage(None), steps=2, repeats=1)
  assert [cost.axis for cost in costs] == ['length', 'batch', 'depth']
  lengths, batches, depths = [8, 16, 32, 64], [1, 2, 4], [1, 2]
  expected = [(2, n, 1) for n in lengths] + [(n, 32, 1) for n in batches] + [(2, 32, n) for n in depths]
  assert measured == expected
