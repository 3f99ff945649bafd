"""The config of a training run: a ConfigDict that recipes and command lines change, parsed into a TrainConfig.

Each field has its default and its description in the dataclass that owns it, in the package that uses it, and its check
in `config_checks.py`. `--help` lists all of them (`config_help.py`).
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from janus_jax.data.examples import TASKS
from janus_jax.data.sources.build import SourceSpec, read_specs
from janus_jax.errors import InputError
from janus_jax.inference.requests import ImageSettings
from janus_jax.inference.sampling import Sampling
from janus_jax.models.config import ComputeConfig
from janus_jax.models.lora import LoraConfig
from janus_jax.runs.config_checks import FIELDS, PRETRAINING, check_present
from janus_jax.runs.value_checks import Table, check_fields
from janus_jax.sharding.mesh import MeshConfig
from janus_jax.toy.parts import Pretraining
from janus_jax.toy.pretraining import Optimization
from janus_jax.toy.pretraining_vision import Contrast
from janus_jax.toy.shapes import World
from janus_jax.training.optimizer import OptimizerConfig
from janus_jax.training.preference_config import PreferenceConfig
from janus_jax.training.refining import RefiningConfig
from janus_jax.training.run_config import RunConfig
from janus_jax.training.stages import TRAINABLE, Stage
from janus_jax.training.step_config import StepSettings

Part = TypeVar('Part')


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Data that a run reads.

  Attributes:
    name: 'toy' is the toy world, 'files' what `sources` names.
    directory: where made data and indices of files lie; '' for data/ in the workdir.
    toy_grid: steps along a side in which the toy world places objects; 0: one for every 4 pixels, at most 8.
    num_train: scenes of the toy world to train on; 0: as many as are read, each rendered then and none stored.
    toy_shapes: number of shapes in the toy world, 3 to 6.
    toy_colours: number of colours, 2 to 8.
    toy_sizes: number of sizes, 2 or 3.
    toy_combinations: combinations of colour, shape and size that training never shows, and of number, colour and shape;
      half as many of two shapes and their relation.
    toy_questions: most questions about an image in one conversation.
    toy_mixture: weights of scenes with one object, several alike, and two different ones.
    sources: entries of 'files' by name (configs/README.md, `data.sources.build.SourceSpec`).
    precompute_codes: whether the toy world's images to generate are encoded once, before the first step, or in each
      step that generates them.
    resize: how images of 'files' are resized: 'fast' with vector instructions, 'pillow' to the bit as DeepSeek's
      processor.
  """

  name: str = 'toy'
  directory: str = ''
  toy_grid: int = 0
  num_train: int = World.num_train
  toy_shapes: int = World.num_shapes
  toy_colours: int = World.num_colours
  toy_sizes: int = World.num_sizes
  toy_combinations: int = World.combinations
  toy_questions: int = World.questions
  toy_mixture: tuple[float, float, float] = World.mixture
  sources: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  precompute_codes: bool = False
  resize: str = 'fast'

  @property
  def toy(self) -> dict[str, Any]:
    """Fields of the toy world, as `toy.dataset.world_for` takes it."""
    renamed = {'shapes': 'num_shapes', 'colours': 'num_colours', 'sizes': 'num_sizes'}
    names = ('grid', 'shapes', 'colours', 'sizes', 'combinations', 'questions', 'mixture')
    return {'num_train': self.num_train, **{renamed.get(n, n): getattr(self, f'toy_{n}') for n in names}}

  @functools.cached_property
  def specs(self) -> Mapping[str, SourceSpec]:
    """`sources`, read once. Raises InputError where an entry is wrong."""
    return read_specs(self.sources)


@dataclasses.dataclass(frozen=True)
class SamplingConfig(Sampling):
  """Settings of the images generated along the way, and by default from the checkpoint.

  Attributes:
    cfg_weight: weight of classifier-free guidance; 1 means none.
    num_images: prompts and questions that are sampled along the way.
  """

  cfg_weight: float = ImageSettings.cfg_weight
  num_images: int = 8


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """Scores along the way: benchmarks by their default rule, from the checkpoint's own template; the toy world.

  Attributes:
    toy: images of each skill and group of the toy world's test, and questions of each kind; 0: none.
    benchmarks: any of pope, mme, mmbench, seedbench, gqa, mmmu; the other benchmarks need a judge.
    data: directory with their files, as `evaluate --data` reads them.
    every: steps between evaluations; 0: only at the end of each stage.
    rows: questions of each, from all over it; 0: all.
    max_new_tokens: the longest answer, in tokens.
  """

  toy: int = 0
  benchmarks: tuple[str, ...] = ()
  data: str = ''
  every: int = 0
  rows: int = 0
  max_new_tokens: int = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig, StepSettings):
  """Everything about a training run.

  Attributes:
    init_from: where architecture, tokenizer and parameters come from: a checkpoint of any layout or a workdir, or the
      pretrained parts that a real run starts from: 'vision_encoder=PATH,vq=FILE,language_model=PATH'.
    template: how roles are named in a Janus made of parts: 'deepseek' (or '') <|User|> and <|Assistant|>, as
      Janus-Pro's, 'deepseek_old' User and Assistant, as Janus-1.3B's. A checkpoint has its own.
    shared_encoder: whether images are understood through the VQ too, as they are generated, where the checkpoint that
      the run starts from has two encoders. `vision_encoder` and `vision_aligner` cannot train then.
    held_out_batches: batches of held-out data on which the loss is measured; 0 measures none.
    pretraining: how the toy world's parts are made (`janus_jax.pretrain`).
    refining: how the same command makes a refiner, for the VQ of `init_from`, from the images to generate.
  """

  init_from: str = ''
  template: str = ''
  shared_encoder: bool = False
  held_out_batches: int = 4
  data: DataConfig = DataConfig()
  compute: ComputeConfig = dataclasses.field(
    default_factory=lambda: ComputeConfig(dtype='bfloat16', remat='auto', attention='auto', vision_attention='auto')
  )
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  sampling: SamplingConfig = SamplingConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  pretraining: Pretraining | None = None
  refining: RefiningConfig | None = None


# Sections of a config, with '*' for any name, and the dataclasses that they become.
SECTIONS: Mapping[str, type] = {
  '': TrainConfig,
  'data': DataConfig,
  'compute': ComputeConfig,
  'optimizer': OptimizerConfig,
  'mesh': MeshConfig,
  'sampling': SamplingConfig,
  'evaluation': EvaluationConfig,
  'stages.*': Stage,
  'stages.*.lora': LoraConfig,
  'stages.*.preference': PreferenceConfig,
  'pretraining': Pretraining,
  'pretraining.vq': Optimization,
  'pretraining.vision': Optimization,
  'pretraining.contrast': Contrast,
  'pretraining.decoder': Optimization,
  'refining': RefiningConfig,
}


def defaults_of(kind: type) -> dict[str, Any]:
  """The fields of a dataclass that have a value as their default."""
  return {field.name: field.default for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}


# Fields that a stage may leave out.
STAGE_DEFAULTS: Mapping[str, Any] = {
  **defaults_of(Stage),
  'lora': defaults_of(LoraConfig),
  'preference': {**defaults_of(PreferenceConfig), 'rewards': {}},
}


def default_config() -> ConfigDict:
  """A config without stages, for recipes to change."""
  return ConfigDict(to_dict(TrainConfig()))


def set_stages(config: ConfigDict, stages: Mapping[str, Mapping[str, Any]]) -> None:
  """Sets `config.stages`, each with its own copy of the fields that it leaves out, and `config.run` to all of them."""
  config.stages = unshared({name: _filled(stage, STAGE_DEFAULTS) for name, stage in stages.items()})
  config.run = tuple(stages)


def set_refining(config: ConfigDict, **fields: Any) -> None:
  """Sets `config.refining`, with the defaults of the fields that are left out."""
  config.refining = unshared({**defaults_of(RefiningConfig), **fields})


def parse_config(config: ConfigDict, where: str = '') -> TrainConfig:
  """Checks every field of a config, and those that depend on each other, before anything is loaded.

  Raises:
    InputError: a field that is missing, unknown or has a value that makes no sense, by its dotted name, after `where`.
  """
  try:
    values = unshared(config.to_dict())
    check_present(values, to_dict(TrainConfig()))
    check_fields(values, FIELDS)
    named = {name: {'name': name, **fields} for name, fields in values['stages'].items()}
    stages = {name: _build('stages.*', fields, f'stages.{name}.') for name, fields in named.items()}
    parsed = _build('', {**values, 'stages': stages})
    _check_run(parsed)
    if parsed.data.name == 'files':
      _ = parsed.data.specs  # Checks them.
    elif parsed.data.sources:
      raise InputError(f"data.sources is set and data.name is {parsed.data.name!r}: expected data.name 'files'")
  except InputError as error:
    raise InputError(f'{where}{error}') from None
  return parsed


def _build(section: str, values: Mapping[str, Any], path: str = '') -> Any:
  """The dataclass of a section, with those of the sections in it."""
  children = {name: f'{section}.{name}'.removeprefix('.') for name in values}
  parts = {name: _build(child, values[name], f'{child}.') for name, child in children.items() if child in SECTIONS}
  for field in dataclasses.fields(SECTIONS[section]):
    if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
      raise InputError(f'{path}{field.name} is missing')
  try:
    return SECTIONS[section](**{**values, **parts})
  except InputError as error:
    raise InputError(f'{path}{error}') from None


def _check_run(config: TrainConfig) -> None:
  """Checks what depends on several fields.

  Raises:
    InputError: patience without evaluations; scores of a toy world that is not trained on; a stage that is not there,
      or that trains nothing, or the VQ; pairs without a factor; factors of LoRA that differ; a task without a source.
  """
  if config.patience and not (config.eval_every and config.held_out_batches):
    name = 'held_out_batches' if config.eval_every else 'eval_every'
    raise InputError(f'patience is {config.patience} and {name} is 0: expected evaluations of the held-out loss')
  if config.evaluation.toy and config.data.name != 'toy':
    raise InputError(f'evaluation.toy is {config.evaluation.toy}: expected 0, as data.name is {config.data.name!r}')
  for name in config.run:
    if name not in config.stages:
      raise InputError(f'run: no stage is called {name!r}: expected some of {", ".join(config.stages)}')
  for stage in config.run_stages:
    where = f'stages.{stage.name}'
    if not stage.trainable and not stage.lora.rank:
      raise InputError(f'{where}.trainable is empty: expected parameters that train, or {where}.lora.rank')
    if stage.objective == 'dpo' and not stage.preference.beta:
      raise InputError(f"{where}.preference.beta is 0: expected a factor above 0, as the objective is 'dpo'")
    if stage.lora.rank and stage.lora != config.lora:
      first = next(other.name for other in config.run_stages if other.lora.rank)
      raise InputError(f'{where}.lora differs from stages.{first}.lora: expected one set of factors in a run')
    for pattern in stage.trainable:
      if pattern.split('/')[0] == 'vq':
        raise InputError(f'{where}.trainable has {pattern!r}: expected any of {", ".join(TRAINABLE)}: the VQ is frozen')
    for task, part in zip(TASKS, stage.ratio) if stage.reads_data else ():
      if part and not sum(stage.sources.get(task, {}).values()):
        raise InputError(f'{where}.sources: no source of {task}, of which the ratio has {part}')


def unshared(value: Any) -> Any:
  """A copy of nested dicts in which each stands once, with tuples for lists. ConfigDict keeps a dict that was given to
  several stages as one: `--config.stages.stage2.sources.text.captions=2` would change it in all of them.
  """
  if isinstance(value, Mapping):
    return {name: unshared(inner) for name, inner in value.items()}
  return tuple(map(unshared, value)) if isinstance(value, list | tuple) else value


def to_json(config: TrainConfig) -> dict[str, Any]:
  """The fields as JSON reads them back: tuples become lists."""
  return json.loads(json.dumps(to_dict(config)))


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
  """A result of `to_json` with the fields that it was written without: the config meant their defaults."""
  defaults = to_dict(TrainConfig()) | {'stages': dict.fromkeys(values['stages'], STAGE_DEFAULTS)}
  if pretraining := values.get('pretraining'):
    trained = {part: defaults_of(Optimization) for part in pretraining if part in ('vq', 'vision', 'decoder')}
    defaults['pretraining'] = to_dict(Pretraining(), PRETRAINING) | trained
  if values.get('refining'):
    defaults['refining'] = defaults_of(RefiningConfig)
  return _filled(values, json.loads(json.dumps(defaults)))


def _filled(values: Any, defaults: Any) -> Any:
  if not isinstance(values, Mapping) or not isinstance(defaults, Mapping):
    return values
  return {**defaults, **{name: _filled(value, defaults.get(name)) for name, value in values.items()}}


def to_dict(part: Any, table: Table = FIELDS) -> dict[str, Any]:
  """The fields of a config, or of the part that a table describes, as recipes have them: `parse_config` inverts it."""
  values = part if isinstance(part, Mapping) else {name: getattr(part, name) for name in table}
  checks = {name: table.get(name, table.get('*')) for name in values}
  return {
    name: to_dict(value, checks[name]) if isinstance(checks[name], Mapping) else value
    for name, value in values.items()
    if value is not None
  }


def replaced(part: Part, changes: Mapping[str, Any]) -> Part:
  """A copy of a config, of a part of one, or of nested dicts (in which names may be new), with {dotted name: value}."""
  for name, value in changes.items():
    first, _, rest = name.partition('.')
    if rest:
      inner = part.get(first) if isinstance(part, Mapping) else getattr(part, first)
      value = replaced(inner if isinstance(inner, Mapping) or dataclasses.is_dataclass(inner) else {}, {rest: value})
    part = {**part, first: value} if isinstance(part, Mapping) else dataclasses.replace(part, **{first: value})
  return part
