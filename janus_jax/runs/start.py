"""The start of a run: the checkpoint that its config names, or the parts that it composes."""

import dataclasses
import os
from collections.abc import Mapping

from janus_jax.conversion.adapters import Adapter, stored_dtypes, training_params
from janus_jax.conversion.buckets import absolute
from janus_jax.conversion.checkpoint import Checkpoint, open_checkpoint
from janus_jax.conversion.hub import is_name
from janus_jax.conversion.parts import compose
from janus_jax.conversion.tokenizer_files import special_tokens_of
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS, JanusConfig
from janus_jax.runs import workdirs
from janus_jax.runs.config import TrainConfig

# By their names on the Hugging Face hub, without those of organisations; stored in bfloat16.
RELEASED = {'Janus-1.3B': 'janus_1_3b', 'Janus-Pro-1B': 'janus_pro_1b', 'Janus-Pro-7B': 'janus_pro_7b'}
PARTS = ('vision_encoder', 'vq', 'language_model')  # Names that `init_from` may have.


@dataclasses.dataclass(frozen=True)
class Start:
  """Architecture that a run starts from, and path -> name of the dtype that the parameter is stored in."""

  model: JanusConfig
  dtypes: Mapping[str, str]


def find_start(config: TrainConfig, recipe: str) -> Start:
  """The start of a run: the checkpoint it names, else the released model that its recipe is called as.

  Nothing is downloaded for a released model that `init_from` names.
  """
  released = RELEASED.get(config.init_from.rpartition('/')[2]) if is_name(config.init_from) else None
  if released:
    model = as_trained(PRESETS[released], config)
    return Start(
      model, stored_dtypes(dict.fromkeys(parameter_shapes(model), 'bfloat16'), parameter_shapes(model), config.lora)
    )
  if config.init_from:
    return start_of(open_start(config))
  # DeepSeek-LLM is stored in bfloat16; SigLIP, LlamaGen's VQ and all parts that a run makes in float32.
  name, language_dtype = os.path.basename(recipe.partition('.py')[0]), 'bfloat16'
  if config.pretraining and config.pretraining.model:
    name, language_dtype = config.pretraining.model, 'float32'
  if name not in PRESETS:
    raise InputError(
      f'{recipe}: which model? init_from is empty: expected a checkpoint in it, or a file called as one of '
      f'{", ".join(PRESETS)}'
    )
  model = as_trained(PRESETS[name], config)
  dtypes = {'language_model': language_dtype}
  stored = {path: dtypes.get(path.split('/')[0], 'float32') for path in parameter_shapes(model)}
  return Start(model, stored_dtypes(stored, parameter_shapes(model), config.lora))


def start_of(checkpoint: Checkpoint) -> Start:
  """The start that a checkpoint is."""
  return Start(checkpoint.config, {path: leaf.dtype.name for path, leaf in checkpoint.params.items()})


def open_start(config: TrainConfig) -> Checkpoint:
  """The checkpoint a run starts from, as the architecture that it trains.

  Raises:
    InputError: `init_from` names none, or it is not one; another tokenizer than the model's.
  """
  checkpoint = _open(config.init_from, config.template)
  workdirs.check_template(config.template, config.init_from, checkpoint)
  special_tokens_of(checkpoint.tokenizer_files, checkpoint.config)
  return dataclasses.replace(with_factors(checkpoint, config), config=as_trained(checkpoint.config, config))


def with_factors(checkpoint: Checkpoint, config: TrainConfig) -> Checkpoint:
  """A start with the factors of a run with LoRA in its tree; its adapter is what the run adds to its base.

  Raises:
    InputError: what the run starts from is no whole model, or an adapter with other factors.
  """
  if not config.lora.rank:
    return checkpoint
  if '=' in config.init_from:
    raise InputError('init_from composes a model: with lora, expected a whole one (`convert` composes and writes it)')
  shapes, adapter = parameter_shapes(checkpoint.config), checkpoint.adapter
  if adapter is None:
    path = config.init_from if is_name(config.init_from) else absolute(config.init_from)
    adapter = Adapter(path, checkpoint.params, {}, {})
  params = training_params(adapter, shapes, config.lora, config.seed, config.init_from)
  return dataclasses.replace(checkpoint, params=params, adapter=adapter)


def as_trained(model: JanusConfig, config: TrainConfig) -> JanusConfig:
  """The architecture that a run makes of the one that it starts from."""
  return dataclasses.replace(model, shared_encoder=model.shared_encoder or config.shared_encoder)


def _open(init_from: str, template: str) -> Checkpoint:
  if not init_from:
    raise InputError('init_from is empty: expected a checkpoint, or vision_encoder=PATH,vq=FILE,language_model=PATH')
  if '=' not in init_from:
    return open_checkpoint(init_from)
  parts = {name: os.path.expanduser(path) for name, _, path in (part.partition('=') for part in init_from.split(','))}
  if sorted(parts) != sorted(PARTS):
    raise InputError(f'init_from names {", ".join(parts)}: expected all of {", ".join(PARTS)}')
  return compose(**parts, gen_embed='codebook', seed=0, template=template or 'deepseek')
