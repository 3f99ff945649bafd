"""What the stages of a run cost, by its metrics.

A line of metrics stands for the steps since the line before it. Seconds are those of training alone: what the first
line of a stage has beyond the others (compiling, mostly) is counted apart, as it depends on which run came first.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class StageCost:
  """Of one stage.

  Attributes:
    steps: updates.
    seconds: of training.
    compile_seconds: the excess of its first line of metrics; 0 where there is only one line.
    tokens: that examples consist of; no padding.
    flops: by formula (training/throughput.py), over all devices.
  """

  steps: int
  seconds: float
  compile_seconds: float
  tokens: int
  flops: float


def stage_costs(lines: Sequence[Mapping[str, Any]], ends: Sequence[int]) -> list[StageCost]:
  """The cost of each stage.

  Args:
    lines: of metrics.jsonl.
    ends: the step at which each stage is over.
  """
  lines = [line for line in lines if 'step_seconds' in line]
  steps = [line['step'] - before for line, before in zip(lines, [0, *(line['step'] for line in lines)])]
  starts = (0, *ends)
  return [
    _cost([pair for pair in zip(lines, steps) if start < pair[0]['step'] <= end]) for start, end in zip(starts, ends)
  ]


def _cost(lines: Sequence[tuple[Mapping[str, Any], int]]) -> StageCost:
  if not lines:
    return StageCost(0, 0.0, 0.0, 0, 0.0)
  seconds = [line['step_seconds'] * steps for line, steps in lines]
  later = [line['step_seconds'] for line, _ in lines[1:]]
  first, first_steps = lines[0]
  excess = max(first['step_seconds'] - statistics.median(later), 0.0) * first_steps if later else 0.0
  tokens = sum(round(line['tokens_per_second'] * took) for (line, _), took in zip(lines, seconds))
  flops = sum(_flops_per_second(line) * took for (line, _), took in zip(lines, seconds))
  return StageCost(sum(steps for _, steps in lines), sum(seconds) - excess, excess, tokens, flops)


def _flops_per_second(line: Mapping[str, Any]) -> float:
  devices = line['tokens_per_second'] / line['tokens_per_second_per_device']
  return line['tflops_per_second_per_device'] * 1e12 * devices
