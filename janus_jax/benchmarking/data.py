"""Speed of batches, and the time that a step waits for one: the logic of `janus_jax.benchmark --mode=data`."""

import collections
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np

from janus_jax.data.mean_sizes import mean_sizes
from janus_jax.data.mixture import make_mixture
from janus_jax.data.packing import batch_shape, statistics
from janus_jax.data.pipeline import StreamOptions, batches
from janus_jax.runs.config import TrainConfig
from janus_jax.runs.datasets import check_data, open_data
from janus_jax.runs.loading import load_tokenizer
from janus_jax.runs.setup import example_spec
from janus_jax.runs.start import open_start
from janus_jax.training.run_config import cpu_cores
from janus_jax.training.stages import Stage, stage_models


def measure_data(
  config: TrainConfig, stage_name: str | None, scratch: str, seconds: float, step_seconds: float
) -> dict[str, Any]:
  """Takes batches of a stage, as training would, for some time after the first one.

  Args:
    config: the run.
    stage_name: one of its stages; None: the last.
    scratch: existing directory, for made data and indices.
    seconds: time to measure for.
    step_seconds: time that each batch is held.

  Returns:
    Examples, tokens, images (of which there are pixels) and bytes per second, examples per second and core, packing,
    the mean wait for a batch in seconds, and what it was measured with.

  Raises:
    InputError: something in the config is wrong.
  """
  stage = config.find_stage(stage_name)
  totals: collections.Counter[str] = collections.Counter()
  with closing(_batches(config, stage, scratch)) as stream:
    next(stream)  # Starts the workers.
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
      asked = time.perf_counter()
      batch = next(stream)
      totals.update({'wait_seconds': time.perf_counter() - asked, 'batches': 1, **_contents(batch)})
      time.sleep(step_seconds)
    took = time.perf_counter() - begun
  count, cores = totals['batches'], cpu_cores()
  return {
    **{f'{name}_per_second': totals[name] / took for name in ('examples', 'tokens', 'images', 'bytes')},
    'examples_per_second_and_core': totals['examples'] / took / cores,
    **{name: totals[name] / count for name in ('packing', 'wait_seconds')},
    **{'stage': stage.name, 'batches': count, 'workers': config.num_workers, 'cores': cores},
  }


def _batches(config: TrainConfig, stage: Stage, scratch: str) -> Iterator[dict[str, np.ndarray]]:
  start = open_start(config)
  model = stage_models(start.config, config.run_stages)[config.run.index(stage.name)]
  start = start.resized(*model.sizes)
  check_data(config, start.config)
  data = open_data(config, start.config, scratch, lambda: start, 0)
  spec = example_spec(config.sequence_length, start.config, *load_tokenizer(config.init_from), data.holds_codes)
  (mean,) = mean_sizes(data.train, [(stage.ratio, stage.sources)], spec, config.seed)
  slots = stage.images_per_row, stage.generation_images_per_row
  shape = batch_shape(stage.batch_size, config.sequence_length, mean, *slots)
  options = StreamOptions(config.seed, config.guidance_dropout, prefetch=config.prefetch, workers=config.num_workers)
  return batches(data.train, make_mixture(stage.ratio, stage.sources), spec, shape, options)


def _contents(batch: Mapping[str, np.ndarray]) -> dict[str, float]:
  found = statistics(batch)
  pixels = [batch[name] for name in ('pixels', 'generation_pixels') if name in batch]
  return {
    **{name: found[name] for name in ('examples', 'tokens', 'packing')},
    'bytes': sum(array.nbytes for array in batch.values()),
    'images': sum(int(images.any((2, 3, 4)).sum()) for images in pixels),
  }
