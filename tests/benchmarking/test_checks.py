"""A device that is right passes every check; kernels, steps and choices that are wrong do not."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from training.batches import CONFIG, params

from janus_jax.benchmarking import checks
from janus_jax.benchmarking.benchmark_model import BenchmarkModel
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.models import attention
from janus_jax.runs.config import default_config, parse_config, set_stages
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training.state import Placement


@pytest.fixture(scope='module')
def model() -> BenchmarkModel:
  config = default_config()
  config.sequence_length, config.loss_chunk = 48, 48
  config.compute.dtype, config.compute.remat = 'float32', 'none'
  fields = {'steps': 1, 'batch_size': 2, 'learning_rate': 1e-2, 'ratio': (1, 1, 1), 'trainable': ('language_model',)}
  sources = {'understanding': {'shapes': 1}, 'text': {'captions': 1}, 'generation': {'shapes': 1}}
  set_stages(config, {'stage': {**fields, 'sources': sources, 'expected_tokens': (48, 8, 16)}})
  config.run = ('stage',)
  placement = Placement.of(make_mesh({}, jax.devices()[:1]), parameter_shapes(CONFIG))
  return BenchmarkModel(parse_config(config), CONFIG, params, placement)


def wrong(model: BenchmarkModel) -> list[str]:
  return [check.what for check in checks.check_device(model) if not check.ok]


def test_a_kernel_that_attends_beyond_its_segment_is_found(monkeypatch):
  exact = attention.chunked_attention

  def leaky(operands, **options):
    return exact(operands._replace(query_segments=None, key_segments=None), **options)

  packed = dataclasses.replace(checks.PACKED, length=96, head_dim=16)
  assert all(check.ok for check in checks._attention('chunked', packed))
  monkeypatch.setattr(attention, 'chunked_attention', leaky)
  assert not any(check.ok for check in checks._attention('chunked', packed))


def test_steps_and_choices_of_other_parameters_are_found(monkeypatch, model):
  monkeypatch.setattr(checks, 'IMPLEMENTATIONS', ('xla',))
  assert wrong(model) == []
  other = jax.tree.map(lambda leaf: leaf + np.float32(0.05), params())
  exact, calls = checks._on, itertools.count()

  def with_others(model, params, device):
    return exact(model, other if next(calls) % 2 else params, device)

  monkeypatch.setattr(checks, '_on', with_others)
  assert {'loss of train step 1', 'loss of train step 2'} < set(wrong(model))


def test_a_check_that_raises_has_failed_and_the_others_are_made(monkeypatch, model):
  def broken(*_, **options):
    raise ValueError('no kernel\nfor this card')

  monkeypatch.setattr(checks, 'attention', broken)
  monkeypatch.setattr(checks, '_steps', broken)
  found = [check for check in checks.check_device(model) if not check.ok]
  assert [(check.what, check.difference, check.error) for check in found] == [
    ('attention chunked, packed rows', None, 'ValueError: no kernel for this card'),
    ('attention chunked, images', None, 'ValueError: no kernel for this card'),
    ('losses of two train steps', None, 'ValueError: no kernel for this card'),
  ]
