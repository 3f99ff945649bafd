"""Measures speed, on any device: of training steps, of drawing, of answering, of data.

    python -m janus_jax.benchmark --config=FILE --mode=train [--stage=NAME --steps=10 --repeats=5]
    python -m janus_jax.benchmark --config=FILE --mode=generate [--batch=1,16 --prompt_tokens=32]
    python -m janus_jax.benchmark --config=FILE --mode=understand [--batch=1 --prompt_tokens=32 --answer_tokens=128]
    python -m janus_jax.benchmark --config=FILE --mode=data --config.init_from=PATH [--seconds=20 --step_seconds=0]

The model is what a run of the config would start from, with random weights where `config.init_from` names none: a
preset of the file's name, or `pretraining.model`. `--peer=transformers` does the same work with the same weights
through torch, in turn with ours, after a check that both compute the same. `--profile=DIR` writes a trace of our side
for TensorBoard or Perfetto. `--json` prints one JSON object.

Of data, `--step_seconds` stands for the device: so long each batch is "trained on" while the next ones are made; what
is left is the time a step waits.
"""

import json
import tempfile
from typing import Any

from absl import flags
from ml_collections import config_flags

from janus_jax import cli
from janus_jax.benchmarking import data, report, running
from janus_jax.benchmarking.subject import read_subject
from janus_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Recipe, a file of configs/.', lock_config=True)
_MODE = flags.DEFINE_enum('mode', None, ['train', 'generate', 'understand', 'data'], 'What is measured.', required=True)
_PEER = flags.DEFINE_enum('peer', None, ['transformers'], 'Who does the same work beside.')
_COMPILE_PEER = flags.DEFINE_bool('compile_peer', False, "Whether the peer's training step uses torch.compile.")
_STAGE = flags.DEFINE_string('stage', None, 'Of the config; default: its last one.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Runs, of which the median counts.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 10, 'Training steps in a run.', lower_bound=1)
_BATCH = flags.DEFINE_list('batch', ['1'], 'Images or questions at a time; several numbers: one after the other.')
_PROMPT_TOKENS = flags.DEFINE_integer('prompt_tokens', 32, 'Of a prompt or question, in tokens.', lower_bound=3)
_ANSWER_TOKENS = flags.DEFINE_integer('answer_tokens', 128, 'Of an answer.', lower_bound=2)
_PROFILE = flags.DEFINE_string('profile', '', 'Where a trace goes.')
_SECONDS = flags.DEFINE_float('seconds', 20.0, 'How long data is measured.', lower_bound=0.1)
_STEP_SECONDS = flags.DEFINE_float('step_seconds', 0.0, 'What a training step takes.', lower_bound=0.0)
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object on stdout.')
flags.mark_flag_as_required('config')


def main() -> None:
  found = report.rounded(_measured())
  print(json.dumps(found) if _JSON.value else report.to_text(found))


def _measured() -> dict[str, Any]:
  config = _CONFIG.value
  if _MODE.value == 'data':
    if _PEER.value:
      raise InputError('--peer: expected with --mode=train, generate or understand')
    with tempfile.TemporaryDirectory() as scratch:
      return data.measure(config, _STAGE.value, scratch, _SECONDS.value, _STEP_SECONDS.value)
  subject = read_subject(config, config_flags.get_config_filename(flags.FLAGS['config']))
  settings = running.Settings(_REPEATS.value, _STEPS.value, bool(_PEER.value), _COMPILE_PEER.value, _PROFILE.value)
  if _MODE.value == 'train':
    return running.train(subject, _STAGE.value, settings)
  batches, dtype = _batches(_BATCH.value), config.compute.dtype
  if _MODE.value == 'generate':
    return running.generate(subject, batches, _PROMPT_TOKENS.value, dtype, settings)
  return running.understand(subject, batches, _PROMPT_TOKENS.value, _ANSWER_TOKENS.value, dtype, settings)


def _batches(texts: list[str]) -> list[int]:
  if not texts or not all(text.strip().isdecimal() and int(text) > 0 for text in texts):
    raise InputError(f'--batch={",".join(texts)}: expected positive integers, as in --batch=1,16')
  return [int(text) for text in texts]


if __name__ == '__main__':
  cli.run(main)
