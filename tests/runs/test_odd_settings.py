"""Every field of a config with every odd value: refused by one line that names it, or on a list of legal ones."""

import copy
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from ml_collections import ConfigDict
from recipes import ROOT, recipe

from janus_jax.errors import InputError
from janus_jax.runs.config import SECTIONS, TrainConfig
from janus_jax.runs.config import parse_config as parse_config
from janus_jax.runs.config_checks import FIELDS
from janus_jax.toy.parts import check_parts

RECIPES = sorted(path.relative_to(ROOT / 'configs') for path in (ROOT / 'configs').rglob('*.py'))
ODD = (
  0,
  -1,
  1.5,
  math.nan,
  math.inf,
  -math.inf,
  10**30,
  True,
  '',
  'x',
  None,
  (),
  (1,),
  {},
  [0],
  b'x',
  'a\nb',
  object(),
)
# Odd values that make sense all the same: a value, and the fields that may have it.
LEGAL = (
  (
    0,
    r'data\.(num_train|toy_grid)|guidance_dropout|held_out_batches|keep_every|max_bad_record_fraction|eval_every|patience|prefetch|seed|'
    r'evaluation\.(every|rows|toy)|refining\.(code_noise|ema_decay|final_fraction|learning_rate|warmup_steps|weight_decay)|'
    r'optimizer\.(b1|b2|ema_decay)|sampling\..*|streams|watchdog_factor|workers|pretraining\.\w+\.(learning_rate|'
    r'warmup_steps)|pretraining\.contrast\.near_misses|stages\.\w+\.(accumulation|(image|generation)_size|\w+_per_row|final_fraction|learning_rate|warmup_steps|weight_decay|'
    r'lora\.rank|preference\.(beta|cfg_weight|supervised)|sources\.(?!text)\w+\.\w+)|stages\.stage1\.sources\.text\.captions',
  ),
  (-1, r'mesh\.\w+|workers'),
  (
    1.5,
    r'optimizer\.(eps|max_grad_norm)|sampling\.(cfg_weight|temperature)|watchdog_factor|pretraining\.\w+\.learning_rate|refining\.(learning_rate|weight_decay)|'
    r'stages\.\w+\.(\w+_per_row|learning_rate|lora\.alpha|weight_decay|preference\.(beta|cfg_weight|supervised|temperature))',
  ),
  (True, r'data\.precompute_codes|shared_encoder|stages\.\w+\.carry_moments'),
  (
    '',
    r'data\.directory|evaluation\.data|init_from|template|wandb_project|stages\.\w+\.(lora\.base_dtype|preference\.(pairs|prompts))|data\.sources\.\w+\.(answer|directory|names|prompt|split)',
  ),
  (
    'x',
    r'data\.directory|evaluation\.data|init_from|wandb_project|stages\.\w+\.preference\.(pairs|prompts)|'
    r'data\.sources\.\w+\.(answer|directory|names|path|prompt|split)',
  ),
  ('a\nb', r'data\.sources\.\w+\.(answer|directory|names|path|prompt|split)'),
  ((), r'evaluation\.benchmarks|optimizer\.(muon|\w+_rules)|stages\.\w+\.preference\.skills'),
  # Sections that may be empty.
  ({}, r'data\.sources|pretraining(\.contrast)?|stages\.(stage1\.sources\.text|\w+\.(lora|preference(\.rewards)?))'),
)


def is_legal(field: str, value: Any) -> bool:
  return any(type(value) is type(odd) and value == odd and re.fullmatch(where, field) for odd, where in LEGAL)


def leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
  for name, value in values.items():
    yield (*path, name)
    if isinstance(value, dict):
      yield from leaves(value, (*path, name))


def with_value(values: Mapping[str, Any], path: tuple[str, ...], value: Any) -> ConfigDict:
  changed = copy.deepcopy(dict(values))
  node = changed
  for name in path[:-1]:
    node = node[name]
  node[path[-1]] = value
  return ConfigDict(changed)


@pytest.mark.parametrize('path', RECIPES, ids=str)
def test_the_table_has_every_field_of_every_recipe(path):
  """A new field without a check is refused here as unknown."""
  config = recipe(str(path.with_suffix('')))
  if path.parent.name == 'ablations':
    check_parts(parse_config(config.base).pretraining)
  else:
    parse_config(config)


def test_the_table_has_no_field_that_nothing_reads():
  # Set by what uses them, not by a config.
  own = {'compute': {'param_dtype', 'integer_products', 'layout'}, 'sampling': {'top_p'}, 'stages.*': {'name'}}
  for section, kind in {'': TrainConfig, **SECTIONS}.items():
    table = functools.reduce(lambda table, name: table[name], filter(None, section.split('.')), FIELDS)
    assert set(table) | own.get(section, set()) == {field.name for field in dataclasses.fields(kind)}, section


# Recipes, and what is looked at in them.
LOOKED_AT = {'tiny': (), 'data/tfds': ('data', 'sources'), 'refiner': ('refining',)}


@pytest.mark.parametrize('name', LOOKED_AT)
def test_odd_values_of_a_config_are_refused_by_name(name):
  values, first = recipe(name).to_dict(), LOOKED_AT[name]
  paths = [path for path in leaves(values) if path[: len(first)] == first]
  wrong, refused = [], 0
  for path in paths:
    field = '.'.join(path)
    for odd in ODD:
      try:
        parse_config(with_value(values, path, odd), 'variant a: ')
        if not is_legal(field, odd):
          wrong.append(f'{field} = {odd!r} is accepted')
      except InputError as error:
        refused += 1
        if is_legal(field, odd):
          wrong.append(f'{field} = {odd!r} is refused: {error}')
        named = path[0] if len(path) == 1 else '.'.join(path[:2])
        if not str(error).startswith('variant a: ') or '\n' in str(error) or len(str(error)) > 400:
          wrong.append(f'{field} = {odd!r}: {error}')
        if named not in str(error) and (field, odd) != ('stages', {}):  # Then `run` names none that is there.
          wrong.append(f'{field} = {odd!r} is not named: {error}')
  assert not wrong, '\n'.join(wrong)
  assert refused > (1000 if name == 'tiny' else 100)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'optimizer.b1': 1.5}, r'^optimizer\.b1 is 1\.5: expected a number from 0 to below 1$'),
    ({'stages.stage2.steps': True}, r'^stages\.stage2\.steps is True: expected an integer, 1 or more$'),
    ({'stages.stage2.steps': 10**9}, r'^stages\.stage2\.steps is 1000000000: expected at most 100000000$'),
    ({'compute.dtype': 'bf16'}, r"^compute\.dtype is 'bf16': expected one of float32, bfloat16, float16$"),
    ({'optimizer.moment_dtype': 'float8'}, r"^optimizer\.moment_dtype is 'float8': expected one of float32, bfloat16$"),
    ({'sequence_lenght': 4}, r'^sequence_lenght is unknown: did you mean sequence_length\?$'),
    ({'mesh.fsdp': 0}, r'^mesh\.fsdp is 0: expected 1 or more or -1$'),
    ({'optimizer.learning_rate_rules': (('(', 1.0),)}, r"expected regular expressions, which '\(' is not$"),
    ({'stages.stage2.sources.drawing': {}}, r'^stages\.stage2\.sources\.drawing is unknown: did you mean '),
    ({'data.toy_shapes': 7}, r'^data\.toy_shapes is 7: expected 3 to 6$'),
    ({'data.toy_colours': 1}, r'^data\.toy_colours is 1: expected 2 to 8$'),
    ({'data.toy_sizes': 4}, r'^data\.toy_sizes is 4: expected 2 to 3$'),
    ({'data.toy_combinations': 0}, r'^data\.toy_combinations is 0: expected 1 or more$'),
    ({'data.toy_mixture': (1, 2)}, r'^data\.toy_mixture is \(1, 2\): expected one:alike:two, each a number, 0 or more'),
    ({'data.toy_mixture': (0, 0, 0)}, r'^data\.toy_mixture is \(0, 0, 0\): .* not all 0$'),
    (
      {'evaluation.toy': 3, 'data.name': 'files'},
      r"^evaluation\.toy is 3: expected 0, as data\.name is 'files'$",
    ),
    ({'pretraining.contrast': {'near_misses': 7}}, r'^pretraining\.contrast\.near_misses is 7: expected 0 to 6$'),
    ({'data.sources': {'mine': {}}}, r"^data\.sources is set and data\.name is 'toy': expected data\.name 'files'$"),
    ({'pretraining.vision.warmup_steps': 1700}, r'^pretraining\.vision\.warmup_steps is 1700: .* steps \(1700\)$'),
    ({'wandb_project': 'x' * 300 + '\n'}, r"^wandb_project is 'x{79}\.\.\.: expected text$"),
  ],
)
def test_what_is_said_of_a_value(change, message):
  config = recipe('tiny')
  with config.unlocked(), config.ignore_type():
    for name, value in change.items():
      *parents, last = name.split('.')
      node = config
      for part in parents:
        node = node[part]
      node[last] = value
  with pytest.raises(InputError, match=message):
    parse_config(config)


def test_a_field_that_is_not_there_is_named():
  config = recipe('tiny')
  del config.optimizer['eps']
  with pytest.raises(InputError, match=r'^optimizer\.eps is missing$'):
    parse_config(config)
  config = recipe('tiny')
  del config.pretraining['vision']
  pretraining = parse_config(config).pretraining
  with pytest.raises(InputError, match=r'^pretraining\.vision is missing$'):
    check_parts(pretraining)
