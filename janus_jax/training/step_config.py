"""Everything that a train step, or the loss alone, is compiled for."""

import dataclasses

import jax

from janus_jax.models.config import ComputeConfig, JanusConfig
from janus_jax.training.optimizer import OptimizerConfig
from janus_jax.training.preference_config import NO_PREFERENCE, PreferenceConfig
from janus_jax.training.stages import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSettings:
  """The part of a run's config that the step is compiled for.

  Attributes:
    compute: dtypes, rematerialisation, kernels.
    optimizer: constants of AdamW.
    accumulation: microbatches that the rows of a batch are cut into; gradients are summed over them. A stage can have
      its own (`accumulation_in`).
    loss_chunk: positions of a row whose logits over the vocabulary exist together.
  """

  compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
  optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  accumulation: int = 1
  loss_chunk: int = 256

  def accumulation_in(self, stage: Stage) -> int:
    """Microbatches of a batch of this stage."""
    return stage.accumulation or self.accumulation


@dataclasses.dataclass(frozen=True)
class StepConfig(StepSettings):
  """Everything that the step is compiled for: StepSettings, and

  Attributes:
    model: architecture.
    shardings: (path, sharding) of every parameter, to keep them where they are; () leaves it to XLA.
    objective: the stage's.
    preference: how it learns where that is not 'sft'.
    guidance: weight that the log-probabilities of codes are guided with. Where it is not 1, the second half of the rows
      of a batch are the unconditional counterparts of the first.
    temperature: divides the logits.
  """

  model: JanusConfig
  shardings: tuple[tuple[str, jax.sharding.Sharding], ...] = ()
  objective: str = 'sft'
  preference: PreferenceConfig = NO_PREFERENCE
  guidance: float = 1.0
  temperature: float = 1.0

  def for_stage(self, stage: Stage) -> 'StepConfig':
    """The config of this stage's step."""
    own = {'objective': stage.objective, 'preference': stage.preference}
    return dataclasses.replace(self, accumulation=self.accumulation_in(stage), **own)

  def for_samples(self) -> 'StepConfig':
    """The config that the samples of the stage are computed by."""
    if self.preference.log_probs == 'conditional':
      return self
    guidance = self.preference.cfg_weight if self.preference.has_unconditional else 1.0
    return dataclasses.replace(self, guidance=guidance, temperature=self.preference.temperature)
