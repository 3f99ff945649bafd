"""The progress of a run: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
from typing import Any, TextIO

import tqdm


class Progress(contextlib.AbstractContextManager):
  """A bar on a terminal, with lines scrolling above it; in a file or a pipe only the lines. A context manager."""

  def __init__(self, total: int, initial: int = 0, stream: TextIO | None = None, enabled: bool = True):
    """
    Args:
      total: steps of the whole run.
      initial: steps done before: a resumed run's bar starts there, its rate and remaining time count from there.
      stream: default stderr.
      enabled: False shows nothing: the processes of a pod other than the first.
    """
    self._stream, self._enabled = stream or sys.stderr, enabled
    options = {
      'unit': 'step',
      'dynamic_ncols': True,
      'smoothing': 0.1,
      'disable': not (enabled and self._stream.isatty()),
    }
    self._bar = tqdm.tqdm(total=total, initial=initial, file=self._stream, **options)

  def __exit__(self, *_: Any) -> None:
    self._bar.close()

  def update(self, label: str = '', steps: int = 1) -> None:
    """Advances the bar; `label` (the stage) stands before it."""
    if label:
      self._bar.set_description_str(label, refresh=False)
    self._bar.update(steps)

  def log(self, line: str) -> None:
    """Prints a line, above the bar where there is one; flushed, so that a log can be followed."""
    if not self._enabled:
      return
    if self._bar.disable:
      print(line, file=self._stream, flush=True)
    else:
      self._bar.write(line, file=self._stream)
