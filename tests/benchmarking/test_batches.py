"""Synthetic batches are what packing makes of records: the same conventions, and full rows."""

import types

import jax
import numpy as np
import pytest
from training.batches import CONFIG, params

from janus_jax.benchmarking.batches import synthetic_batch
from janus_jax.data.examples import CODE, GENERATION_LOSS, IMAGE, TEXT, TEXT_LOSS, UNDERSTANDING_LOSS
from janus_jax.data.packing import WAITING, BatchShape, batch_shape
from janus_jax.planning.compile import abstract_batch
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training.losses import batch_losses
from janus_jax.training.metric_window import Window
from janus_jax.training.run_config import expected_mean
from janus_jax.training.step_config import StepConfig

P, G = CONFIG.num_image_tokens, CONFIG.vq.num_tokens
QUESTION, TEXT_LENGTH, GENERATION = P + 48, 40, G - 1 + 16
LENGTH = 4 * QUESTION
RATIO = (5, 1, 4)


def stage_of(ratio=RATIO, lengths=(QUESTION, TEXT_LENGTH, GENERATION)) -> types.SimpleNamespace:
  return types.SimpleNamespace(ratio=ratio, expected_tokens=lengths)


def shape_of(stage, rows=4, length=LENGTH, holds_codes=False) -> BatchShape:
  return batch_shape(rows, length, expected_mean(stage, length, holds_codes))


@pytest.fixture(params=[True, False], ids=['codes', 'pixels'])
def batch(request):
  return synthetic_batch(CONFIG, stage_of(), shape_of(stage_of(), holds_codes=request.param), 2, request.param, seed=0)


def test_rows_are_full_and_segments_restart(batch):
  assert batch['segments'].shape == (8, LENGTH)
  assert batch['segments'].min() == 1
  for segments, positions in zip(batch['segments'], batch['positions']):
    starts = np.flatnonzero(np.diff(segments, prepend=0))
    np.testing.assert_array_equal(
      positions, np.arange(len(segments)) - np.repeat(starts, np.diff([*starts, len(segments)]))
    )


@pytest.mark.parametrize('ratio', [(5, 1, 4), (1, 0, 3), (7, 3, 10)])
def test_tasks_come_in_the_ratio_of_the_stage(ratio):
  stage = stage_of(ratio)
  batch = synthetic_batch(CONFIG, stage, shape_of(stage, rows=40), 1, False, seed=0)
  counts = np.array(
    [
      (batch['token_types'] == IMAGE).sum() / P,
      sum(len(np.unique(row[losses == TEXT_LOSS])) for row, losses in zip(batch['segments'], batch['loss_ids'])),
      (batch['loss_ids'] == GENERATION_LOSS).sum() / G,
    ]
  )
  # But for the few that wait when the batch is full.
  np.testing.assert_allclose(counts / counts.sum(), np.array(ratio) / sum(ratio), atol=WAITING / counts.sum() / 2)


def test_what_is_predicted_is_what_comes_next_in_the_same_example(batch):
  token_types, losses, weights = batch['token_types'], batch['loss_ids'], batch['weights']
  np.testing.assert_array_equal(weights, losses > 0)
  words = (losses == UNDERSTANDING_LOSS) | (losses == TEXT_LOSS)
  rows, positions = np.nonzero(words)
  np.testing.assert_array_equal(batch['targets'][rows, positions], batch['tokens'][rows, positions + 1])
  np.testing.assert_array_equal(batch['segments'][rows, positions], batch['segments'][rows, positions + 1])
  assert (token_types[rows, positions] == TEXT).all()
  assert (token_types[rows, positions + 1] == TEXT).all()
  assert (losses == UNDERSTANDING_LOSS).sum() >= 16 * (token_types == IMAGE).sum() / P
  # A code is fed where the one before it predicts it; the last one is not fed.
  rows, positions = np.nonzero(token_types == CODE)
  assert len(rows) * G == (losses == GENERATION_LOSS).sum() * (G - 1)
  np.testing.assert_array_equal(batch['tokens'][rows, positions], batch['targets'][rows, positions - 1])


def test_images_lie_in_the_slots_of_their_stream(batch):
  assert (batch['tokens'][batch['token_types'] == IMAGE] == CONFIG.image_token_id).all()
  assert not (batch['tokens'][batch['token_types'] == TEXT] == CONFIG.image_token_id).any()
  for pixels, token_types in zip(batch['pixels'], np.split(batch['token_types'], 2)):
    filled = pixels.any((1, 2, 3))
    assert filled.sum() == (token_types == IMAGE).sum() // P
    assert filled[: filled.sum()].all()
    assert filled.mean() > 0.75
  if 'generation_pixels' in batch:
    for pixels, targets, losses in zip(
      batch['generation_pixels'], np.split(batch['targets'], 2), np.split(batch['loss_ids'], 2)
    ):
      codes = targets[losses == GENERATION_LOSS]
      np.testing.assert_array_equal(codes, np.arange(len(codes)))  # Indices among the codes of the stream.
      assert pixels.any((1, 2, 3)).sum() == len(codes) // G


def test_an_example_that_is_expected_to_be_longer_fills_a_row():
  stage = stage_of((0, 1, 1), (0, 10 * LENGTH, 10 * LENGTH))
  batch = synthetic_batch(CONFIG, stage, shape_of(stage), 1, True, seed=0)
  assert (batch['segments'] == 1).all()
  assert {TEXT_LOSS, GENERATION_LOSS} < set(np.unique(batch['loss_ids']))


def test_losses_and_counts_are_those_of_training(batch):
  window = Window(CONFIG, LENGTH, ('language_model',))
  window.add(batch, 0.0)
  counts = window.counts
  assert counts.tokens == batch['segments'].size
  assert counts.text_targets == (batch['loss_ids'] == UNDERSTANDING_LOSS).sum() + (batch['loss_ids'] == TEXT_LOSS).sum()
  _, losses = batch_losses(params(), batch, np.ones(3, np.float32), StepConfig(CONFIG, loss_chunk=LENGTH))
  by_task = [(batch['loss_ids'] == loss).sum() for loss in (UNDERSTANDING_LOSS, TEXT_LOSS, GENERATION_LOSS)]
  np.testing.assert_array_equal(losses.weights, by_task)
  # Targets are random; NaN where an image had no slot or a code no meaning.
  assert all(2 < total / count < 20 for total, count in zip(losses.sums, by_task))


def test_arrays_are_those_that_plan_compiles_for(batch):
  setup = types.SimpleNamespace(
    start=types.SimpleNamespace(model=CONFIG),
    mesh=make_mesh({}, jax.devices()[:1]),
    holds_codes='generation_pixels' not in batch,
  )
  shape = shape_of(stage_of(), holds_codes=setup.holds_codes)
  expected = {name: (leaf.shape, leaf.dtype) for name, leaf in abstract_batch(setup, shape, 2).items()}
  assert {name: (array.shape, array.dtype) for name, array in batch.items()} == expected
