"""Numbers, images and answers of a run, written to metrics.jsonl, TensorBoard, Weights & Biases and samples/."""

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.data.examples import TASKS
from janus_jax.data.images import save_png
from janus_jax.data.whole_files import replacing
from janus_jax.errors import InputError
from janus_jax.training.event_files import EventFile

METRICS_FILE = 'metrics.jsonl'
SAMPLES_DIRECTORY = 'samples'
TENSORBOARD_DIRECTORY = 'tensorboard'
# Metrics on the terminal, in this order and by these names; the file has everything.
SHOWN = {
  'loss': 'loss',
  **dict(zip([f'loss/{task}' for task in TASKS], ('und', 'text', 'gen'))),
  'reward': 'reward',
  'divergence': 'kl',
  'pairs_right': 'pairs',
  'learning_rate': 'lr',
  'grad_norm': 'grad',
  'tokens_per_second': 'tok/s',
  'mfu': 'mfu',
}
WIDTH = 100  # Characters of a line of the log.


class MetricWriter(contextlib.AbstractContextManager):
  """Writer of one run's metrics into its workdir; a context manager. Where it is not `enabled` it does nothing.

  metrics.jsonl has one object per line: {"step", "stage", "time" (seconds since the epoch), and the values}.
  """

  def __init__(
    self,
    workdir: str,
    *,
    resume_step: int = 0,
    enabled: bool = True,
    wandb_project: str = '',
    config: Mapping[str, Any] | None = None,
  ):
    """Opens the files and cuts off what a run that resumes had written beyond its checkpoint.

    Args:
      workdir: existing directory.
      resume_step: step of the checkpoint that the run resumes from, 0 for a new one. Later lines go.
      enabled: False in all processes but the first.
      wandb_project: project of Weights & Biases; '' does without.
      config: what Weights & Biases shows as the run's configuration.

    Raises:
      InputError: wandb is asked for and not installed.
      OSError: the workdir cannot be written.
    """
    self._workdir, self._enabled = workdir, enabled
    if not enabled:
      return
    self._wandb = _start_wandb(workdir, wandb_project, config) if wandb_project else None
    path = os.path.join(workdir, METRICS_FILE)
    truncate_metrics(path, resume_step)
    self._file = open(path, 'a', encoding='utf-8')  # noqa: SIM115, closed by close()
    purge_from = resume_step + 1 if resume_step else None
    self._events = EventFile(os.path.join(workdir, TENSORBOARD_DIRECTORY), purge_from)

  def __exit__(self, *_: Any) -> None:
    self.close()

  def write(self, step: int, stage: str, values: Mapping[str, float | int]) -> None:
    """Writes a line of metrics.jsonl, and a point of each curve. NaN and infinity become null in the file."""
    if not self._enabled:
      return
    numbers = {name: _number(value) for name, value in values.items()}
    line = {'step': int(step), 'stage': stage, 'time': round(time.time(), 3)}
    finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    # Flushed line by line: a process that is killed loses none.
    print(json.dumps({**line, **finite}, allow_nan=False), file=self._file, flush=True)
    for name, value in numbers.items():
      self._events.scalar(step, name, value)
    if self._wandb:
      self._wandb.log({**numbers, 'stage': stage}, step=int(step))

  def write_images(self, step: int, name: str, images: Sequence[np.ndarray], captions: Sequence[str]) -> list[str]:
    """Writes images uint8[h, w, 3] to samples/<step>/<name>_<i>_<caption>.png, with the caption as a text chunk too.

    Returns:
      the paths written.

    Raises:
      InputError: not as many captions as images, or a file cannot be written.
    """
    if len(captions) != len(images):
      raise InputError(f'{len(captions)} captions for {len(images)} images of {name}: expected one each')
    if not self._enabled:
      return []
    directory, paths = self._sample_directory(step), []
    for i, (image, caption) in enumerate(zip(images, captions)):
      words = re.sub(r'\W+', '_', caption).strip('_')[:40]
      paths.append(os.path.join(directory, f'{name}_{i}_{words}.png'))
      save_png(paths[-1], image, {'caption': caption})
      with open(paths[-1], 'rb') as file:
        self._events.image(step, f'{name}/{i}', file.read(), *image.shape[:2])
    self._events.text(step, f'{name}/captions', _numbered(captions))
    if self._wandb:
      import wandb

      shown = [wandb.Image(path, caption=caption) for path, caption in zip(paths, captions)]
      self._wandb.log({name: shown}, step=int(step))
    return paths

  def write_texts(self, step: int, name: str, texts: Sequence[str]) -> None:
    """Writes texts to samples/<step>/<name>.txt, as JSON strings, one per line."""
    if not self._enabled:
      return
    with open(os.path.join(self._sample_directory(step), f'{name}.txt'), 'w', encoding='utf-8') as file:
      file.writelines(json.dumps(text, ensure_ascii=False) + '\n' for text in texts)
    self._events.text(step, name, _numbered(texts))
    if self._wandb:
      self._wandb.log({name: _numbered(texts)}, step=int(step))

  def _sample_directory(self, step: int) -> str:
    path = os.path.join(self._workdir, SAMPLES_DIRECTORY, f'{step:08}')
    os.makedirs(path, exist_ok=True)
    return path

  def close(self) -> None:
    """Ends the files; may be called twice."""
    if not self._enabled:
      return
    self._enabled = False
    self._file.close()
    self._events.close()
    if self._wandb:
      self._wandb.finish()


def truncate_metrics(path: str, last_step: int) -> None:
  """Removes the lines after `last_step`, and a last line that was cut short, at once or not at all."""
  if not os.path.exists(path):
    return
  with open(path, encoding='utf-8', errors='replace') as file:
    lines = file.readlines()
  kept = [line for line in lines if (step := _step_of(line)) is not None and step <= last_step]
  if len(kept) < len(lines):
    with replacing(path) as partial, open(partial, 'w', encoding='utf-8') as file:
      file.writelines(kept)


def read_metrics(path: str) -> list[dict[str, Any]]:
  """The lines of a metrics.jsonl; an unfinished last line is left out."""
  with open(path, encoding='utf-8', errors='replace') as file:
    return [json.loads(line) for line in file if _step_of(line) is not None]


def format_line(step: int, stage: str, metrics: Mapping[str, float | int]) -> str:
  """'step 120 stage2  loss 2.345  lr ...': SHOWN and skipped updates and records, in lines of at most WIDTH."""
  values = {shown: metrics[name] for name, shown in SHOWN.items() if name in metrics}
  values |= {name: metrics[name] for name in ('skipped', 'skipped_records') if metrics.get(name)}
  lines = [f'step {step} {stage}']
  for name, value in values.items():
    part = f'  {name} {_short(_number(value))}'
    if len(lines[-1] + part) > WIDTH:
      lines.append('   ')
    lines[-1] += part
  return '\n'.join(lines)


def _short(value: float | int) -> str:
  return str(value) if isinstance(value, int) else f'{value:,.0f}' if 1000 <= abs(value) < 1e9 else f'{value:.3g}'


def _number(value: Any) -> float | int:
  """A Python number of a Python, numpy or jax scalar; integers stay integers."""
  return np.asarray(value).item()


def _numbered(texts: Sequence[str]) -> str:
  return '\n'.join(f'{i}. {text}' for i, text in enumerate(texts))


def _step_of(line: str) -> int | None:
  """The step of a line; None if the line is not whole."""
  if not line.endswith('\n'):
    return None
  try:
    step = json.loads(line)['step']
  except (ValueError, KeyError, TypeError):
    return None
  return step if isinstance(step, int) else None


def _start_wandb(workdir: str, project: str, config: Mapping[str, Any] | None) -> Any:
  try:
    import wandb
  except ImportError:
    raise InputError('Weights & Biases is asked for and not installed: pip install wandb') from None
  return wandb.init(dir=workdir, config=dict(config or {}), resume='allow', project=project)
