"""Writes one page about a run: scores, curves, drawings, answers, configuration.

    python -m janus_jax.report --workdir=DIR --scores=DIR --out=FILE.html [--path=export=DIR --seconds=training=301 ...]

The first is a training workdir, the second what `janus_jax.evaluate --out` wrote. The page needs no other file.
"""

import logging
import os

import numpy as np
from absl import flags

from janus_jax import cli
from janus_jax.conversion.buckets import absolute, local_files
from janus_jax.conversion.checkpoint import read_json
from janus_jax.errors import InputError
from janus_jax.evaluation import report
from janus_jax.models.files import CHECKPOINTS_DIRECTORY, CONFIG_FILE
from janus_jax.training.metrics import METRICS_FILE, read_metrics
from janus_jax.workdirs import REVISION_FILE, RUN_CONFIG_FILE

_WORKDIR = cli.define_path('workdir', None, 'Training workdir.', required=True)
_SCORES = cli.define_path('scores', None, 'Directory that janus_jax.evaluate wrote; none: a page without scores.')
_OUT = cli.define_path('out', None, 'HTML file to write; replaced if there.', required=True)
_TITLE = flags.DEFINE_string('title', None, 'Of the page; default: the name of the workdir.')
_PATHS = flags.DEFINE_multi_string('path', [], 'NAME=PATH to list on the page; may be given several times.')
_SECONDS = flags.DEFINE_multi_string('seconds', [], 'PART=SECONDS to list on the page; may be given several times.')


def _pairs(flag: str, values: list[str]) -> dict[str, str]:
  for value in values:
    if '=' not in value:
      raise flags.Error(f'--{flag}={value}: expected NAME=VALUE')
  return dict(value.split('=', 1) for value in values)


def _seconds() -> dict[str, float]:
  try:
    return {name: float(value) for name, value in _pairs('seconds', _SECONDS.value).items()}
  except ValueError as error:
    raise flags.Error(f'--seconds: {error}: expected PART=NUMBER') from None


def _read_text(path: str) -> str:
  if not os.path.exists(path):
    return ''
  with open(path, encoding='utf-8') as file:
    return file.read().strip()


def _read_scores(directory: str | None) -> tuple[dict, np.ndarray, np.ndarray]:
  if directory is None:
    return {}, np.zeros(0), np.zeros(0)
  scores = read_json(os.path.join(directory, 'scores.json'))
  with np.load(os.path.join(directory, 'pictures.npz')) as pictures:
    return scores, pictures['drawings'], pictures['questions']


def main() -> None:
  workdir = local_files(_WORKDIR.value)
  paths, seconds = _pairs('path', _PATHS.value), _seconds()
  metrics = os.path.join(workdir, METRICS_FILE)
  if not os.path.exists(metrics):
    raise InputError(f'{metrics}: no such file: expected a training workdir')
  scores, drawings, scenes = _read_scores(_SCORES.value)
  page = report.render(
    report.Run(
      title=_TITLE.value or f'Janus run {os.path.basename(absolute(_WORKDIR.value))}',
      metrics=read_metrics(metrics),
      scores=scores,
      drawings=drawings,
      scenes=scenes,
      config=read_json(os.path.join(workdir, RUN_CONFIG_FILE)),
      model=read_json(os.path.join(workdir, CONFIG_FILE)),
      revision=_read_text(os.path.join(workdir, REVISION_FILE)),
      paths={
        'workdir': absolute(_WORKDIR.value),
        'checkpoints': absolute(os.path.join(_WORKDIR.value, CHECKPOINTS_DIRECTORY)),
        **({'scores': os.path.abspath(_SCORES.value)} if _SCORES.value else {}),
        **{name: absolute(path) for name, path in paths.items()},
      },
      seconds=seconds,
    )
  )
  with open(_OUT.value, 'w', encoding='utf-8') as file:
    file.write(page)
  logging.info('wrote %s', _OUT.value)


if __name__ == '__main__':
  cli.run(main)
