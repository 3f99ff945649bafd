"""Batches of image pairs, and what a refiner is measured with."""

import numpy as np
import pytest

from janus_jax.data.skipping import SkipLimit
from janus_jax.errors import InputError, RecordError
from janus_jax.models.config import SiglipConfig
from janus_jax.runs.refining import PairBatches, crops, measured_table


class Images:
  """Ten numbered pairs, some of which are damaged."""

  def __init__(self, damaged: set[int]):
    self._damaged = damaged

  def __len__(self) -> int:
    return 10

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if index in self._damaged:
      raise RecordError('image damaged', f'{index}: damaged')
    return {'small': np.full((2, 2, 3), index, np.uint8), 'large': np.full((4, 4, 3), index, np.uint8), 'where': 'x'}


def numbers(batch: dict[str, np.ndarray]) -> list[int]:
  return batch['small'][:, 0, 0, 0].tolist()


def test_a_batch_depends_on_its_step_alone_and_is_always_full():
  batches = PairBatches(Images({3, 4}), 8, 0, SkipLimit(fraction=1))
  first, second = batches(0), batches(1)
  assert set(first) == {'small', 'large'}
  assert first['large'].shape == (8, 4, 4, 3)
  assert numbers(first) == first['large'][:, 0, 0, 0].tolist()
  assert not {3, 4} & {*numbers(first), *numbers(second)}
  assert numbers(first) != numbers(second)
  assert numbers(PairBatches(Images({3, 4}), 8, 0, SkipLimit(fraction=1))(1)) == numbers(second)
  assert numbers(PairBatches(Images({3, 4}), 8, 1, SkipLimit(fraction=1))(1)) != numbers(second)


def test_too_many_bad_records_stop_the_training():
  with pytest.raises(InputError, match=r'records are bad \(image damaged \d+\): expected at most 10'):
    PairBatches(Images(set(range(8))), 8, 0, SkipLimit(fraction=0.1, after=20))(0)


def test_crops_lie_side_by_side_in_the_middle():
  config = SiglipConfig(image_size=2, patch_size=1)
  image = np.arange(5 * 5, dtype=np.uint8).reshape(1, 5, 5, 1).repeat(3, axis=-1)
  found = crops(image, config)[..., 0]
  np.testing.assert_array_equal(found, [[[0, 1], [5, 6]], [[2, 3], [7, 8]], [[10, 11], [15, 16]], [[12, 13], [17, 18]]])
  assert crops(np.zeros((3, 1, 1, 3), np.uint8), config).shape == (3, 2, 2, 3)


def test_the_table_has_every_figure():
  found = {'psnr': 20.125, 'gradient_energy': 0.5, 'frechet_distance': 3.25}
  metrics = {name: {'bicubic': value, 'refined': 2 * value} for name, value in found.items()}
  lines = measured_table({'images': 7, 'size': 48, **metrics}).splitlines()
  assert lines[0].startswith('7 held-out images of 48 pixels')
  assert [line.split() for line in lines[2:]] == [
    ['bicubic', '20.12', '0.500', '3.2500'],
    ['refined', '40.25', '1.000', '6.5000'],
  ]
