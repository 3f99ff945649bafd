"""Longest operations of a device, read off a trace that jax.profiler wrote."""

import collections
import pathlib
from collections.abc import Iterator
from typing import Any

from jax.profiler import ProfileData


def longest_operations(directory: str, count: int = 10) -> list[dict[str, Any]]:
  """The `count` most expensive kernels of the newest trace below a directory, the longest first.

  Returns:
    `operation`, a name without the number that XLA gives it; `seconds` of all its `calls`; and their `share`, the
    fraction of the seconds of all operations. Empty where a trace names no operations.
  """
  paths = pathlib.Path(directory).rglob('*.xplane.pb')
  newest = max(paths, key=lambda path: path.stat().st_mtime)
  seconds: collections.Counter[str] = collections.Counter()
  calls: collections.Counter[str] = collections.Counter()
  for name, duration in _operations(ProfileData.from_file(str(newest))):
    seconds[name] += duration
    calls[name] += 1
  total = sum(seconds.values())
  return [
    {'operation': name, 'seconds': spent, 'calls': calls[name], 'share': spent / total}
    for name, spent in seconds.most_common(count)
  ]


def _operations(data: ProfileData) -> Iterator[tuple[str, float]]:
  """Yields name and seconds of each operation of the first device; but for loops, which contain others."""
  planes = {plane.name: plane for plane in data.planes}
  on_device = sorted(name for name in planes if name.startswith('/device:'))
  for line in planes[on_device[0] if on_device else '/host:CPU'].lines:
    if line.name in ('Steps', 'XLA Modules', 'XLA TraceMe', 'Framework Name Scope', 'Source code'):
      continue
    for event in line.events:
      name = _plain(event.name)
      is_operation = bool(on_device) or 'hlo_op' in dict(event.stats)
      if is_operation and name not in ('while', 'conditional', 'call'):
        yield name, event.duration_ns / 1e9


def _plain(name: str) -> str:
  """'%fusion.123 = ...' -> 'fusion'."""
  name = name.split(' = ')[0].lstrip('%')
  head, _, tail = name.rpartition('.')
  return head if head and tail.isdecimal() else name
