"""Files that appear whole or not at all."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike, shared: bool = False) -> Iterator[str]:
  """A path to write to, whose file takes the place of `path` where the block ends well, and is removed where it fails.

  Several processes may write a `shared` file at once. What a killed one leaves behind then stays; else the next writer
  overwrites it.
  """
  partial = f'{os.fspath(path)}.{uuid.uuid4().hex}.partial' if shared else f'{os.fspath(path)}.partial'
  try:
    yield partial
    os.replace(partial, path)
  finally:
    with contextlib.suppress(OSError):
      os.remove(partial)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Replaces a file by text in UTF-8."""
  with replacing(path) as partial, open(partial, 'w', encoding='utf-8') as file:
    file.write(text)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Replaces a file by JSON."""
  write_text(path, f'{json.dumps(value, indent=2)}\n')
