"""Rewards of samples by name: the toy world's judge, the model's own opinion, a Python function, a command."""

import contextlib
import importlib
import importlib.util
import json
import os
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import jax
import numpy as np
from PIL import Image

from janus_jax.data.examples import ExampleSpec, make_examples
from janus_jax.data.images import save_png, understanding_pixels
from janus_jax.data.packing import BatchShape, make_batch
from janus_jax.errors import InputError, one_line, shown
from janus_jax.inference.requests import LoadedJanus
from janus_jax.training.losses import log_probs
from janus_jax.training.preference_config import RewardConfig
from janus_jax.training.rollout import Reward
from janus_jax.training.run_config import row_length
from janus_jax.training.samples import Sample, SampledAnswer, SampledImage
from janus_jax.training.step_config import StepConfig

# Asked about a sampled image by the reward 'yes'.
QUESTION, ANSWERS = 'Does this image show exactly this: {prompt}? Answer yes or no.', ('Yes', 'No')
# Characters of what a command wrote on stderr that an error quotes.
QUOTED = 300


def open_reward(name: str, config: RewardConfig, toy: Callable[[], Any], step: StepConfig) -> Reward:
  """The reward of this name. `toy()` opens the toy world's judge; the model's own opinion is computed by `step`.

  Raises:
    InputError: a function or a file that is not there, a name that is neither built in nor has one of both.
  """
  if config.function:
    return of_first(_of_function(load_function(config.function, name), name))
  if config.command:
    return of_first(CommandReward(name, config.command, config.seconds))
  if step.preference.samples == 'answers':
    if name == 'answer':
      return _of_function(right_answer, name)
    built_in = 'answer'
  else:
    if name == 'toy':
      return _of_function(toy(), name)
    if name == 'yes':
      return yes_reward(step)
    built_in = 'toy or yes'
  raise InputError(f'reward {name!r} has neither a function nor a command: expected one, or one called {built_in}')


def of_first(reward: Reward) -> Reward:
  """A reward that process 0 alone computes, whose rewards all learn from; others give zeros."""
  return reward if not jax.process_index() else lambda samples, janus: np.zeros(len(samples))


def load_function(path: str, name: str) -> Callable[..., Any]:
  """The function MODULE:NAME or FILE.py:NAME of the reward `name`. Raises InputError where there is none."""
  module, _, attribute = path.rpartition(':')
  try:
    if module.endswith('.py'):
      spec = importlib.util.spec_from_file_location(f'reward_{name}', os.path.expanduser(module))
      found = importlib.util.module_from_spec(spec)
      spec.loader.exec_module(found)
    else:
      found = importlib.import_module(module)
    function = getattr(found, attribute)
  except (ImportError, OSError, AttributeError, ValueError, SyntaxError) as error:
    raise InputError(
      f'reward {name!r}: {path}: {one_line(error)}: expected MODULE:FUNCTION or FILE.py:FUNCTION'
    ) from None
  if not callable(function):
    raise InputError(f'reward {name!r}: {path} is a {type(function).__name__}: expected a function')
  return function


def _of_function(function: Callable[..., Any], name: str) -> Reward:
  """A reward of a function (records of the prompts, uint8[N, size, size, 3] or N answers) -> a number for each."""

  def reward(samples: Sequence[Sample], janus: LoadedJanus) -> np.ndarray:
    texts = [sample.text for sample in samples if isinstance(sample, SampledAnswer)]
    found = function([sample.record for sample in samples], texts or np.stack([sample.pixels for sample in samples]))
    return checked(found, len(samples), name)

  return reward


def right_answer(records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float]:
  """1 where an answer is the 'answer' of its record, or one of them where that is a list, else 0. Case, spaces and a
  full stop do not matter.
  """
  found = []
  for record, answer in zip(records, answers, strict=True):
    expected = record['answer']
    expected = expected if isinstance(expected, list | tuple) else [expected]
    found.append(float(_plain_text(answer) in {_plain_text(str(one)) for one in expected}))
  return found


def _plain_text(text: str) -> str:
  return ' '.join(text.casefold().split()).removesuffix('.')


def checked(values: Any, count: int, name: str) -> np.ndarray:
  """float64[count]. Raises InputError for anything but so many finite numbers."""
  try:
    found = np.asarray(values, np.float64)
  except (TypeError, ValueError):
    found = np.empty(0)
  if found.shape != (count,) or not np.isfinite(found).all():
    raise InputError(f'reward {name!r} gave {shown(values)} for {count} samples: expected a finite number for each')
  return found


def yes_reward(step: StepConfig) -> Reward:
  """The probability that the model itself answers yes rather than no when asked whether it sees what was asked for, by
  the log-probabilities that it gives both answers.
  """
  compiled = jax.jit(log_probs, static_argnames='config')

  def reward(samples: Sequence[SampledImage], janus: LoadedJanus) -> np.ndarray:
    config, (tokenizer, template) = janus.config, janus.tokenizer_and_template()
    sizes = {'num_codes': config.vq.num_tokens, 'image_size': config.image_size, 'generation_size': None}
    spec = ExampleSpec(
      tokenizer,
      template,
      num_image_tokens=config.num_image_tokens,
      max_length=config.language_model.max_positions,
      **sizes,
    )
    examples = []
    for sample in samples:
      image = understanding_pixels(Image.fromarray(sample.pixels), config.image_size)
      for answer in ANSWERS:
        turns = [QUESTION.format(prompt=sample.record['prompt']), answer]
        examples += make_examples('understanding', {'images': [image], 'turns': turns}, spec, np.random.default_rng())
    shape = BatchShape(len(examples), row_length(max(len(one.tokens) for one in examples)), len(examples), 0)
    batch = make_batch(examples, range(len(examples)), shape, **sizes)
    found = np.asarray(compiled(janus.params, batch, step), np.float64).sum(axis=1).reshape(-1, 2)
    return np.exp(found[:, 0] - np.logaddexp(*found.T))

  return reward


class CommandReward:
  """A reward of another program, which reads a JSON object a line, {"prompt", ..., "image": path of a PNG} or
  {"prompt", ..., "response": answer}, and writes {"reward": number} a line, in the same order. It is started once, by a
  shell, and ends when its input does.
  """

  def __init__(self, name: str, command: str, seconds: float):
    """`seconds` is how long the samples of one update may take."""
    self._name, self._command, self._seconds = name, command, seconds
    self._process: subprocess.Popen | None = None
    self._errors: IO[bytes] | None = None

  def __call__(self, samples: Sequence[Sample], janus: LoadedJanus) -> np.ndarray:
    """Raises InputError where the program ends, takes too long or writes something else."""
    if self._process is None:
      self._errors = tempfile.TemporaryFile()  # noqa: SIM115, open as long as the program runs
      pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': self._errors}
      self._process = subprocess.Popen(self._command, shell=True, text=True, bufsize=1, start_new_session=True, **pipes)
    with tempfile.TemporaryDirectory(prefix='janus_jax_rewards_') as directory:
      requests = []
      for number, sample in enumerate(samples):
        if isinstance(sample, SampledAnswer):
          found = {'response': sample.text}
        else:
          found = {'image': os.path.join(directory, f'{number:04}.png')}
          save_png(found['image'], sample.pixels, {})
        requests.append(json.dumps(_plain(sample.record) | found))
      lines = self._ask(requests)
    try:
      found = [json.loads(line)['reward'] for line in lines]
    except (ValueError, KeyError, TypeError):
      raise self._error(f'wrote {shown(lines[-1])}: expected {{"reward": number}}') from None
    return checked(found, len(samples), self._name)

  def _ask(self, requests: Sequence[str]) -> list[str]:
    """A line for each request. Reading and writing do not wait for each other: either pipe may be full."""
    process, lines = self._process, []

    def write() -> None:
      with contextlib.suppress(OSError, ValueError):
        process.stdin.write(''.join(f'{request}\n' for request in requests))
        process.stdin.flush()

    def read() -> None:
      with contextlib.suppress(OSError, ValueError):
        while len(lines) < len(requests) and (line := process.stdout.readline()):
          lines.append(line)

    threads = [threading.Thread(target=target, daemon=True) for target in (write, read)]
    for thread in threads:
      thread.start()
    threads[1].join(self._seconds)
    if len(lines) < len(requests):
      is_late = threads[1].is_alive()
      found = f'{len(lines)} of {len(requests)} rewards'
      raise self._error(f'gave {found} in {self._seconds:g} s' if is_late else f'ended after {found}')
    return lines

  def _error(self, what: str) -> InputError:
    """Ends the program; an error with what it said last."""
    self.close()
    self._errors.seek(0)
    said = ' '.join(self._errors.read().decode('utf-8', 'replace').split())[-QUOTED:]
    return InputError(f'reward {self._name!r}: {shlex.quote(self._command)} {what}' + (f' ({said})' if said else ''))

  def close(self) -> None:
    """Ends the program."""
    if self._process is not None:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self._process.pid, 15)
      self._process.wait()
      self._process = None


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a record that JSON can express."""
  return {name: value for name, value in record.items() if isinstance(value, str | int | float | bool | list | dict)}
