"""What the runs of a sweep share is made once: pretrained parts, rendered worlds, codes of pictures; and forks."""

import logging
import os
import shutil
import tempfile
from typing import Any

from janus_jax.ablation.paths import SweepPaths
from janus_jax.ablation.variants import PlannedRun, digest, shared_stages
from janus_jax.conversion.export import published
from janus_jax.conversion.workdir import check_checkpoint_files
from janus_jax.data.sources.files import expand_home
from janus_jax.errors import InputError
from janus_jax.models.files import CHECKPOINTS_DIRECTORY, CONFIG_FILE, PARAMS_DIRECTORY
from janus_jax.runs import workdirs
from janus_jax.runs.config import TrainConfig, replaced, to_json
from janus_jax.runs.datasets import read_world
from janus_jax.runs.image_codes import DIRECTORY as CODES_DIRECTORY
from janus_jax.runs.start import open_start
from janus_jax.toy import dataset, parts
from janus_jax.training.metrics import METRICS_FILE, read_metrics


def runnable(places: SweepPaths, run: PlannedRun, config: TrainConfig | None = None) -> TrainConfig:
  """The config (default: the run's) with the sweep's own parts and data where it names none."""
  config = config or run.config
  directory = expand_home(config.data.directory) or places.of('data')
  init_from = places.of('parts', run.parts) if run.parts else config.init_from
  return replaced(config, {'init_from': init_from, 'data.directory': directory})


def prepare_runs(places: SweepPaths, run: PlannedRun) -> None:
  """Makes the parts and the world of a run where they are not there yet.

  Raises:
    InputError: something in the config of parts or data is wrong.
  """
  config = runnable(places, run)
  if run.parts:
    with places.alone(f'parts-{run.parts}'):
      if not os.path.exists(os.path.join(config.init_from, CONFIG_FILE)):
        logging.info('pretraining the parts that the runs start from')
        data = config.data
        parts.write_parts(config.pretraining, data.num_train, run.parts_seed, data.directory, config.init_from)
  if config.data.name == 'toy':
    world = read_world(config, open_start(config).config)
    with places.alone('data'):
      dataset.prepare_dataset(world, config.data.directory)


def take_codes(places: SweepPaths, run: PlannedRun) -> None:
  """Codes of pictures that another run with the same parts has computed."""
  _copy_files(_codes_of(places, run), places.of('runs', run.name, CODES_DIRECTORY))


def give_codes(places: SweepPaths, run: PlannedRun) -> None:
  """Leaves what the run computed to the others."""
  _copy_files(places.of('runs', run.name, CODES_DIRECTORY), _codes_of(places, run))


def _codes_of(places: SweepPaths, run: PlannedRun) -> str:
  return places.of('codes', run.parts or digest(run.config.init_from))


def _copy_files(source: str, target: str) -> None:
  """Those that are not there yet; each appears whole or not at all."""
  names = [name for name in os.listdir(source) if name.endswith('.npy')] if os.path.isdir(source) else []
  for name in names:
    os.makedirs(target, exist_ok=True)
    if not os.path.exists(os.path.join(target, name)):
      with tempfile.NamedTemporaryFile(dir=target, delete=False) as file:
        pass
      shutil.copyfile(os.path.join(source, name), file.name)
      os.replace(file.name, os.path.join(target, name))


def find_shared_run(places: SweepPaths, run: PlannedRun, results: dict[str, dict[str, Any]]) -> tuple[str, int] | None:
  """The name of the run that has most stages in common with this one and still has the checkpoint at their end, and
  the step of that; None if there is none.
  """
  found = []
  for name, result in results.items():
    for count in range(shared_stages(run, result['prefixes']), 0, -1):
      if name != run.name and _is_whole(places.of('runs', name, CHECKPOINTS_DIRECTORY, str(run.ends[count - 1]))):
        found.append((count, name))
        break
  if not found:
    return None
  count, name = max(found)
  return name, run.ends[count - 1]


def _is_whole(checkpoint: str) -> bool:
  if not os.path.isdir(checkpoint):
    return False
  try:
    check_checkpoint_files(os.path.join(checkpoint, PARAMS_DIRECTORY))
  except InputError as error:
    logging.warning('not forked: %s', error)
    return False
  return True


def fork(places: SweepPaths, run: PlannedRun, source: str, step: int) -> None:
  """Makes the workdir of a run as if it had trained up to a step, out of that of another run.

  It has the checkpoints at the ends of the stages up to it, and the metrics of training: not held-out losses, which the
  other run may have measured on a mixture of its own, nor pictures and TensorBoard's files.
  """
  config, other = runnable(places, run), places.of('runs', source)
  _remove_cut_short(places, run)
  with published(places.of('runs', run.name), overwrite=False, needed=0) as directory:
    ends = [os.path.join(CHECKPOINTS_DIRECTORY, str(end)) for end in run.ends if end <= step]
    for folder in (*ends, CODES_DIRECTORY):
      if os.path.isdir(os.path.join(other, folder)):
        shutil.copytree(os.path.join(other, folder), os.path.join(directory, folder))
    with (
      open(os.path.join(other, METRICS_FILE), encoding='utf-8') as lines,
      open(os.path.join(directory, METRICS_FILE), 'w', encoding='utf-8') as file,
    ):
      values = read_metrics(os.path.join(other, METRICS_FILE))
      kept = (line for line, value in zip(lines, values) if value['step'] <= step and 'loss' in value)
      file.writelines(kept)
    workdirs.begin(directory, to_json(config), open_start(config))


def _remove_cut_short(places: SweepPaths, run: PlannedRun) -> None:
  """What forks that were killed have left."""
  directory = places.of('runs')
  for name in os.listdir(directory) if os.path.isdir(directory) else ():
    if name.startswith(f'.{run.name}.'):
      shutil.rmtree(os.path.join(directory, name))
