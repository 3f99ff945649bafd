"""What every field of a training config may be: one table, applied before anything is loaded or written."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from janus_jax.data.resizing import RESIZES
from janus_jax.data.sources.build import read_specs
from janus_jax.errors import InputError
from janus_jax.models.attention import IMPLEMENTATIONS
from janus_jax.models.config import PRESETS
from janus_jax.models.layers import REMAT_POLICIES
from janus_jax.sharding.mesh import AXES
from janus_jax.toy.pretraining import Optimization
from janus_jax.toy.pretraining_vq import Quantisation
from janus_jax.training.defaults import default_config
from janus_jax.training.optimizer import STORED_DTYPES
from janus_jax.training.stages import STAGE, read_stages
from janus_jax.training.step import MODES
from janus_jax.training.value_checks import (
  SEED,
  Bool,
  Entries,
  Factors,
  Integer,
  Names,
  Number,
  OneOf,
  Table,
  Text,
  check_fields,
)

COMPUTE_DTYPES = OneOf(('float32', 'bfloat16', 'float16'))
KERNELS = OneOf(('auto', *IMPLEMENTATIONS))
AXIS = Integer(1, others=(-1,))
FRACTION = Number(0, 1)
DECAY = Number(0, 1, below=True)
POSITIVE = Number(above=True)

# Of a generated image; flags of the commands that make some are checked by them too.
SAMPLING: Table = {'cfg_weight': Number(), 'temperature': Number(), 'top_k': Integer(), 'num_images': Integer(0, 10**6)}

_OPTIMIZATION: Table = {
  'steps': Integer(1, 10**8),
  'batch_size': Integer(1, 10**6),
  'learning_rate': Number(0, 100),
  'warmup_steps': Integer(),
  'final_fraction': FRACTION,
  'b2': DECAY,
  'weight_decay': Number(0, 100),
  'max_grad_norm': POSITIVE,
}
PRETRAINING: Table = {
  'model': OneOf(tuple(PRESETS)),
  'vq': _OPTIMIZATION,
  'quantisation': {
    'commitment_weight': Number(),
    'locality_weight': Number(),
    'unquantised_steps': Integer(1),
    'restart_every': Integer(1),
    'restart_until': FRACTION,
  },
  'vision': _OPTIMIZATION,
  'contrast': {'text_depth': Integer(1), 'temperature': POSITIVE, 'bias': Number(-float('inf'))},
  'decoder': _OPTIMIZATION,
}

# As defaults.py has the fields, where they are described. `data.sources` is checked by `build.read_specs`.
FIELDS: Table = {
  'init_from': Text(),
  'template': OneOf(('', 'deepseek', 'deepseek_old')),
  'seed': SEED,
  'shared_encoder': Bool(),
  'stages': {'*': STAGE},
  'run': Names(),
  'stage_masks': OneOf(MODES),
  'data': {
    'name': OneOf(('embedded', 'files')),
    'directory': Text(),
    'world_grid': Integer(),
    'num_train': Integer(1),
    'sources': Entries(),
    'precompute_codes': Bool(),
    'resize': OneOf(tuple(RESIZES)),
  },
  'sequence_length': Integer(1),
  'guidance_dropout': FRACTION,
  'prefetch': Integer(),
  'workers': Integer(0, 1024),
  'streams': Integer(),
  'max_bad_record_share': FRACTION,
  'compute': {
    'dtype': COMPUTE_DTYPES,
    'vq_dtype': COMPUTE_DTYPES,
    'remat': OneOf(('auto', *REMAT_POLICIES)),
    'unroll': Integer(1),
    'attention': KERNELS,
    'vision_attention': KERNELS,
  },
  'accumulation': Integer(1),
  'loss_chunk': Integer(1),
  'optimizer': {
    'b1': DECAY,
    'b2': DECAY,
    'eps': POSITIVE,
    'max_grad_norm': POSITIVE,
    'learning_rate_rules': Factors(),
    'weight_decay_rules': Factors(),
    'ema_decay': DECAY,
    'moment_dtype': OneOf(STORED_DTYPES),
    'gradient_sum_dtype': OneOf(STORED_DTYPES),
  },
  'max_skipped_in_a_row': Integer(1),
  'watchdog_factor': Number(),
  'mesh': dict.fromkeys(AXES, AXIS),
  'log_every': Integer(1),
  'observe_every': Integer(),
  'held_out_batches': Integer(0, 10**6),
  'save_every': Integer(1),
  'keep_last': Integer(1),
  'keep_every': Integer(),
  'wandb_project': Text(),
  'sampling': SAMPLING,
  'pretraining': PRETRAINING,
}


def check_config(config: ConfigDict, where: str = '') -> None:
  """Checks every field of a training config, and those that depend on each other, before anything is loaded.

  Args:
    config: of a run (training/defaults.py), with `pretraining` or without.
    where: begins the line that says what is wrong, as 'variant long: '.

  Raises:
    InputError: a field that is missing, unknown or has a value that makes no sense, by its dotted name.
  """
  try:
    values = config.to_dict()
    _check_present(values, default_config().to_dict())
    check_fields(values, FIELDS)
    read_stages(config)
    if config.data.name == 'files':
      read_specs(values['data']['sources'])
    if 'pretraining' in values:
      _check_pretraining(values['pretraining'])
  except InputError as error:
    raise InputError(f'{where}{error}') from None


def set_floats(config: ConfigDict, table: Table = FIELDS) -> None:
  """Makes floats of the integers in fields for numbers: `weight_decay = 0` in a recipe, then 0.1 on a command line,
  which ml_collections would refuse.

  Args:
    config: of a run, or its part that the table describes; changed in place.
    table: what each field may be.
  """
  with config.ignore_type():
    for name, value in config.items():
      check = table.get(name, table.get('*'))
      if isinstance(value, ConfigDict) and isinstance(check, Mapping):
        set_floats(value, check)
      elif isinstance(check, Number) and type(value) is int:
        config[name] = float(value)


def check_parts(config: ConfigDict) -> None:
  """Raises InputError, naming the field, where a config does not say how all parts are pretrained."""
  sections = {name: {} for name, check in PRETRAINING.items() if isinstance(check, Mapping)}
  _check_present(config.to_dict(), {'pretraining': {'model': None, **sections}})


def _check_present(values: Any, expected: Mapping[str, Any], path: str = '') -> None:
  """Raises InputError for a field that is not there. What is no mapping is left to the table."""
  for name, inner in expected.items() if isinstance(values, Mapping) else ():
    if name not in values:
      raise InputError(f'{path}{name} is missing')
    if isinstance(inner, Mapping):
      _check_present(values[name], inner, f'{path}{name}.')


def _check_pretraining(sections: Mapping[str, Mapping[str, Any]]) -> None:
  """Raises InputError where steps do not fit each other, or a part that is there lacks one of its numbers."""
  for part in ('vq', 'vision', 'decoder'):
    if part in sections:
      where = f'pretraining.{part}.'
      _check_present(sections[part], dict.fromkeys(('steps', 'batch_size', 'learning_rate')), where)
      try:
        Optimization(**sections[part])
      except InputError as error:
        raise InputError(f'{where}{error}') from None
  if 'vq' in sections and 'quantisation' in sections:
    first, steps = Quantisation(**sections['quantisation']).unquantised_steps, sections['vq']['steps']
    if first >= steps:
      raise InputError(f'pretraining.quantisation.unquantised_steps is {first}: expected less than vq.steps ({steps})')
