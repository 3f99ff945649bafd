"""Paths in the directory of a sweep, and locks between processes that share it."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from janus_jax.conversion.checkpoint import read_json
from janus_jax.data.whole_files import write_json
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
