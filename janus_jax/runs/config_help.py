"""Descriptions of the fields of a config for --help, from the docstrings of the dataclasses that own them."""

import fnmatch
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from janus_jax.data.sources.build import SourceSpec
from janus_jax.data.sources.records import Fields
from janus_jax.runs.config import SECTIONS, STAGE_DEFAULTS, defaults_of, filled
from janus_jax.runs.config_checks import OPTIMIZATION, STAGE


def every_field() -> dict[str, Any]:
  """All fields of a training config with their defaults, `...` where one has none."""
  trainer = dict.fromkeys(OPTIMIZATION.keys() - defaults_of(SECTIONS['pretraining.vq']), ...)
  stages = {'NAME': dict.fromkeys(STAGE.keys() - STAGE_DEFAULTS, ...)}
  return filled({'stages': stages, 'pretraining': dict.fromkeys(('vq', 'vision', 'decoder'), trainer)})


def describe_fields(values: Mapping[str, Any], width: int) -> str:
  """A line `--config.FIELD=VALUE` for each field of a recipe, section by section, and below it what the field means."""
  margin = {'initial_indent': ' ' * 6, 'subsequent_indent': ' ' * 6}
  lines = []
  for section, name, value in sorted(_flat(values), key=lambda field: field[:2]):
    shown = '...' if value is ... else repr(value)
    lines.append(f'  --config.{section}{"." if section else ""}{name}={shown}')
    lines += textwrap.wrap(_description(section.removeprefix('base').removeprefix('.'), name), width, **margin)
  return '\n'.join(lines)


def _flat(values: Mapping[str, Any], section: str = '') -> Iterator[tuple[str, str, Any]]:
  """Section, name and value of nested fields."""
  for name, value in values.items():
    if isinstance(value, Mapping) and value:
      yield from _flat(value, f'{section}.{name}' if section else name)
    else:
      yield section, name, value


def _description(section: str, name: str) -> str:
  kinds = [kind for pattern, kind in SECTIONS.items() if fnmatch.fnmatchcase(section, pattern)]
  kinds += [SourceSpec, Fields] if section.startswith('data.sources.') else []
  return next((text for kind in kinds if (text := field_descriptions(kind).get(name))), '')


def field_descriptions(kind: type) -> dict[str, str]:
  """Attributes of a dataclass and their descriptions in its docstring and those of its bases."""
  found = {}
  for base in reversed(kind.__mro__):
    entries = re.findall(r'^  (\w+): (.*(?:\n    .*)*)', inspect.cleandoc(base.__doc__ or ''), re.MULTILINE)
    found |= {name: ' '.join(text.split()) for name, text in entries}
  return found
