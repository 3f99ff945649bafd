"""Descriptions of the fields of a config, read off the dataclasses that own them: what `--help` lists."""

import fnmatch
import inspect
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from janus_jax.data.sources.build import SourceSpec
from janus_jax.data.sources.records import Fields
from janus_jax.runs.config import SECTIONS, STAGE_DEFAULTS, defaults_of, filled
from janus_jax.runs.config_checks import OPTIMIZATION, REFINING, STAGE
from janus_jax.runs.recipes import flat_fields


def every_field() -> dict[str, Any]:
  """All fields of a training config with their defaults, `...` where one has none."""
  trainer = dict.fromkeys(OPTIMIZATION.keys() - defaults_of(SECTIONS['pretraining.vq']), ...)
  stages = {'NAME': dict.fromkeys(STAGE.keys() - STAGE_DEFAULTS, ...)}
  refining = dict.fromkeys(REFINING.keys() - defaults_of(SECTIONS['refining']), ...)
  parts = dict.fromkeys(('vq', 'vision', 'decoder'), trainer)
  return filled({'stages': stages, 'pretraining': parts, 'refining': refining})


def describe_fields(values: Mapping[str, Any], width: int) -> str:
  """A line `--config.FIELD=VALUE` for each field of a recipe, section by section, and below it what the field means."""
  margin = {'initial_indent': ' ' * 6, 'subsequent_indent': ' ' * 6}
  lines = []
  for path, value in sorted(flat_fields(values).items(), key=lambda field: field[0].rpartition('.')):
    section, _, name = path.rpartition('.')
    lines.append(f'  --config.{path}={"..." if value is ... else repr(value)}')
    lines += textwrap.wrap(_description(section.removeprefix('base').removeprefix('.'), name), width, **margin)
  return '\n'.join(lines)


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
