"""Plans of batches: every request once, few shapes, prompts shared where that is cheaper."""

import collections

import numpy as np
import pytest

from janus_jax.inference.batching import STEP_TOKENS, Group, RequestBatch, bucket_length, plan_batches


def singles(lengths: list[int]) -> list[Group]:
  return [Group((index,), shared=length) for index, length in enumerate(lengths)]


def grouped(sizes: list[int], **shape: int) -> list[Group]:
  """Groups of `sizes` requests, dealt out in turn as they come in a request."""
  left, members = list(sizes), [[] for _ in sizes]
  index = 0
  while any(left):
    for group, count in enumerate(left):
      if count:
        members[group].append(index)
        left[group] -= 1
        index += 1
  return [Group(tuple(found), **shape) for found in members]


def shape(group: Group) -> tuple[int, int, int]:
  return group.shared, group.rest, group.images


def cost(batches: list[RequestBatch], groups: list[Group], output: int) -> int:
  """Tokens that are run, and steps at what they cost."""
  of = {index: group for group in groups for index in group.members}
  total = 0
  for batch in batches:
    group, rows = of[batch.rows[0]], len(batch.rows)
    total += rows // batch.rows_per_prompt * group.shared + rows * (group.rest + output) + STEP_TOKENS * output
  return total


@pytest.mark.parametrize('seed', range(40))
def test_batches_hold_every_request_once_in_few_shapes(seed):
  random = np.random.default_rng(seed)
  sizes = random.integers(1, random.integers(2, 20), size=random.integers(0, 30)).tolist()
  shapes = [{'shared': 640, 'rest': 32, 'images': 1}, {'shared': 640, 'rest': 32, 'images': 2}, {'shared': 640}]
  groups = [Group(group.members, **shapes[random.integers(0, 3)]) for group in grouped(sizes, shared=0)]
  batch_size, output = int(random.integers(1, 13)), int(random.choice([1, 32, 576]))
  batches = plan_batches(groups, batch_size, output)
  assert sorted(i for batch in batches for i in batch.row_of) == list(range(sum(sizes)))
  of = {index: group for group in groups for index in group.members}
  found = collections.defaultdict(set)
  for batch in batches:
    (kind,) = {shape(of[index]) for index in batch.rows}
    found[kind].add((len(batch.rows), batch.rows_per_prompt))
    assert 1 <= len(batch.rows) <= batch_size
    assert len(batch.rows) % batch.rows_per_prompt == 0
    for start in range(0, len(batch.rows), batch.rows_per_prompt):
      assert len({id(of[index]) for index in batch.rows[start : start + batch.rows_per_prompt]}) == 1
    assert all(batch.rows[row] == index for index, row in batch.row_of.items())
  assert all(len(sizes) == 1 for sizes in found.values())
  alone = [Group((index,), *shape(group)) for group in groups for index in group.members]
  assert cost(batches, groups, output) <= cost(plan_batches(alone, batch_size, output), groups, output)


def test_requests_that_share_nothing_fill_as_few_and_small_batches_as_it_takes():
  batches = plan_batches(singles([32] * 10 + [64] * 3), batch_size=8, output=32)
  assert [(len(batch.row_of), len(batch.rows), batch.rows_per_prompt) for batch in batches] == [
    (5, 5, 1),
    (5, 5, 1),
    (3, 3, 1),
  ]


@pytest.mark.parametrize(
  ('sizes', 'batch_size', 'expected'),
  [
    ([8], 8, [(1, 8)]),
    ([4, 4, 4], 8, [(2, 4), (2, 4)]),  # The second batch holds the third group twice.
    ([10], 8, [(1, 5), (1, 5)]),
    ([4, 4], 1, [(1, 1)] * 8),
    ([3, 4, 4], 12, [(3, 4)]),  # A row is wasted, nine runs of an image are not.
  ],
)
def test_groups_of_questions(sizes, batch_size, expected):
  batches = plan_batches(grouped(sizes, shared=640, rest=32, images=1), batch_size, output=32)
  assert [(len(batch.rows) // batch.rows_per_prompt, batch.rows_per_prompt) for batch in batches] == expected


@pytest.mark.parametrize(
  ('sizes', 'expected'),
  [
    ([4, 4], [(2, 4)]),
    ([4, 1], [(5, 1)]),  # A wasted image costs more than a prompt run again.
    ([4, 2], [(3, 2)]),
    ([4, 4, 2], [(5, 2)]),  # Nor is it worth a second batch to run a prompt less.
  ],
)
def test_groups_of_images(sizes, expected):
  batches = plan_batches(grouped(sizes, shared=32), batch_size=10, output=576)
  assert [(len(batch.rows) // batch.rows_per_prompt, batch.rows_per_prompt) for batch in batches] == expected


def test_rows_repeat_the_last_request_and_the_last_part():
  groups = [Group(members, 640, 32) for members in ((7, 4, 9, 2), (1, 0, 8, 10), (3, 6, 5))]
  batches = plan_batches(groups, batch_size=8, output=32)
  assert [batch.rows for batch in batches] == [(7, 4, 9, 2, 1, 0, 8, 10), (3, 6, 5, 5, 3, 6, 5, 5)]
  assert batches[1].row_of == {3: 0, 6: 1, 5: 2}


def test_buckets_are_few_and_long_enough():
  lengths = range(1, 200)
  assert all(bucket_length(length) >= length for length in lengths)
  assert len({bucket_length(length) for length in lengths}) <= 200 // 32 + 1
