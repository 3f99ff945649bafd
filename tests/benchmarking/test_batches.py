"""Synthetic batches are what packing makes of records: the same conventions, and full rows."""

import types

import jax
import numpy as np
import pytest
from training.batches import CONFIG, params

from janus_jax.benchmarking.batches import synthetic_batch
from janus_jax.data.examples import CODE, GENERATION_LOSS, IMAGE, TEXT, TEXT_LOSS, UNDERSTANDING_LOSS
from janus_jax.data.packing import BatchShape
from janus_jax.models.config import ComputeConfig
from janus_jax.planning import abstract_batch
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training.losses import batch_losses
from janus_jax.training.window import Window

P, G = CONFIG.num_image_tokens, CONFIG.vq.num_tokens
SHAPE = BatchShape(rows=3, length=4 * (P + 48) + 2 * (G + 15), images=3, drawings=2)


@pytest.fixture(params=[True, False], ids=['codes', 'pixels'])
def batch(request):
  return synthetic_batch(CONFIG, SHAPE, (5, 1, 4), request.param, seed=0)


def test_rows_are_full_and_segments_restart(batch):
  assert batch['segments'].min() == 1
  for segments, positions in zip(batch['segments'], batch['positions']):
    starts = np.flatnonzero(np.diff(segments, prepend=0))
    assert len(starts) == 3 + 2 + 1  # Questions, drawings, and the text that fills up.
    np.testing.assert_array_equal(
      positions, np.arange(len(segments)) - np.repeat(starts, np.diff([*starts, len(segments)]))
    )


def test_what_is_predicted_is_what_comes_next_in_the_same_example(batch):
  kinds, losses, weights = batch['kinds'], batch['losses'], batch['weights']
  np.testing.assert_array_equal(weights, losses > 0)
  drawn = losses == GENERATION_LOSS
  assert drawn.sum() == SHAPE.rows * 2 * G
  said = (losses == UNDERSTANDING_LOSS) | (losses == TEXT_LOSS)
  rows, places = np.nonzero(said)
  np.testing.assert_array_equal(batch['targets'][rows, places], batch['tokens'][rows, places + 1])
  np.testing.assert_array_equal(batch['segments'][rows, places], batch['segments'][rows, places + 1])
  assert (kinds[rows, places] == TEXT).all()
  assert (kinds[rows, places + 1] == TEXT).all()
  assert (losses == UNDERSTANDING_LOSS).sum() == SHAPE.rows * 3 * 16
  # A code is fed where the one before it predicts it; the last one is not fed.
  rows, places = np.nonzero(kinds == CODE)
  assert len(rows) == SHAPE.rows * 2 * (G - 1)
  np.testing.assert_array_equal(batch['tokens'][rows, places], batch['targets'][rows, places - 1])


def test_images_fill_their_places(batch):
  assert ((batch['kinds'] == IMAGE).sum(1) == 3 * P).all()
  assert (batch['tokens'][batch['kinds'] == IMAGE] == CONFIG.image_token_id).all()
  assert not (batch['tokens'][batch['kinds'] == TEXT] == CONFIG.image_token_id).any()
  assert batch['pixels'].any((2, 3, 4)).all()
  if 'generation_pixels' in batch:
    assert batch['generation_pixels'].any((2, 3, 4)).all()
    codes = batch['targets'][0][batch['losses'][0] == GENERATION_LOSS]
    np.testing.assert_array_equal(codes, np.arange(2 * G))  # Places among the codes of the row.


def test_what_is_left_and_short_goes_to_the_last_example():
  shape = BatchShape(rows=1, length=G + 15 + 20, images=0, drawings=1)
  batch = synthetic_batch(CONFIG, shape, (0, 0, 1), True, seed=0)
  assert batch['segments'].tolist() == [[1] * shape.length]
  assert (batch['losses'] == GENERATION_LOSS).sum() == G


def test_kinds_without_a_share_are_not_there():
  batch = synthetic_batch(CONFIG, SHAPE, (0, 1, 0), True, seed=0)
  assert set(np.unique(batch['losses'])) <= {0, TEXT_LOSS}


def test_where_one_of_both_fits_rows_take_turns():
  shape = BatchShape(rows=4, length=max(P + 48, G + 15), images=1, drawings=1)
  batch = synthetic_batch(CONFIG, shape, (5, 1, 4), True, seed=0)
  asked, drawn = ((batch['losses'] == loss).any(1).tolist() for loss in (UNDERSTANDING_LOSS, GENERATION_LOSS))
  assert asked == [True, False, True, False]
  assert drawn == [False, True, False, True]


def test_losses_and_counts_are_those_of_training(batch):
  window = Window(CONFIG, SHAPE.length, ('language_model',))
  window.add(batch, 0.0)
  counts = window.counts
  assert counts.tokens == SHAPE.rows * SHAPE.length
  assert counts.generation == SHAPE.rows * 2 * (G - 1)
  assert counts.understanding == SHAPE.rows * 3 * P
  assert counts.text_targets == (batch['losses'] == UNDERSTANDING_LOSS).sum() + (batch['losses'] == TEXT_LOSS).sum()
  _, losses = batch_losses(params(), batch, np.ones(3, np.float32), CONFIG, ComputeConfig(), chunk=SHAPE.length)
  by_kind = [(batch['losses'] == loss).sum() for loss in (UNDERSTANDING_LOSS, TEXT_LOSS, GENERATION_LOSS)]
  np.testing.assert_array_equal(losses.weights, by_kind)
  # Of random targets; NaN where an image had no place or a code no meaning.
  assert all(2 < total / count < 20 for total, count in zip(losses.sums, by_kind))


def test_arrays_are_those_that_plan_compiles_for(batch):
  setup = types.SimpleNamespace(
    start=types.SimpleNamespace(model=CONFIG),
    run=types.SimpleNamespace(sequence_length=SHAPE.length),
    mesh=make_mesh({}, jax.devices()[:1]),
    holds_codes='generation_pixels' not in batch,
  )
  stage = types.SimpleNamespace(batch_size=SHAPE.rows, images_per_row=SHAPE.images, drawings_per_row=SHAPE.drawings)
  expected = {name: (leaf.shape, leaf.dtype) for name, leaf in abstract_batch(setup, stage).items()}
  assert {name: (array.shape, array.dtype) for name, array in batch.items()} == expected
