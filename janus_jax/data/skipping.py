"""Records that are not used, and long ones of which only a part is: how many a run puts up with, and how it says so."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.data.packing import LONG
from janus_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class SkipLimit:
  """How many bad records of a source a run puts up with.

  Attributes:
    fraction: of the records read from the source, once `after` have been read.
    after: records.
    in_a_row: stops the run at once, however many were good before.
  """

  fraction: float = 0.01
  after: int = 1000
  in_a_row: int = 100


FEW = SkipLimit()


def check_skipped(
  source: str, read: int, counts: Mapping[str, int], skipped: Sequence[str], limit: SkipLimit, error: InputError
) -> None:
  """Raises InputError where a source has too many bad records, or only long ones.

  Args:
    source: its key.
    read: records of it.
    counts: of them, how many were skipped, by reason.
    skipped: reasons of the last ones in a row.
    limit: how many may be bad. Records that are too long are not: they were left out by a policy.
    error: what the last one was skipped for.
  """
  bad = {reason: count for reason, count in counts.items() if reason != LONG}
  bad_in_a_row = sum(reason != LONG for reason in skipped)
  if bad_in_a_row >= limit.in_a_row or (read >= limit.after and sum(bad.values()) > limit.fraction * read):
    reasons = ', '.join(f'{reason} {count}' for reason, count in sorted(bad.items(), key=lambda item: -item[1]))
    raise InputError(
      f'source {source}: {sum(bad.values())} of {read} records are bad, the last {bad_in_a_row} in a row ({reasons}): '
      f'expected at most {limit.fraction:.1%} (config.max_bad_record_fraction), and fewer than {limit.in_a_row} in a '
      f'row. The last: {error}'
    )
  if len(skipped) >= limit.after:
    raise InputError(f'source {source}: the last {len(skipped)} records were all skipped. The last: {error}')


def count_skipped(states: Sequence[Mapping[str, Any]]) -> int:
  """Bad records so far, of all sources, by the states of streams."""
  reasons = [reasons for state in states for reasons in state['skipped'].values()]
  return sum(count for counts in reasons for reason, count in counts.items() if reason != LONG)


def describe_skipped(states: Sequence[Mapping[str, Any]]) -> str:
  """'generation/laion: image 12, missing field 3; ...', by the states of streams; '' if all were used."""
  return _described(states, 'skipped')


def describe_shortened(states: Sequence[Mapping[str, Any]]) -> str:
  """'text/books: split 12; ...', of long records, by the states of streams; '' if there were none."""
  return _described(states, 'shortened')


def _described(states: Sequence[Mapping[str, Any]], name: str) -> str:
  lines = []
  for source in states[0][name]:
    counts = sum((collections.Counter(state[name][source]) for state in states), collections.Counter())
    if counts:
      lines.append(f'{source}: {", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))}')
  return '; '.join(lines)
