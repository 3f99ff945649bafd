"""The stages of training: their settings, the parameters that train in them, their ends."""

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from janus_jax.errors import InputError
from janus_jax.models.config import JanusConfig
from janus_jax.models.lora import NO_LORA, LoraConfig, is_adapter, is_factor
from janus_jax.training.preference_config import NO_PREFERENCE, PreferenceConfig, needs_reference

# The first names of parameter paths; a pattern that names one of them alone means everything in it.
GROUPS = ('vision_encoder', 'vision_aligner', 'vq', 'gen_embed', 'gen_aligner', 'gen_head', 'language_model')
TRAINABLE = tuple(group for group in GROUPS if group != 'vq')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One stage of training.

  Attributes:
    name: key in the config's `stages`.
    steps: updates.
    batch_size: packed rows per update.
    accumulation: microbatches that the rows of a batch are cut into; 0: as many as the run's `accumulation`.
    trainable: parameter groups, or regexes over whole paths; what trains. With `lora.rank` the factors train too, and
      this may be empty.
    lora: factors that train while the kernels beside them are frozen (`models/lora.py`). Stages of a run that have any
      have the same; in other stages these are frozen.
    objective: 'sft' learns the targets of the data, 'grpo' from rewards of own samples, 'dpo' from pairs.
    preference: settings of the latter two (`preference_config.py`).
    learning_rate: highest rate of the stage.
    warmup_steps: updates before it is reached; a shorter stage ends on the way there.
    schedule: 'constant', or 'cosine' or 'linear', which fall after the warm-up.
    final_fraction: fraction of the learning rate that these two fall to.
    weight_decay: AdamW's weight decay.
    ratio: understanding : text : generation.
    sources: per task, the integer weight of each source.
    loss_weights: weight of a target of each task in the loss: understanding, text, generation.
    image_size: pixels along one side of the images that are understood; 0: as in the stage before it, or the start.
    generation_size: the same of images to generate.
    images_per_row: slots for understanding images per row; 0: as many as the mixture needs (`packing.batch_shape`).
    generation_images_per_row: slots for images to generate, in the same way.
    carry_moments: keep Adam's moments of the stage before, which must train the same parameters.
    expected_tokens: mean length of an example of each task, images included, for `plan`, which reads no data.
  """

  name: str
  steps: int
  batch_size: int
  trainable: tuple[str, ...]
  learning_rate: float
  lora: LoraConfig = NO_LORA
  objective: str = 'sft'
  preference: PreferenceConfig = NO_PREFERENCE
  accumulation: int = 0
  warmup_steps: int = 0
  schedule: str = 'constant'
  final_fraction: float = 0.0
  weight_decay: float = 0.0
  ratio: tuple[int, int, int]
  sources: Mapping[str, Mapping[str, int]]
  loss_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
  image_size: int = 0
  generation_size: int = 0
  images_per_row: float = 0.0
  generation_images_per_row: float = 0.0
  carry_moments: bool = False
  expected_tokens: tuple[float, float, float] = (800.0, 1000.0, 650.0)

  @property
  def reads_data(self) -> bool:
    """True if the stage learns from `sources`: one with another objective may have samples alone."""
    return self.objective == 'sft' or self.preference.supervised > 0

  @property
  def has_reference(self) -> bool:
    """True if its state keeps the parameters that it began with."""
    return needs_reference(self.objective, self.preference.beta)


def trained_paths(stage: Stage, paths: Collection[str]) -> frozenset[str]:
  """The parameters that train in a stage.

  Raises:
    InputError: a pattern is no regex, matches nothing, or a kernel that factors stand beside.
  """
  where = f'stages.{stage.name}.trainable'
  found = {path for path in paths if is_factor(path)} if stage.lora.rank else set()
  paths = [path for path in paths if not is_adapter(path)]
  for pattern in stage.trainable:
    regex = f'{pattern}/.*' if pattern in GROUPS else pattern
    try:
      matches = {path for path in paths if re.fullmatch(regex, path)}
    except re.error as error:
      raise InputError(f'{where}: {pattern!r} is no regular expression ({error})') from None
    if not matches:
      raise InputError(
        f'{where}: {pattern!r} matches no parameter: expected a group '
        f'({", ".join(TRAINABLE)}) or a regular expression over whole paths'
      )
    adapted = sorted(path for path in matches if path.replace('/kernel', '/lora_a') in found)
    if adapted:
      raise InputError(f'{where}: {pattern!r} has {adapted[0]}, which lora adapts: expected what lora.targets has not')
    found |= matches
  return frozenset(found)


def check_carried(stages: Sequence[Stage], paths: Collection[str]) -> None:
  """Raises InputError where moments are to be carried over from a stage that trains other parameters, or from none, or
  into one that begins with more than that.
  """
  for before, stage in zip([None, *stages], stages):
    if not stage.carry_moments:
      continue
    where = f'stages.{stage.name}.carry_moments is True'
    if before is None:
      raise InputError(f'{where}: expected False, as no stage runs before it')
    if stage.has_reference:
      raise InputError(f'{where}: expected False, as the stage keeps a reference')
    others = trained_paths(before, paths) ^ trained_paths(stage, paths)
    if others:
      raise InputError(
        f'{where}: expected the parameters that train in {before.name}, which runs before it; {len(others)} train in '
        f'one of the two alone, such as {min(others)}'
      )


def stage_models(model: JanusConfig, stages: Iterable[Stage]) -> list[JanusConfig]:
  """The architecture in each stage of a run that starts as `model`.

  Raises:
    InputError: a size smaller than that of the stage before, or one that the patch or the VQ does not divide.
  """
  found = []
  for stage in stages:
    before = found[-1] if found else model
    for name, size in zip(('image_size', 'generation_size'), before.sizes):
      if found and 0 < getattr(stage, name) < size:
        expected = f'expected at least {size}, as in the stage before it, or 0'
        raise InputError(f'stages.{stage.name}.{name} is {getattr(stage, name)}: {expected}')
    try:
      found.append(before.resized(stage.image_size, stage.generation_size))
    except InputError as error:
      raise InputError(f'stages.{stage.name}: {error}') from None
  return found


def trained_groups(paths: Collection[str]) -> set[str]:
  """The groups in which anything trains."""
  return {path.split('/')[0] for path in paths}


def adapted_groups(paths: Collection[str]) -> set[str]:
  """The groups in which factors of LoRA train and nothing else does."""
  return trained_groups(paths) - trained_groups(path for path in paths if not is_factor(path))


def stage_ends(stages: Iterable[Stage]) -> list[int]:
  """The step of the run at which each stage is over."""
  return list(itertools.accumulate(stage.steps for stage in stages))
