"""Measures speed, on any device: of training steps, of drawing, of answering, of data; and whether the device is right.

    python -m janus_jax.benchmark --config=FILE --mode=train [--stage=NAME --steps=10 --repeats=5]
    python -m janus_jax.benchmark --config=FILE --mode=generate [--batch=1,16 --prompt_tokens=32]
    python -m janus_jax.benchmark --config=FILE --mode=understand [--batch=1 --prompt_tokens=32 --answer_tokens=128]
    python -m janus_jax.benchmark --config=FILE --mode=check
    python -m janus_jax.benchmark --config=FILE --mode=data --config.init_from=PATH [--seconds=20 --step_seconds=0]

Options of drawing and answering: `--share=8` gives each prompt 8 images, or each image 8 questions, which we run the
prompt or the image once for; `--batch` counts images or questions. `--weights=int8` (or int8_products) and
`--cache_dtype=int8` give beside the speed what they cost: how far the distributions of codes or tokens are from those
in full (`rounding`). Random weights say little of that: name trained ones.

The model is what a run of the config would start from, with random weights where `config.init_from` names none: a
preset of the file's name, or `pretraining.model`. Drawing and answering compute in `config.compute.dtype`.

`--mode=check` compares every attention kernel that the device can run with the plain one, and two train steps, greedy
codes and answers of the config's model, which should be small, with the CPU's; what differs is an error.

`--peer=transformers` does the same work with the same weights through torch, in turn with ours (training on an
accelerator: before ours, which then has the memory), after a check that both compute the same. `--scaling` (with train
or understand) gives cost against size. `--profile=DIR` writes a trace of our side for TensorBoard or Perfetto, and
lists the ten operations of it that took longest. `--json` prints one JSON object. `--out=DIR` keeps results.json and
table.md, and of `--scaling` a chart for each size.

Of data, `--step_seconds` stands for the device: so long each batch is "trained on" while the next ones are made; what
is left is the time a step waits.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from janus_jax import cli
from janus_jax.benchmarking import data, report, running, settings
from janus_jax.benchmarking.benchmark_model import read_subject
from janus_jax.benchmarking.scaling import Cost
from janus_jax.errors import InputError
from janus_jax.inference.requests import ImageSettings
from janus_jax.reporting import charts
from janus_jax.runs.config import parse_config
from janus_jax.runs.value_checks import Integer, Number

_CONFIG = cli.define_config()
_MODE = flags.DEFINE_enum(
  'mode', None, ['train', 'generate', 'understand', 'data', 'check'], 'What is measured.', required=True
)
_PEER = flags.DEFINE_enum('peer', None, ['transformers'], 'Who does the same work beside.')
_COMPILE_PEER = flags.DEFINE_bool('compile_peer', None, 'Whether the peer uses torch.compile; default: on a GPU.')
_STAGE = flags.DEFINE_string('stage', None, 'Of the config; default: its last one.')
_REPEATS = cli.define_number('repeats', 5, 'Runs, of which the median counts.', Integer(1))
_STEPS = cli.define_number('steps', 10, 'Training steps in a run.', Integer(1))
_BATCH = flags.DEFINE_list('batch', ['1'], 'Images or questions at a time; several numbers: one after the other.')
_PROMPT_TOKENS = cli.define_number('prompt_tokens', 32, 'Of a prompt or question, in tokens.', Integer(3))
_ANSWER_TOKENS = cli.define_number('answer_tokens', 128, 'Of an answer.', Integer(2))
_WEIGHTS, _CACHE_DTYPE = cli.define_settings(ImageSettings, 'weights', 'cache_dtype')
_SHARE = cli.define_number('share', 1, 'Images of one prompt, or questions about one image.', Integer(1))
_PROFILE = cli.define_path('profile', '', 'Where a trace goes.')
_SCALING = flags.DEFINE_bool('scaling', False, 'Whether cost is measured against size.')
_OUT = cli.define_path('out', '', 'Directory for results, a table and charts.')
_SECONDS = cli.define_number('seconds', 20.0, 'How long data is measured.', Number(0.1))
_STEP_SECONDS = cli.define_number('step_seconds', 0.0, 'What a training step takes.', Number())
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object on stdout.')


def main() -> None:
  named = (_PEER, _PROFILE, _SCALING, _WEIGHTS, _CACHE_DTYPE, _SHARE)
  settings.check_mode_flags(_MODE.value, [flag.name for flag in named if flag.value != flag.default])
  if _SCALING.value and _OUT.value:
    charts.matplotlib()
  load = os.getloadavg()[0]
  found, costs = _measured()
  found = report.rounded({**found, 'load_average_before': load})
  if _OUT.value:
    report.write(_OUT.value, found, costs)
  print(json.dumps(found) if _JSON.value else report.to_text(found), flush=True)
  if wrong := [check['check'] for check in found.get('checks', ()) if not check['ok']]:
    raise InputError(f'wrong on this device: {"; ".join(wrong)}')


def _measured() -> tuple[dict[str, Any], Sequence[Cost]]:
  config, mode, stage = parse_config(_CONFIG.value), _MODE.value, _STAGE.value
  if mode == 'data':
    with tempfile.TemporaryDirectory() as scratch:
      return data.measure_data(config, stage, scratch, _SECONDS.value, _STEP_SECONDS.value), ()
  batches = settings.read_batches(_BATCH.value, _SHARE.value)
  if _PEER.value:  # Or jax takes most of a GPU's memory before torch gets any.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  subject = read_subject(config, config_flags.get_config_filename(flags.FLAGS['config']))
  measured = settings.BenchmarkSettings(
    _REPEATS.value, _STEPS.value, bool(_PEER.value), _COMPILE_PEER.value, _PROFILE.value
  )
  request = settings.Request(
    batches,
    _PROMPT_TOKENS.value,
    _ANSWER_TOKENS.value,
    config.compute.dtype,
    _WEIGHTS.value,
    _CACHE_DTYPE.value,
    _SHARE.value,
  )
  if mode == 'check':
    return running.check(subject), ()
  if mode != 'train':
    settings.check_positions(mode, request, subject.model)
  if _SCALING.value:
    scale = running.scale_training if mode == 'train' else running.scale_decoding
    return scale(subject, stage if mode == 'train' else request, measured)
  if mode == 'train':
    return running.benchmark_train(subject, stage, measured), ()
  measure = running.generate if mode == 'generate' else running.understand
  return measure(subject, request, measured), ()


if __name__ == '__main__':
  cli.run(main)
