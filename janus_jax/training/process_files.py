"""Files of a checkpoint of which each process writes its own."""

import concurrent.futures
import json
from typing import Any

import jax
from etils import epath


class ProcessJson:
  """JSON of which each process has its own, in Orbax's protocol of things that save themselves."""

  def __init__(self, value: Any):
    self._text = json.dumps(value)  # Now: the owner may change it while the save goes on.

  async def save(self, directory: Any) -> Any:
    return self._write(directory)

  async def _write(self, directory: Any) -> None:
    path = await directory.await_creation()
    (path / _process_file(jax.process_index(), jax.process_count())).write_text(self._text)

  async def load(self, directory: Any) -> Any:
    # Orbax's protocol asks for it and nothing calls it: metadata and data state are read before the arrays are.
    raise NotImplementedError('read by read_process_jsons')


def read_process_jsons(directory: epath.Path) -> list[Any]:
  """Of each process that saved, however many there are now."""
  found = [path.name for path in directory.glob('process_*-of-*.json')]
  if not found:
    raise FileNotFoundError(f'{directory}: no file of a process')
  count = int(found[0].removesuffix('.json').rsplit('-', 1)[1])
  with concurrent.futures.ThreadPoolExecutor(32) as pool:
    paths = [directory / _process_file(index, count) for index in range(count)]
    return [json.loads(text) for text in pool.map(epath.Path.read_text, paths)]


def _process_file(index: int, count: int) -> str:
  return f'process_{index}-of-{count}.json'
