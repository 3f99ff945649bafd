"""Faults of encoding a dataset: when bad records stop it, which of them are logged, and hosts that disagree."""

import dataclasses

import jax
import pytest

from janus_jax.data.sources import manifest
from janus_jax.data.sources.array_record import ShardWriter, encode_example
from janus_jax.data.sources.manifest import CodeSettings, ShardCounts
from janus_jax.errors import InputError, RecordError
from janus_jax.runs import tokenizing


def test_when_bad_records_are_too_many():
  def counted(pattern: str) -> str | None:
    bad = tokenizing.BadRecords(tokenizing.SkipLimit())
    try:
      for letter in pattern:
        bad.add_good() if letter == '.' else bad.add_bad(RecordError('image', 'this one'))
    except InputError as error:
      return str(error)

  assert counted('..x....xxx' * 99) is None
  assert counted('.' * 900 + 'x' * 99) is None
  too_many = '100 of 1001 records are bad (image 100): expected at most 1.0% (--max_bad_fraction)'
  assert counted('.' * 900 + 'x' * 99 + '.' + 'x') == too_many
  assert counted('.' * 990 + 'x' * 10 + '.') is None
  in_a_row = (
    '100 bad records in a row: expected fewer than 100; 100 of 200 records are bad (image 100). The last: this one'
  )
  assert counted('.' * 100 + 'x' * 100) == in_a_row
  assert counted('.' * 20_000 + 'x' * 100).startswith('100 bad records in a row')


def test_only_the_first_few_are_logged(caplog):
  bad = tokenizing.BadRecords(tokenizing.SkipLimit())
  for number in range(20):
    bad.add_bad(RecordError('image', f'number {number}'))
  bad.add_bad(RecordError('text', 'another kind'))
  assert caplog.messages == [
    *(f'Skipped (image): number {number}' for number in range(5)),
    'Skipped (text): another kind',
  ]


def test_hosts_that_disagree_find_out(tmp_path):
  """Two that began at the same time, so that neither saw the other's manifest."""
  settings = CodeSettings('codes', 20, 6, 'a' * 64, 8, tokenizing.CROPS[False], 16, 64)
  manifest.start_manifest(str(tmp_path), settings)
  other = dataclasses.replace(settings, vq_hash='b' * 64)
  counts = ShardCounts(2, 1, {}, jax.__version__)
  with ShardWriter(other.path_of(str(tmp_path), 2)) as writer:
    writer.write(encode_example({}))
  manifest.write_counts(str(tmp_path), other, counts)
  with pytest.raises(InputError, match=r"codes-00002-of-00004.json: vq_hash is 'b{64}': expected 'a{64}'"):
    manifest.merge_manifest(str(tmp_path), settings)
