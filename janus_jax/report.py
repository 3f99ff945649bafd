"""Writes one page about a run: scores, curves, generated images, answers, configuration.

    python -m janus_jax.report --workdir=DIR --scores=DIR --out=FILE.html [--path=export=DIR --seconds=training=301 ...]

The first is a training workdir, the second what `janus_jax.evaluate --out` wrote. The page needs no other file.
"""

import collections
import logging
import math
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from janus_jax import cli
from janus_jax.conversion.buckets import absolute, local_files
from janus_jax.conversion.checkpoint import read_json
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.errors import InputError
from janus_jax.models import config as model_config
from janus_jax.models.files import CHECKPOINTS_DIRECTORY, CONFIG_FILE
from janus_jax.reporting import charts
from janus_jax.runs import workdirs
from janus_jax.runs.workdirs import MACHINE_FILE, REVISION_FILE
from janus_jax.toy import run_page
from janus_jax.training.metrics import METRICS_FILE, read_metrics

_WORKDIR = cli.define_path('workdir', None, 'Training workdir.', required=True)
_SCORES = cli.define_path('scores', None, 'Directory that janus_jax.evaluate wrote; none: a page without scores.')
_OUT = cli.define_path('out', None, 'HTML file to write; replaced if there.', required=True)
_TITLE = flags.DEFINE_string('title', None, 'Title of the page; default: names the workdir.')
_PATHS = flags.DEFINE_multi_string('path', [], 'NAME=PATH to list on the page; may be given several times.')
_SECONDS = flags.DEFINE_multi_string('seconds', [], 'PART=SECONDS to list on the page; may be given several times.')

# What the page shows of each entry of a list in scores.json.
SCORE_FIELDS = {
  'goals': ('name', 'percent', 'right', 'total', 'goal', 'met', 'control_percent'),
  'questions': ('name', 'group', 'percent', 'total', 'control'),
  'drawings': ('name', 'group', 'percent', 'total', 'control'),
  'question_cases': ('subject', 'group', 'image', 'question', 'answer', 'expected', 'right'),
  'drawing_cases': ('skill', 'group', 'prompt', 'right', 'reason'),
}


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


def read_scores(directory: str) -> tuple[dict, np.ndarray, np.ndarray]:
  """What `janus_jax.evaluate --out` wrote: scores.json; the drawings and the scenes of its cases, uint8[n, h, w, 3].

  Raises:
    InputError: scores.json or pictures.npz is missing, damaged, or without what the page shows.
  """
  path, pictures = os.path.join(directory, 'scores.json'), os.path.join(directory, 'pictures.npz')
  scores = read_json(path)
  for name, fields in SCORE_FIELDS.items():
    entries = scores.get(name)
    if not isinstance(entries, list) or not entries:
      raise InputError(f'{path}: {name} is missing or empty: expected what janus_jax.evaluate --out writes')
    for number, entry in enumerate(entries):
      if missing := [field for field in fields if not isinstance(entry, dict) or field not in entry]:
        raise InputError(f'{path}: {name}: entry {number} has no {missing[0]}: expected what janus_jax.evaluate writes')
  try:
    with np.load(pictures) as file:
      drawings, scenes = file['drawings'], file['questions']
  except (ValueError, EOFError, LookupError, zipfile.BadZipFile) as error:
    raise InputError(f'{pictures}: {" ".join(str(error).split())}: expected what janus_jax.evaluate writes') from None
  asked = 1 + max(case['image'] for case in scores['question_cases'])
  if len(drawings) != len(scores['drawing_cases']) or len(scenes) < asked:
    raise InputError(
      f'{pictures}: {len(drawings)} drawings and {len(scenes)} scenes: expected {len(scores["drawing_cases"])} and '
      f'{asked}, those of {path}'
    )
  return scores, drawings, scenes


def duration(seconds: float) -> str:
  """'12 s', '3 min 20 s' or '2 h 5 min'."""
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 1:
    return f'{rest} s'
  return f'{minutes} min {rest} s' if minutes < 60 else f'{minutes // 60} h {minutes % 60} min'


def with_total(values: Mapping[str, Any], text: Callable[[Any], str]) -> dict[str, str]:
  """The values as text, and their sum."""
  return {name: text(value) for name, value in {**values, 'total': sum(values.values())}.items()} if values else {}


def parameter_counts(model: Mapping[str, Any]) -> dict[str, int]:
  """Part of the model -> how many parameters it has; empty where the workdir does not say what the model is."""
  counts: collections.Counter[str] = collections.Counter()
  for path, shape in parameter_shapes(model_config.from_dict(model)).items() if model else ():
    counts[path.split('/')[0]] += math.prod(shape)
  return dict(counts)


def facts(workdir: str, config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """What identifies a run, and how far it came."""
  elapsed = metrics[-1].get('time', 0) - metrics[0].get('time', 0) if metrics else 0
  found = {
    'seed': str(config.get('seed', '')),
    'steps': f'{metrics[-1]["step"]:,}' if metrics else '',
    'first to last line of metrics': duration(elapsed) if elapsed else '',
    'machine': _read_text(os.path.join(workdir, MACHINE_FILE)),
    'revision': _read_text(os.path.join(workdir, REVISION_FILE)),
  }
  return {name: value for name, value in found.items() if value}


def main() -> None:
  charts.matplotlib()  # Says what to install before anything is read.
  workdir = local_files(_WORKDIR.value)
  paths, seconds = _pairs('path', _PATHS.value), _seconds()
  metrics = os.path.join(workdir, METRICS_FILE)
  if not os.path.exists(metrics):
    raise InputError(f'{metrics}: no such file: expected a training workdir')
  lines = read_metrics(metrics)
  config, model = workdirs.read_config(workdir), read_json(os.path.join(workdir, CONFIG_FILE))
  found = read_scores(_SCORES.value) if _SCORES.value is not None else ({}, np.zeros(0), np.zeros(0))
  where = {
    'workdir': absolute(_WORKDIR.value),
    'checkpoints': absolute(os.path.join(_WORKDIR.value, CHECKPOINTS_DIRECTORY)),
    **({'scores': os.path.abspath(_SCORES.value)} if _SCORES.value else {}),
    **{name: absolute(path) for name, path in paths.items()},
  }
  tables = {
    'run': facts(workdir, config, lines),
    'parameters': with_total(parameter_counts(model), '{:,}'.format),
    'wall time': with_total(seconds, duration),
    'paths': where,
  }
  title = _TITLE.value or f'Janus training run {"/".join(where["workdir"].split("/")[-2:])}'
  page = run_page.render(run_page.Run(title, lines, *found, config, model, tables))
  with open(_OUT.value, 'w', encoding='utf-8') as file:
    file.write(page)
  logging.info('wrote %s', _OUT.value)


if __name__ == '__main__':
  cli.run(main)
