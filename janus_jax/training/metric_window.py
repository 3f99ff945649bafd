"""What happened between two lines of metrics: counted as batches go by, read from the device later."""

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from janus_jax.data.examples import CODE, GENERATION_LOSS, IMAGE, TASKS, TEXT, TEXT_LOSS, UNDERSTANDING_LOSS
from janus_jax.data.packing import statistics
from janus_jax.data.pipeline import count_examples
from janus_jax.data.skipping import count_skipped
from janus_jax.models.config import JanusConfig
from janus_jax.training import hosts
from janus_jax.training.image_encoding import PIXELS
from janus_jax.training.throughput import TokenCounts, step_flops, throughput

# Processes add up integers: shares of a row are counted in these parts.
PACKING_UNITS = 10**6
# What is written of images: the fraction of the computed slots that they fill.
SLOT_KINDS = ('understanding', 'generation')


@dataclasses.dataclass(frozen=True)
class Report:
  """A window that is over, its numbers still on the device.

  Attributes:
    step: the last one.
    metrics: of that step (`step.train_step`).
    learning_rate: of that step.
    streams: the states of this host's streams of data after it.
    steps: in the window.
    counts: int64[6], the fields of `throughput.TokenCounts`.
    slots: int64[2], rooms for images to understand and to generate that were computed, filled or not.
    packing: sum over the steps of the share of positions that are no padding.
    waited: seconds spent waiting for batches.
  """

  step: int
  metrics: Mapping[str, jax.Array]
  learning_rate: float
  streams: Sequence[Mapping[str, Any]]
  steps: int
  counts: np.ndarray
  slots: np.ndarray
  packing: float
  waited: float


class Window:
  """Counts the batches since the last report."""

  def __init__(self, model: JanusConfig, length: int, trained: Collection[str], shares: int = 1):
    """
    Args:
      model: architecture, for FLOPs.
      length: positions of a row.
      trained: parameter groups that train.
      shares: how many hosts make a batch, each a part; a host may be several processes, which make the same.
    """
    self._model, self._length, self._trained, self._shares = model, length, trained, shares
    self.restart()

  def restart(self) -> None:
    """Leaves out what came before, which was not training."""
    self._began = time.perf_counter()
    self._clear()

  def _clear(self) -> None:
    self._steps, self._packing, self._waited = 0, 0.0, 0.0
    self._counts, self._slots = np.zeros(6, np.int64), np.zeros(2, np.int64)

  @property
  def counts(self) -> TokenCounts:
    """Of this process's batches since the last report."""
    return TokenCounts(*map(int, self._counts))

  def add(self, batch: Mapping[str, np.ndarray], waited: float) -> None:
    """Counts a batch that took `waited` seconds to come."""
    token_types = batch['token_types']
    tokens = [int((token_types == kind).sum()) for kind in (TEXT, IMAGE, CODE)]
    seen = tokens[1] // self._model.num_image_tokens
    encoded = int((batch['loss_ids'] == GENERATION_LOSS).sum()) // self._model.vq.num_tokens
    encoded *= 'generation_pixels' in batch
    predicted = np.isin(batch['loss_ids'], (UNDERSTANDING_LOSS, TEXT_LOSS)) & (batch['weights'] != 0)
    self._counts += np.array([*tokens, seen, encoded, int(predicted.sum())])
    self._slots += [int(np.prod(batch[name].shape[:2])) if name in batch else 0 for name in PIXELS]
    self._packing += statistics(batch)['packing']
    self._waited += waited
    self._steps += 1

  def take(
    self, step: int, metrics: Mapping[str, jax.Array], learning_rate: float, streams: Sequence[Mapping[str, Any]]
  ) -> Report:
    """Ends the window with a step that has been dispatched; waits for nothing."""
    held = self._counts, self._slots, self._packing, self._waited
    report = Report(step, metrics, learning_rate, streams, self._steps, *held)
    self._clear()
    return report

  def line(self, report: Report) -> dict[str, float]:
    """Waits for the report's last step; its values by name. Seconds are counted from one line to the next.

    What is counted is counted over all processes, each of which has to call this; the wait for data is its own.
    """
    found = jax.device_get(report.metrics)
    now = time.perf_counter()
    seconds, self._began = now - self._began, now
    examples = count_examples(report.streams)
    packed = round(report.packing * PACKING_UNITS)
    own = [*report.counts, *report.slots, count_skipped(report.streams), packed, *examples.values()]
    # Processes that make the same share count the same rows.
    total = hosts.summed(np.array(own)) * self._shares // jax.process_count()
    (*tokens, skipped, packing), examples_total = total[[*range(6), 8, 9]], total[10:]
    counts, slots = TokenCounts(*map(int, tokens)), total[6:8]
    flops = step_flops(self._model, counts, self._length, self._trained)
    line = {'loss': float(found['loss'])}
    for kind, total, weight in zip(TASKS, found['loss_sums'], found['loss_weights']):
      if weight:
        line[f'loss/{kind}'] = float(total / weight)
    line |= {name: float(found[name]) for name in ('grad_norm', 'param_norm', 'update_norm')}
    line |= {'learning_rate': report.learning_rate, 'packing': packing / PACKING_UNITS / self._shares / report.steps}
    images = counts.images_encoded, counts.images_tokenized
    line |= {f'{name}_slots': n / all_slots for name, n, all_slots in zip(SLOT_KINDS, images, slots) if all_slots}
    line |= {'step_seconds': seconds / report.steps, 'data_wait': report.waited / seconds}
    line |= throughput(counts, flops, seconds, jax.devices()[0].device_kind, jax.device_count())
    line |= {name: int(found[name]) for name in ('skipped', 'skipped_in_a_row')}
    line['skipped_records'] = int(skipped)
    return line | {f'examples/{source}': int(count) for source, count in zip(examples, examples_total)}
