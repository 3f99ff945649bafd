"""Which records are held out, and which are left to train on."""

import itertools

import grain
import numpy as np
import pytest

from janus_jax.data.sources import held_out
from janus_jax.data.sources.blocks import BlockDataset

HELD = [410, 821, 366, 503, 254, 566, 986, 203]


def indices(count: int) -> grain.MapDataset:
  return grain.MapDataset.source(range(count))


def read(records: grain.MapDataset) -> list[int]:
  return [records[index] for index in range(len(records))]


@pytest.mark.parametrize('sizes', [None, (3, 0, 40, 1, 56), (10,) * 10, (1,) * 100])
@pytest.mark.parametrize('count', [0, 1, 37, 99])
def test_every_record_is_trained_on_or_held_out(sizes, count):
  train, held = held_out.split(indices(100), count, sizes)
  assert (len(train), len(held)) == (100 - count, count)
  assert read(train) == sorted(set(range(100)) - set(read(held)))
  if sizes is not None:
    for part in (train, held):
      assert isinstance(part, BlockDataset)
      view = part.shuffle(seed=1)
      assert sorted(view[index] for index in range(len(part))) == sorted(read(part))


def test_they_are_the_same_for_ever():
  """A resumed run, another host and another version of numpy hold out the same: these were written down."""
  _, held = held_out.split(indices(1000), 8)
  assert read(held) == HELD
  assert read(held_out.split(indices(10**7), 8)[1])[:1] != HELD[:1]


def test_they_are_spread_over_the_source(monkeypatch):
  monkeypatch.setattr(held_out, 'CHUNK', 777)
  for sizes in (None, (100,) * 100):
    counts = np.bincount(np.array(read(held_out.split(indices(10_000), 500, sizes)[1])) // 2500, minlength=4)
    assert counts.min() >= 60, counts  # 125 each on average.


def test_a_larger_source_holds_out_much_of_what_it_did():
  first, second = (set(read(held_out.split(indices(count), 100)[1])) for count in (1000, 1100))
  assert len(first & second) > 80


def test_few_blocks_are_touched_and_each_is_read_in_one_go():
  _, held = held_out.split(indices(10_000), 200, (50,) * 200)
  blocks = [record // 50 for record in read(held)]
  assert len(set(blocks)) <= held_out.BLOCKS
  assert blocks == sorted(blocks)
  view = held.shuffle(seed=0)
  order = [view[index] // 50 for index in range(len(held))]
  assert sum(a != b for a, b in itertools.pairwise(order)) == len(set(blocks)) - 1
  assert len(held_out.split(indices(10_000), 5000, (50,) * 200)[1]) == 5000


def test_epochs_are_counted_on_to_the_records():
  """What is sampled for a record changes with each epoch, in training and of what is held out."""
  records = indices(50).seed(3).random_map(lambda record, rng: (record, float(rng.random())))
  for part in held_out.split(records, 20):
    first, second = ([part[epoch * len(part) + index] for index in range(len(part))] for epoch in (0, 1))
    assert [record for record, _ in first] == [record for record, _ in second]
    assert not {value for _, value in first} & {value for _, value in second}
