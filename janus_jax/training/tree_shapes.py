"""Compares the names and shapes of two trees of arrays, for messages that say which differ."""

from collections.abc import Mapping
from typing import Any

import jax

from janus_jax.errors import InputError

NAMES_SHOWN = 5  # Of each list in a message.

Shapes = Mapping[str, tuple[int, ...]]


def tree_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """'/'-joined path -> shape of every leaf; fields of dataclasses and positions in tuples are steps of a path too."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape) for path, leaf in leaves}


def check_shapes(expected: Shapes, found: Shapes, where: str) -> None:
  """Raises InputError with what is missing from `found`, unexpected in it, or of another shape; `where` is for it."""
  both = [name for name in expected if name in found]
  problems = {
    'missing': [name for name in expected if name not in found],
    'unexpected': [name for name in found if name not in expected],
    'of another shape': [f'{n} {found[n]} not {expected[n]}' for n in both if found[n] != expected[n]],
  }
  texts = [f'{len(names)} {kind} ({_some(names)})' for kind, names in problems.items() if names]
  if texts:
    raise InputError(f'{where}: not the tree of this run: {"; ".join(texts)}')


def _some(names: list[str]) -> str:
  return ', '.join(names[:NAMES_SHOWN]) + (', ...' if len(names) > NAMES_SHOWN else '')
