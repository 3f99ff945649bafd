"""Where things lie in the directory of a sweep, and how several processes keep out of each other's way there."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from janus_jax.conversion.checkpoint import read_json
from janus_jax.data.whole_files import write_json
from janus_jax.training.ownership import locked


class SweepPaths:
  """The directory of a sweep.

  parts/HASH      pretrained parts, a checkpoint
  data/           the rendered worlds
  codes/          of their pictures, by the parts whose tokenizer made them
  runs/NAME       training workdirs
  scores/NAME     what `janus_jax.evaluate --out` writes
  results/NAME.json   what a run is, and what was measured of it
  """

  def __init__(self, root: str):
    self.root = os.path.abspath(root)

  def of(self, *names: str) -> str:
    return os.path.join(self.root, *names)

  def read_results(self) -> dict[str, dict[str, Any]]:
    """Run name -> what `write_result` wrote, of all runs that were ever begun here."""
    directory = self.of('results')
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    return {name.removesuffix('.json'): read_json(self.of('results', name)) for name in names if name.endswith('.json')}

  def write_result(self, name: str, result: Mapping[str, Any]) -> None:
    """Replaces what is there at once, or not at all."""
    os.makedirs(self.of('results'), exist_ok=True)
    path = self.of('results', f'{name}.json')
    write_json(path, result)

  @contextlib.contextmanager
  def alone(self, name: str) -> Iterator[None]:
    """Waits until no other process works on what `name` stands for. The lock of a process that dies is gone."""
    os.makedirs(self.of('locks'), exist_ok=True)
    with locked(self.of('locks', name), name, wait=True):
      yield
