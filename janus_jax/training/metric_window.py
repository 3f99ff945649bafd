"""Metrics of the steps between two lines: counted as batches go by, read from the device later."""

import collections
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
from janus_jax.training.stages import adapted_groups, trained_groups
from janus_jax.training.throughput import TokenCounts, step_flops, throughput

# Processes add up integers: fractions of a row are counted in these parts.
PACKING_UNITS = 10**6
# Metrics of a step about its samples (`preference.LOSSES`).
OF_SAMPLES = ('divergence', 'log_prob', 'margin', 'pairs_right')
# Metrics of image slots: the fraction of those computed that hold an image.
SLOT_METRICS = ('understanding_slots', 'generation_slots')


@dataclasses.dataclass
class _Sums:
  """Sums over the steps of a window.

  Attributes:
    steps: how many they are.
    counts: int64[6], the fields of `throughput.TokenCounts`.
    slots: int64[2], slots for images to understand and to generate that were computed, filled or not.
    packing: fractions of positions that are no padding.
    waited: seconds spent waiting for batches.
    figures: of samples, by name.
  """

  steps: int = 0
  counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(6, np.int64))
  slots: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2, np.int64))
  packing: float = 0.0
  waited: float = 0.0
  figures: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass(frozen=True)
class Report:
  """A window that is over: its sums, and of its last step the metrics (`step.train_step`), still on the device, the
  learning rate, and the states of this host's streams of data."""

  step: int
  metrics: Mapping[str, jax.Array]
  learning_rate: float
  streams: Sequence[Mapping[str, Any]]
  sums: _Sums


class Window:
  """Counts the batches since the last report."""

  def __init__(self, model: JanusConfig, length: int, trained: Collection[str], num_hosts: int = 1):
    """
    Args:
      model: architecture, for FLOPs.
      length: positions of a row.
      trained: paths of the parameters that train.
      num_hosts: hosts that make a batch, each a part; a host may be several processes, which make the same.
    """
    self._model, self._length, self._num_hosts = model, length, num_hosts
    self._trained, self._adapted = trained_groups(trained), adapted_groups(trained)
    self.restart()

  def restart(self) -> None:
    """Leaves out what came before, which was not training."""
    self._began, self._sums = time.perf_counter(), _Sums()

  def start_clock(self) -> None:
    """Leaves out the time until now, which went into the first batch and into compiling, and keeps the counts."""
    self._began, self._sums.waited = time.perf_counter(), 0.0

  @property
  def counts(self) -> TokenCounts:
    """Counts of this process's batches since the last report."""
    return TokenCounts(*map(int, self._sums.counts))

  def add(self, batch: Mapping[str, np.ndarray], waited: float) -> None:
    """Counts a batch that took `waited` seconds to come; it is empty in a stage that reads no data."""
    sums = self._sums
    if batch:
      self._count(batch)
      sums.packing += statistics(batch)['packing']
    sums.waited += waited
    sums.steps += 1

  def add_samples(self, samples: Mapping[str, np.ndarray], figures: Mapping[str, float]) -> None:
    """Counts the samples of the batch that was added last, and figures about them."""
    self._count(samples)
    self._sums.figures.update(figures)

  def _count(self, batch: Mapping[str, np.ndarray]) -> None:
    token_types, sums = batch['token_types'], self._sums
    tokens = [int((token_types == kind).sum()) for kind in (TEXT, IMAGE, CODE)]
    seen = tokens[1] // self._model.num_image_tokens
    encoded = int((batch['loss_ids'] == GENERATION_LOSS).sum()) // self._model.vq.num_tokens
    encoded *= 'generation_pixels' in batch
    predicted = np.isin(batch['loss_ids'], (UNDERSTANDING_LOSS, TEXT_LOSS)) & (batch['weights'] != 0)
    sums.counts += np.array([*tokens, seen, encoded, int(predicted.sum())])
    sums.slots += [int(np.prod(batch[name].shape[:2])) if name in batch else 0 for name in PIXELS]

  def take(
    self, step: int, metrics: Mapping[str, jax.Array], learning_rate: float, streams: Sequence[Mapping[str, Any]]
  ) -> Report:
    """Ends the window with a step that has been dispatched; waits for nothing."""
    report = Report(step, metrics, learning_rate, streams, self._sums)
    self._sums = _Sums()
    return report

  def line(self, report: Report) -> dict[str, float]:
    """Waits for the report's last step; its values by name. Seconds are counted from one line to the next.

    Everything is counted over all processes, each of which has to call this, but the wait for data: that is its own.
    """
    found, sums = jax.device_get(report.metrics), report.sums
    now = time.perf_counter()
    seconds, self._began = now - self._began, now
    examples = count_examples(report.streams)
    packed = round(sums.packing * PACKING_UNITS)
    own = [*sums.counts, *sums.slots, count_skipped(report.streams), packed, *examples.values()]
    # Processes of one host count the same rows.
    total = hosts.summed(np.array(own)) * self._num_hosts // jax.process_count()
    counts, slots, (skipped, packing) = TokenCounts(*map(int, total[:6])), total[6:8], total[8:10]
    line = {'loss': float(found['loss'])}
    for task, loss, weight in zip(TASKS, found['loss_sums'], found['loss_weights']):
      if weight:
        line[f'loss/{task}'] = float(loss / weight)
    line |= {name: float(found[name]) for name in ('grad_norm', 'param_norm', 'update_norm')}
    packing = packing / PACKING_UNITS / self._num_hosts / sums.steps
    line |= {'learning_rate': report.learning_rate, 'packing': packing}
    images = counts.images_encoded, counts.images_tokenized
    line |= {name: n / all_slots for name, n, all_slots in zip(SLOT_METRICS, images, slots) if all_slots}
    line |= {'step_seconds': seconds / sums.steps, 'data_wait': sums.waited / seconds}
    flops = step_flops(self._model, counts, self._length, self._trained, self._adapted)
    line |= throughput(counts, flops, seconds, jax.devices()[0].device_kind, jax.device_count())
    line |= {name: int(found[name]) for name in ('skipped', 'skipped_in_a_row')}
    line |= {name: float(found[name]) for name in OF_SAMPLES if name in found}
    line |= {name: total / sums.steps for name, total in sums.figures.items()}
    if sums.figures:
      line['update_tokens_per_second'] = counts.tokens / (seconds - sums.figures['sampling_seconds'])
    line['skipped_records'] = int(skipped)
    return line | {f'examples/{source}': int(count) for source, count in zip(examples, total[10:])}
