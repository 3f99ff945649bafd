"""The directory of a sweep: parts, toy worlds and codes of images that its runs share, and forks of runs."""

import contextlib
import glob
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from janus_jax.ablation.variants import PlannedRun, digest, shared_stages
from janus_jax.conversion.checkpoint import read_json
from janus_jax.conversion.export import published
from janus_jax.conversion.workdir import check_checkpoint_files
from janus_jax.data.sources.files import expand_home
from janus_jax.data.whole_files import replacing, write_json, write_text
from janus_jax.errors import InputError
from janus_jax.models.files import CHECKPOINTS_DIRECTORY, CONFIG_FILE, PARAMS_DIRECTORY
from janus_jax.runs import workdirs
from janus_jax.runs.config import TrainConfig, replaced, to_json
from janus_jax.runs.datasets import read_world
from janus_jax.runs.image_codes import DIRECTORY as CODES_DIRECTORY
from janus_jax.runs.start import open_start
from janus_jax.toy import dataset, parts
from janus_jax.training.metrics import METRICS_FILE, read_metrics
from janus_jax.training.ownership import locked


class SweepPaths:
  """The directory of a sweep.

  parts/HASH      pretrained parts, a checkpoint
  data/           rendered toy worlds
  codes/          codes of their images, by the parts whose tokenizer made them
  runs/NAME       training workdirs
  scores/NAME     the files of `janus_jax.evaluate --out`
  results/NAME.json   a record: the run's settings, and what was measured of it
  """

  def __init__(self, root: str):
    self.root = os.path.abspath(root)

  def of(self, *names: str) -> str:
    return os.path.join(self.root, *names)

  def read_results(self) -> dict[str, dict[str, Any]]:
    """Run name -> its record, of all runs that were ever begun here."""
    return {path.stem: read_json(str(path)) for path in sorted(pathlib.Path(self.root, 'results').glob('*.json'))}

  def write_result(self, name: str, result: Mapping[str, Any]) -> None:
    """Replaces a record whole or not at all."""
    os.makedirs(self.of('results'), exist_ok=True)
    write_json(self.of('results', f'{name}.json'), result)

  @contextlib.contextmanager
  def alone(self, name: str) -> Iterator[None]:
    """Holds the lock of a name once no other process does. The lock of a process that dies is gone."""
    os.makedirs(self.of('locks'), exist_ok=True)
    with locked(self.of('locks', name), name, wait=True):
      yield


def runnable(paths: SweepPaths, run: PlannedRun, config: TrainConfig | None = None) -> TrainConfig:
  """The config (default: the run's) with the sweep's own parts and data where it names none."""
  config = config or run.config
  directory = expand_home(config.data.directory) or paths.of('data')
  init_from = paths.of('parts', run.parts) if run.parts else config.init_from
  return replaced(config, {'init_from': init_from, 'data.directory': directory})


def prepare_runs(paths: SweepPaths, run: PlannedRun) -> None:
  """Makes the parts and the toy world of a run where they are missing.

  Raises:
    InputError: something in the config of parts or data is wrong.
  """
  config = runnable(paths, run)
  if run.parts:
    with paths.alone(f'parts-{run.parts}'):
      if not os.path.exists(os.path.join(config.init_from, CONFIG_FILE)):
        logging.info('pretraining the parts that the runs start from')
        data = config.data
        parts.write_parts(config.pretraining, data.toy, run.parts_seed, data.directory, config.init_from)
  if config.data.name == 'toy':
    world = read_world(config, open_start(config).config)
    with paths.alone('data'):
      dataset.prepare_dataset(world, config.data.directory)


def take_codes(paths: SweepPaths, run: PlannedRun) -> None:
  """Copies codes of images that another run with the same parts has computed."""
  _copy_files(_codes_of(paths, run), paths.of('runs', run.name, CODES_DIRECTORY))


def give_codes(paths: SweepPaths, run: PlannedRun) -> None:
  """Copies codes that the run has computed to where the others find them."""
  _copy_files(paths.of('runs', run.name, CODES_DIRECTORY), _codes_of(paths, run))


def _codes_of(paths: SweepPaths, run: PlannedRun) -> str:
  return paths.of('codes', run.parts or digest(run.config.init_from))


def _copy_files(source: str, target: str) -> None:
  """Copies the codes that are missing; each file appears whole or not at all."""
  for file in pathlib.Path(source).glob('*.npy'):
    os.makedirs(target, exist_ok=True)
    if not os.path.exists(copy := os.path.join(target, file.name)):
      with replacing(copy, shared=True) as partial:
        shutil.copyfile(file, partial)


def find_shared_run(paths: SweepPaths, run: PlannedRun, results: dict[str, dict[str, Any]]) -> tuple[str, int] | None:
  """The name of the run that has most stages in common with this one and still has the checkpoint at their end, and
  the step of that; None if there is none.
  """
  shared = {name: shared_stages(run, result['prefixes']) for name, result in results.items() if name != run.name}
  ends = [(end, name) for name, count in shared.items() for end in run.ends[:count]]
  for end, name in sorted(ends, reverse=True):
    if _is_whole(paths.of('runs', name, CHECKPOINTS_DIRECTORY, str(end))):
      return name, end
  return None


def _is_whole(checkpoint: str) -> bool:
  if not os.path.isdir(checkpoint):
    return False
  try:
    check_checkpoint_files(os.path.join(checkpoint, PARAMS_DIRECTORY))
  except InputError as error:
    logging.warning('not forked: %s', error)
    return False
  return True


def fork(paths: SweepPaths, run: PlannedRun, source: str, step: int) -> None:
  """Makes the workdir of a run as if it had trained up to a step, out of that of another run.

  It has the checkpoints at the ends of the stages up to it, and the metrics of training: not held-out losses, which the
  other run may have measured on a mixture of its own, nor generated images and TensorBoard's files.
  """
  config, other = runnable(paths, run), paths.of('runs', source)
  for leftover in pathlib.Path(paths.of('runs')).glob(f'.{glob.escape(run.name)}.*'):  # Of forks that were killed.
    shutil.rmtree(leftover)
  with published(paths.of('runs', run.name), overwrite=False, needed=0) as directory:
    ends = [os.path.join(CHECKPOINTS_DIRECTORY, str(end)) for end in run.ends if end <= step]
    for folder in (*ends, CODES_DIRECTORY):
      if os.path.isdir(os.path.join(other, folder)):
        shutil.copytree(os.path.join(other, folder), os.path.join(directory, folder))
    metrics = os.path.join(other, METRICS_FILE)
    lines = pathlib.Path(metrics).read_text('utf-8').splitlines(keepends=True)
    kept = [line for line, value in zip(lines, read_metrics(metrics)) if value['step'] <= step and 'loss' in value]
    write_text(os.path.join(directory, METRICS_FILE), ''.join(kept))
    workdirs.begin(directory, to_json(config), open_start(config))
