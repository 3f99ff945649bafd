"""Limits on the records that a run skips, and what it says of those and of long ones of which it used only a part."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.data.packing import LONG
from janus_jax.data.shard_state import count_reasons
from janus_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class SkipLimit:
  """Bad records of a source that a run puts up with.

  Attributes:
    fraction: of the records read from the source, once `after` have been read.
    after: records.
    consecutive: stops the run at once, however many were good before.
  """

  fraction: float = 0.01
  after: int = 1000
  consecutive: int = 100


FEW = SkipLimit()


def check_skipped(
  source: str, read: int, counts: Mapping[str, int], skipped: Sequence[str], limit: SkipLimit, error: InputError
) -> None:
  """Raises InputError where a source has too many bad records, or only long ones, which a policy leaves out.

  Args:
    source: 'kind/name'.
    read: records read so far.
    counts: records skipped so far, by reason.
    skipped: reasons of the last records that were skipped one after the other.
    limit: how many may be bad.
    error: what the last one was skipped for.
  """
  bad = {reason: count for reason, count in counts.items() if reason != LONG}
  total, consecutive = sum(bad.values()), sum(reason != LONG for reason in skipped)
  if consecutive >= limit.consecutive or (read >= limit.after and total > limit.fraction * read):
    reasons = ', '.join(f'{reason} {count}' for reason, count in sorted(bad.items(), key=lambda item: -item[1]))
    raise InputError(
      f'source {source}: {total} of {read} records are bad, the last {consecutive} in a row ({reasons}): expected at '
      f'most {limit.fraction:.1%} (config.max_bad_record_fraction), and fewer than {limit.consecutive} in a row. '
      f'The last: {error}'
    )
  if len(skipped) >= limit.after:
    raise InputError(f'source {source}: the last {len(skipped)} records were all skipped. The last: {error}')


def count_skipped(states: Sequence[Mapping[str, Any]]) -> int:
  """Bad records so far, of all sources and streams."""
  found = count_reasons(states, 'skipped').values()
  return sum(count for counts in found for reason, count in counts.items() if reason != LONG)


def describe_skipped(states: Sequence[Mapping[str, Any]], name: str = 'skipped') -> str:
  """'generation/laion: image 12, missing field 3; ...' of all streams; '' if all records were used."""
  return '; '.join(
    f'{source}: {", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))}'
    for source, counts in count_reasons(states, name).items()
    if counts
  )


def describe_shortened(states: Sequence[Mapping[str, Any]]) -> str:
  """'text/books: split 12; ...', the long records of all streams; '' if there were none."""
  return describe_skipped(states, 'shortened')
