"""Checks of every field of a training config: one table, applied where a config is parsed (`runs.config`)."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from janus_jax.data.examples import TASKS
from janus_jax.data.resizing import RESIZES
from janus_jax.errors import InputError
from janus_jax.evaluation.questions import FILES
from janus_jax.models.attention import IMPLEMENTATIONS
from janus_jax.models.config import PRESETS
from janus_jax.models.layers import REMAT_POLICIES
from janus_jax.models.lora import BASE_DTYPES
from janus_jax.runs.value_checks import (
  BOOL,
  DICTS,
  NAMES,
  NAMES_OR_NONE,
  SEED,
  SIZES,
  TEXT,
  Factors,
  Fitting,
  Integer,
  Number,
  PerTask,
  Table,
  one_of,
  some_of,
)
from janus_jax.sharding.mesh import AXES
from janus_jax.training.optimizer import SCHEDULES, STORED_DTYPES
from janus_jax.training.preference_config import LOG_PROBS, OBJECTIVES, SAMPLES
from janus_jax.training.step import MODES

COMPUTE_DTYPES = one_of(('float32', 'bfloat16', 'float16'))
KERNELS = one_of(('auto', *IMPLEMENTATIONS))
AXIS = Integer(1, others=(-1,))
FRACTION = Number(0, 1)
DECAY = Number(0, 1, below=True)
POSITIVE = Number(above=True)

# Fields that a stage has in common with the training of one part of a small Janus.
TRAINING: Table = {
  'steps': Integer(1, 10**8),
  'batch_size': Integer(1, 10**6),
  'learning_rate': Number(0, 100),
  'warmup_steps': Integer(),
  'final_fraction': FRACTION,
  'weight_decay': Number(0, 100),
}
OPTIMIZATION: Table = {**TRAINING, 'b2': DECAY, 'max_grad_norm': POSITIVE}
STAGE: Table = {
  **TRAINING,
  'accumulation': Integer(),
  'trainable': NAMES_OR_NONE,
  'lora': {'rank': Integer(0, 4096), 'alpha': POSITIVE, 'targets': NAMES, 'base_dtype': one_of(BASE_DTYPES)},
  'objective': one_of(OBJECTIVES),
  'preference': {
    'samples': one_of(SAMPLES),
    'prompts': TEXT,
    'pairs': TEXT,
    'skills': NAMES_OR_NONE,
    'num_prompts': Integer(1, 10**6),
    'group': Integer(2, 10**4),
    'rewards': {'*': {'weight': Number(-float('inf')), 'function': TEXT, 'command': TEXT, 'seconds': POSITIVE}},
    'cfg_weight': Number(),
    'temperature': POSITIVE,
    'max_new_tokens': Integer(1, 10**5),
    'log_probs': one_of(LOG_PROBS),
    'beta': Number(),
    'supervised': Number(),
  },
  'schedule': one_of(SCHEDULES),
  'ratio': PerTask(TASKS, Integer()),
  'sources': {task: {'*': Integer()} for task in TASKS},
  'loss_weights': PerTask(TASKS, Number()),
  'image_size': Integer(0, 10**4),
  'generation_size': Integer(0, 10**4),
  'images_per_row': Number(0, 10_000),
  'generation_images_per_row': Number(0, 10_000),
  'carry_moments': BOOL,
  'expected_tokens': PerTask(TASKS, Number(above=True), zeros=False),
}

PRETRAINING: Table = {
  'model': one_of(tuple(PRESETS)),
  'vq': OPTIMIZATION,
  'vq_sizes': SIZES,
  'vision': OPTIMIZATION,
  'contrast': {
    'text_depth': Integer(1),
    'near_misses': Integer(0, 6),
    'temperature': POSITIVE,
    'bias': Number(-float('inf')),
  },
  'decoder': OPTIMIZATION,
}

CHANNELS = Fitting(
  lambda value: isinstance(value, list | tuple) and value and not any(map(Integer(1, 10**5).expected, value)),
  'a tuple of whole numbers above 0',
)
REFINING: Table = {
  **TRAINING,
  'ema_decay': DECAY,
  'code_noise': FRACTION,
  'save_every': Integer(1),
  'held_out': Integer(1, 10**6),
  'scale': Integer(1, 16),
  'block_out_channels': CHANNELS,
  'layers_per_block': Integer(1, 100),
  'norm_num_groups': Integer(1, 10**5),
  'flow_steps': Integer(1, 10**4),
}

# `data.sources` is checked by `build.read_specs`.
FIELDS: Table = {
  'init_from': TEXT,
  'template': one_of(('', 'deepseek', 'deepseek_old')),
  'seed': SEED,
  'shared_encoder': BOOL,
  'stages': {'*': STAGE},
  'run': NAMES,
  'stage_masks': one_of(MODES),
  'data': {
    'name': one_of(('toy', 'files')),
    'directory': TEXT,
    'toy_grid': Integer(),
    'num_train': Integer(),
    'toy_shapes': Integer(3, 6),
    'toy_colours': Integer(2, 8),
    'toy_sizes': Integer(2, 3),
    'toy_combinations': Integer(1),
    'toy_questions': Integer(1),
    'toy_mixture': PerTask(('one', 'alike', 'two'), Number()),
    'sources': DICTS,
    'precompute_codes': BOOL,
    'resize': one_of(tuple(RESIZES)),
  },
  'sequence_length': Integer(1),
  'guidance_dropout': FRACTION,
  'prefetch': Integer(),
  'workers': Integer(0, 1024, others=(-1,)),
  'streams': Integer(),
  'max_bad_record_fraction': FRACTION,
  'compute': {
    'dtype': COMPUTE_DTYPES,
    'vq_dtype': COMPUTE_DTYPES,
    'remat': one_of(('auto', *REMAT_POLICIES)),
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
    'moment_dtype': one_of(STORED_DTYPES),
    'muon': NAMES_OR_NONE,
    'gradient_sum_dtype': one_of(STORED_DTYPES),
  },
  'max_consecutive_skips': Integer(1),
  'watchdog_factor': Number(),
  'mesh': dict.fromkeys(AXES, AXIS),
  'log_every': Integer(1),
  'eval_every': Integer(),
  'patience': Integer(),
  'held_out_batches': Integer(0, 10**6),
  'save_every': Integer(1),
  'keep_last': Integer(1),
  'keep_every': Integer(),
  'wandb_project': TEXT,
  'sampling': {'cfg_weight': Number(), 'temperature': Number(), 'top_k': Integer(), 'num_images': Integer(0, 10**6)},
  'evaluation': {
    'toy': Integer(),
    'benchmarks': some_of([name for name in FILES if name != 'mmvet']),  # A judge reads its answers.
    'data': TEXT,
    'every': Integer(),
    'rows': Integer(),
    'max_new_tokens': Integer(1),
  },
  'pretraining': PRETRAINING,
  'refining': REFINING,
}


def set_floats(config: ConfigDict, table: Table = FIELDS) -> None:
  """Makes floats of the integers in fields for numbers, in place: ml_collections would refuse 0.1 on the command line
  after `weight_decay = 0` in a recipe.
  """
  with config.ignore_type():
    for name, value in config.items():
      check = table.get(name, table.get('*'))
      if isinstance(value, ConfigDict) and isinstance(check, Mapping):
        set_floats(value, check)
      elif isinstance(check, Number) and type(value) is int:
        config[name] = float(value)


def check_present(values: Any, expected: Mapping[str, Any], path: str = '') -> None:
  """Raises InputError for a field that is not there. A value that is no mapping is left to the table."""
  for name, inner in expected.items() if isinstance(values, Mapping) else ():
    if name not in values:
      raise InputError(f'{path}{name} is missing')
    if isinstance(inner, Mapping):
      check_present(values[name], inner, f'{path}{name}.')
