"""Measures the speed of training steps, generation, answers and data on any device, and whether the device is right.

    python -m janus_jax.benchmark --config=FILE --mode=train [--stage=NAME --steps=10 --repeats=5]
    python -m janus_jax.benchmark --config=FILE --mode=generate [--batch=1,16 --prompt_tokens=32 --window=1,8]
    python -m janus_jax.benchmark --config=FILE --mode=understand [--batch=1 --prompt_tokens=32 --answer_tokens=128]
    python -m janus_jax.benchmark --config=FILE --mode=evaluate [--batch=8 --share=8 --answer_tokens=8]
    python -m janus_jax.benchmark --config=FILE --mode=check
    python -m janus_jax.benchmark --config=FILE --mode=data --config.init_from=PATH [--seconds=20 --step_seconds=0]

Options of generate and understand: `--share=8` gives each prompt 8 images, or each image 8 questions, and the prompt or
image then runs once for them; `--batch` counts images or questions. `--weights=int8` (or int8_products) and
`--cache_dtype=int8` also give their cost: the distance of the distributions of codes or tokens from those in full
(`rounding`). Random weights say little of that: name trained ones.

`--window=1,8` (generate) times passes that draw 8 codes at most beside those that draw one (`inference/drawing.py`).
Random weights and random prompts say nothing of how many they draw: `--config.init_from=PATH --prompt="a red circle"`.

`--mode=evaluate` answers 64 questions, `--share` about an image, as `janus_jax.evaluate` does it with
`--batch_size` of `--batch`: from encoded images and text to a file of answers. Its peer is a loop over transformers'
`generate`, one question at a time with its image, as evaluation harnesses drive it.

The model is the one that a run of the config would start from, with random weights where `config.init_from` names none:
a preset of the file's name, or `pretraining.model`. Generation and answers compute in `config.compute.dtype`.

`--mode=check` compares every attention kernel that the device can run with the plain one; and two train steps, greedy
codes and answers of the config's model, which should be small, with the CPU's; a difference is an error.

`--peer=transformers` does the same work with the same weights through torch, in turn with ours (training on an
accelerator: before ours, which then has the memory), after a check that both compute the same. `--scaling` (with train
or understand) gives cost against size. `--profile=DIR` writes a trace of our side for TensorBoard or Perfetto, and
lists its ten longest operations. `--json` prints one JSON object. `--out=DIR` keeps results.json and table.md, and
with `--scaling` a chart for each size.

For data, `--step_seconds` stands for the device: so long each batch is "trained on" while the next ones are made; the
rest is the time that a step waits.
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
from janus_jax.benchmarking.benchmark_model import open_model
from janus_jax.benchmarking.scaling import Cost
from janus_jax.errors import InputError
from janus_jax.inference.requests import ImageSettings
from janus_jax.reporting import charts
from janus_jax.runs.config import parse_config
from janus_jax.runs.value_checks import Integer, Number

_CONFIG = cli.define_config()
_MODE = flags.DEFINE_enum(
  'mode', None, ['train', 'generate', 'understand', 'evaluate', 'data', 'check'], 'What is measured.', required=True
)
_PEER = flags.DEFINE_enum('peer', None, ['transformers'], 'Library that does the same work beside.')
_COMPILE_PEER = flags.DEFINE_bool('compile_peer', None, 'Whether the peer uses torch.compile; default: on a GPU.')
_STAGE = flags.DEFINE_string('stage', None, 'Stage of the config; default: its last one.')
_REPEATS = cli.define_number('repeats', 5, 'Runs, of which the median counts.', Integer(1))
_STEPS = cli.define_number('steps', 10, 'Training steps in a run.', Integer(1))
_BATCH = flags.DEFINE_list('batch', ['1'], 'Images or questions at a time; several numbers: one after the other.')
_PROMPT_TOKENS = cli.define_number('prompt_tokens', 32, 'Tokens of a prompt or question.', Integer(3))
_ANSWER_TOKENS = cli.define_number('answer_tokens', 128, 'Tokens of an answer.', Integer(2))
_WEIGHTS, _CACHE_DTYPE = cli.define_settings(ImageSettings, 'weights', 'cache_dtype')
_SHARE = cli.define_number('share', 1, 'Images of one prompt, or questions about one image.', Integer(1))
_WINDOW = flags.DEFINE_list('window', ['1'], 'Codes that a pass draws at most; several: one beside the other.')
_PROMPT = flags.DEFINE_multi_string('prompt', [], 'Text to generate images for, in place of random tokens.')
_PROFILE = cli.define_path('profile', '', 'Directory for a trace.')
_SCALING = flags.DEFINE_bool('scaling', False, 'Whether cost is measured against size.')
_OUT = cli.define_path('out', '', 'Directory for results, a table and charts.')
_SECONDS = cli.define_number('seconds', 20.0, 'Time for which data is measured.', Number(0.1))
_STEP_SECONDS = cli.define_number('step_seconds', 0.0, 'Time of a training step.', Number())
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object on stdout.')


def main() -> None:
  given = (_PEER, _PROFILE, _SCALING, _WEIGHTS, _CACHE_DTYPE, _SHARE, _WINDOW, _PROMPT)
  settings.check_mode_flags(_MODE.value, [flag.name for flag in given if flag.value != flag.default])
  if _SCALING.value and _OUT.value:
    charts.matplotlib()
  load = os.getloadavg()[0]
  found, costs = _measured()
  found = report.rounded({**found, 'load_average_before': load})
  if _OUT.value:
    report.write_results(_OUT.value, found, costs)
  print(json.dumps(found) if _JSON.value else report.to_text(found), flush=True)
  if wrong := [check['check'] for check in found.get('checks', ()) if not check['ok']]:
    raise InputError(f'wrong on this device: {"; ".join(wrong)}')


def _measured() -> tuple[dict[str, Any], Sequence[Cost]]:
  run, mode, stage = parse_config(_CONFIG.value), _MODE.value, _STAGE.value
  if mode == 'data':
    with tempfile.TemporaryDirectory() as scratch:
      return data.measure_data(run, stage, scratch, _SECONDS.value, _STEP_SECONDS.value), ()
  request = settings.Request(
    # `evaluate` cuts questions about one image into batches itself.
    batches=settings.read_batches(_BATCH.value, 1 if mode == 'evaluate' else _SHARE.value),
    prompt_tokens=_PROMPT_TOKENS.value,
    answer_tokens=_ANSWER_TOKENS.value,
    dtype=run.compute.dtype,
    weights=_WEIGHTS.value,
    cache_dtype=_CACHE_DTYPE.value,
    rows_per_prefix=_SHARE.value,
    windows=settings.read_windows(_WINDOW.value),
    prompts=tuple(_PROMPT.value),
  )
  if _PEER.value:  # Or jax takes most of a GPU's memory before torch gets any.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  model = open_model(run, config_flags.get_config_filename(flags.FLAGS['config']), stage)
  options = settings.BenchmarkSettings(
    _REPEATS.value, _STEPS.value, bool(_PEER.value), _COMPILE_PEER.value, _PROFILE.value
  )
  if mode == 'check':
    return running.benchmark_check(model), ()
  if mode == 'train':
    if _SCALING.value:
      return running.scale_training(model, stage, options)
    return running.benchmark_train(model, stage, options), ()
  settings.check_positions(mode, request, model.config)
  if _SCALING.value:
    return running.scale_decoding(model, request, options)
  return running.benchmark_inference(mode, model, request, options), ()


if __name__ == '__main__':
  cli.run(main)
