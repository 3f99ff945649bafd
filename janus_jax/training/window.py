"""What happened between two lines of metrics: counted as batches go by, read from the device later."""

import dataclasses
import time
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from janus_jax.data.examples import CODE, IMAGE, KINDS, TEXT
from janus_jax.data.packing import statistics
from janus_jax.data.pipeline import count_skipped
from janus_jax.models.config import JanusConfig
from janus_jax.training.throughput import TokenCounts, step_flops, throughput


@dataclasses.dataclass(frozen=True)
class Report:
  """A window that is over, its numbers still on the device.

  Attributes:
    step: the last one.
    metrics: of that step (`step.train_step`).
    learning_rate: of that step.
    data_state: of the batches' iterator after it.
    steps: in the window.
    counts: int64[5], the fields of `throughput.TokenCounts`.
    packing: sum over the steps of the share of positions that are no padding.
    waited: seconds spent waiting for batches.
  """

  step: int
  metrics: Mapping[str, jax.Array]
  learning_rate: float
  data_state: Mapping[str, Any]
  steps: int
  counts: np.ndarray
  packing: float
  waited: float


class Window:
  """Counts the batches since the last report."""

  def __init__(self, model: JanusConfig, length: int, trained: Collection[str]):
    """
    Args:
      model: architecture, for FLOPs.
      length: positions of a row.
      trained: parameter groups that train.
    """
    self._model, self._length, self._trained = model, length, trained
    self.restart()

  def restart(self) -> None:
    """Leaves out what came before, which was not training."""
    self._began = time.perf_counter()
    self._clear()

  def _clear(self) -> None:
    self._steps, self._counts, self._packing, self._waited = 0, np.zeros(5, np.int64), 0.0, 0.0

  def add(self, batch: Mapping[str, np.ndarray], waited: float) -> None:
    """Counts a batch that took `waited` seconds to come."""
    kinds = batch['kinds']
    tokens = [int((kinds == kind).sum()) for kind in (TEXT, IMAGE, CODE)]
    # Every place in the rows goes through the encoders, filled or not.
    places = [batch[name].shape[:2] if name in batch else (0, 0) for name in ('pixels', 'generation_pixels')]
    self._counts += np.array([*tokens, *(rows * count for rows, count in places)])
    self._packing += statistics(batch)['packing']
    self._waited += waited
    self._steps += 1

  def take(
    self, step: int, metrics: Mapping[str, jax.Array], learning_rate: float, data_state: Mapping[str, Any]
  ) -> Report:
    """Ends the window with a step that has been dispatched; waits for nothing."""
    report = Report(step, metrics, learning_rate, data_state, self._steps, self._counts, self._packing, self._waited)
    self._clear()
    return report

  def line(self, report: Report) -> dict[str, float]:
    """Waits for the report's last step; its values by name. Seconds are counted from one line to the next."""
    found = jax.device_get(report.metrics)
    now = time.perf_counter()
    seconds, self._began = now - self._began, now
    counts = TokenCounts(*(int(count) for count in report.counts))
    flops = step_flops(self._model, counts, self._length, self._trained)
    line = {'loss': float(found['loss'])}
    for kind, total, weight in zip(KINDS, found['loss_sums'], found['loss_weights']):
      if weight:
        line[f'loss/{kind}'] = float(total / weight)
    line |= {name: float(found[name]) for name in ('grad_norm', 'param_norm', 'update_norm')}
    line |= {'learning_rate': report.learning_rate, 'packing': report.packing / report.steps}
    line |= {'step_seconds': seconds / report.steps, 'data_wait': report.waited / seconds}
    line |= throughput(counts, flops, seconds, jax.devices()[0].device_kind, jax.device_count())
    line |= {name: int(found[name]) for name in ('skipped', 'skipped_in_a_row')}
    line['skipped_records'] = count_skipped(report.data_state)
    return line | {f'examples/{source}': count for source, count in report.data_state['examples'].items()}
