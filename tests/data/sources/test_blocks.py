import collections
import pickle

import grain

from janus_jax.data.sources.blocks import BlockDataset

SIZES = (5, 1, 7, 4)


def blocks() -> BlockDataset:
  return BlockDataset(grain.MapDataset.source([(b, i) for b, size in enumerate(SIZES) for i in range(size)]), SIZES)


def test_every_epoch_reads_each_record_once_and_each_block_in_one_go():
  view, orders = blocks().shuffle(seed=3).repeat(), []
  for epoch in range(5):
    read = [view[epoch * 17 + position] for position in range(17)]
    assert collections.Counter(read) == collections.Counter((b, i) for b, n in enumerate(SIZES) for i in range(n))
    runs = [block for position, (block, _) in enumerate(read) if not position or read[position - 1][0] != block]
    assert sorted(runs) == [0, 1, 2, 3]
    orders.append(read)
  assert len({tuple(block for block, _ in order) for order in orders}) > 2
  assert len({tuple(i for block, i in order if block == 2) for order in orders}) > 2


def test_the_order_depends_on_the_seed_alone():
  views = [blocks().shuffle(seed=seed).repeat() for seed in (1, 1, 2)]
  views.append(pickle.loads(pickle.dumps(views[0])))
  first, again, other, copy = ([view[position] for position in range(34)] for view in views)
  assert first == again == copy != other
