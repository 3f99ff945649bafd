"""How fast batches come and how long a step waits for one: the logic of `janus_jax.benchmark --mode=data`."""

import time
from contextlib import closing
from typing import Any

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


def measure_data(
  config: TrainConfig, stage_name: str | None, scratch: str, seconds: float, step_seconds: float
) -> dict[str, Any]:
  """Takes batches of a stage, as training would, for some time after the first one.

  Args:
    config: of a run.
    stage_name: of one of its stages; None for the last.
    scratch: existing directory, for made data and indices.
    seconds: how long.
    step_seconds: how long each batch is held before the next one is asked for.

  Returns:
    Examples, tokens, images (of which there are pixels) and bytes per second, examples per second and core, packing,
    the mean wait for a batch in seconds, and what it was measured with.

  Raises:
    InputError: something in the config is wrong.
  """
  start = open_start(config)
  check_data(config, start.config)
  stage = config.find_stage(stage_name)
  data = open_data(config, start.config, scratch, lambda: start, 0)
  spec = example_spec(config.sequence_length, start.config, *load_tokenizer(config.init_from), data.holds_codes)
  (mean,) = mean_sizes(data.train, [(stage.ratio, stage.sources)], spec, config.seed)
  rooms = stage.images_per_row, stage.generation_images_per_row
  shape = batch_shape(stage.batch_size, config.sequence_length, mean, *rooms)
  options = {name: getattr(config, name) for name in ('seed', 'guidance_dropout', 'prefetch')}
  options = StreamOptions(**options, workers=config.num_workers)
  totals, waited, count = dict.fromkeys(('examples', 'tokens', 'images', 'bytes', 'packing'), 0.0), 0.0, 0
  with closing(batches(data.train, make_mixture(stage.ratio, stage.sources), spec, shape, options)) as stream:
    next(stream)  # Starts the workers.
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
      asked = time.perf_counter()
      batch = next(stream)
      waited += time.perf_counter() - asked
      count += 1
      found = statistics(batch)
      totals['examples'] += found['examples']
      totals['tokens'] += found['tokens']
      totals['packing'] += found['packing']
      totals['bytes'] += sum(array.nbytes for array in batch.values())
      pixels = [batch[name] for name in ('pixels', 'generation_pixels') if name in batch]
      totals['images'] += sum(int(images.any((2, 3, 4)).sum()) for images in pixels)
      time.sleep(step_seconds)
    took = time.perf_counter() - begun
  cores = cpu_cores()
  rates = {f'{name}_per_second': totals[name] / took for name in ('examples', 'tokens', 'images', 'bytes')}
  per_core = {'examples_per_second_and_core': rates['examples_per_second'] / cores}
  means = {'packing': totals['packing'] / count, 'wait_seconds': waited / count}
  rounded = {name: float(f'{value:.4g}') for name, value in (rates | per_core | means).items()}
  return rounded | {'stage': stage.name, 'batches': count, 'workers': config.num_workers, 'cores': cores}
