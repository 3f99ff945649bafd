"""Writes one page about a run: scores, curves, generated images, answers, configuration.

    python -m janus_jax.report --workdir=DIR --scores=DIR --out=FILE.html [--path=export=DIR --seconds=training=301 ...]
      [--beside=before=DIR ...]

The first is a training workdir, the second what `janus_jax.evaluate --out` wrote; --beside gives scores of other runs,
whose images of the same prompts then stand beside the run's. The page needs no other file.
"""

import collections
import logging
import math
import os
import pathlib
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
from janus_jax.toy.scores import IMAGES_FILE
from janus_jax.training.metrics import METRICS_FILE, read_metrics

_WORKDIR = cli.define_path('workdir', None, 'Training workdir.', required=True)
_SCORES = cli.define_path('scores', None, 'Directory that janus_jax.evaluate wrote; none: a page without scores.')
_OUT = cli.define_path('out', None, 'HTML file to write; replaced if there.', required=True)
_TITLE = flags.DEFINE_string('title', None, 'Title of the page; default: names the workdir.')
_PATHS = flags.DEFINE_multi_string('path', [], 'NAME=PATH to list on the page; may be given several times.')
_SECONDS = flags.DEFINE_multi_string('seconds', [], 'PART=SECONDS to list on the page; may be given several times.')

_BESIDE = flags.DEFINE_multi_string('beside', [], 'NAME=SCORES of another run; may be given several times.')

# Fields of each entry of a list in scores.json that the page shows.
SCORE_FIELDS = {
  'target_scores': ('name', 'percent', 'interval', 'right', 'total', 'target', 'met', 'control_percent'),
  'questions': ('name', 'group', 'percent', 'interval', 'total', 'control'),
  'generations': ('name', 'group', 'percent', 'interval', 'total', 'control'),
  'question_cases': ('content', 'group', 'image', 'question', 'answer', 'expected', 'right'),
  'generation_cases': ('skill', 'group', 'prompt', 'right', 'reason'),
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


def read_scores(directory: str) -> tuple[dict, np.ndarray, np.ndarray]:
  """scores.json as `janus_jax.evaluate --out` wrote it; images of its generations and questions, uint8[n, h, w, 3].

  Raises:
    InputError: scores.json or images.npz is missing, damaged, or without what the page shows.
  """
  path, images = os.path.join(directory, 'scores.json'), os.path.join(directory, IMAGES_FILE)
  expected = 'expected what janus_jax.evaluate --out writes (older scores have other names: evaluate again)'
  scores = read_json(path)
  for name, fields in SCORE_FIELDS.items():
    entries = scores.get(name)
    if not isinstance(entries, list) or not entries:
      raise InputError(f'{path}: {name} is missing or empty: {expected}')
    for number, entry in enumerate(entries):
      if missing := [field for field in fields if not isinstance(entry, dict) or field not in entry]:
        raise InputError(f'{path}: {name}: entry {number} has no {missing[0]}: {expected}')
  try:
    with np.load(images) as file:
      generations, questions = file['generations'], file['questions']
  except (ValueError, EOFError, LookupError, zipfile.BadZipFile) as error:
    raise InputError(f'{images}: {" ".join(str(error).split())}: {expected}') from None
  found = len(generations), len(questions)
  wanted = len(scores['generation_cases']), 1 + max(case['image'] for case in scores['question_cases'])
  if found[0] != wanted[0] or found[1] < wanted[1]:
    shown = '{} generations and {} images asked about'
    raise InputError(f'{images}: {shown.format(*found)}: expected {shown.format(*wanted)}, those of {path}')
  return scores, generations, questions


def comparable(own: Mapping[str, Any], directory: str) -> tuple[dict, np.ndarray]:
  """Scores and generated images of another run. Raises InputError where they are of other prompts."""
  scores, generations, _ = read_scores(directory)
  if not own:
    raise InputError('--beside: expected --scores too, to compare with')
  prompts, expected = ([case['prompt'] for case in found['generation_cases']] for found in (scores, own))
  if prompts != expected:
    raise InputError(
      f'{directory}: {len(prompts)} prompts, not those of --scores: expected both of one recipe and seed, with equal '
      '--images_per_group'
    )
  return scores, generations


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
  """Part of the model -> number of its parameters; empty where the workdir does not say what the model is."""
  counts: collections.Counter[str] = collections.Counter()
  for path, shape in parameter_shapes(model_config.from_dict(model)).items() if model else ():
    counts[path.split('/')[0]] += math.prod(shape)
  return dict(counts)


def facts(workdir: str, config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Texts that identify a run, and how far it came."""
  elapsed = metrics[-1].get('time', 0) - metrics[0].get('time', 0) if metrics else 0
  found = {
    'seed': str(config.get('seed', '')),
    'steps': f'{metrics[-1]["step"]:,}' if metrics else '',
    'first to last line of metrics': duration(elapsed) if elapsed else '',
  }
  for name, file in (('machine', MACHINE_FILE), ('revision', REVISION_FILE)):
    path = pathlib.Path(workdir, file)
    found[name] = path.read_text('utf-8').strip() if path.exists() else ''
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
  others = {name: comparable(found[0], path) for name, path in _pairs('beside', _BESIDE.value).items()}
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
  page = run_page.render_run(run_page.RunReport(title, lines, *found, config, model, tables, others))
  with open(_OUT.value, 'w', encoding='utf-8') as file:
    file.write(page)
  logging.info('wrote %s', _OUT.value)


if __name__ == '__main__':
  cli.run(main)
