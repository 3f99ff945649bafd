"""Settings of a stage that learns from rewards or from pairs (`preference.py`)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

OBJECTIVES = ('sft', 'grpo', 'dpo')
# Log-probabilities of codes: of the conditional rows alone, or of what they were sampled from, guidance and temperature
# included, which costs a second row for each sample.
LOG_PROBS = ('conditional', 'sampled')


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """A reward of sampled images. Without function and command its name is built in: 'toy' or 'yes'.

  Attributes:
    weight: of this reward in the sum that is learned from; 0: it is only watched. What is gamed shows in such a one.
    function: MODULE:NAME or FILE.py:NAME of a function (records of the prompts, uint8[N, size, size, 3]) -> N numbers.
    command: program that reads {"prompt": ..., "image": PATH} and writes {"reward": number}, a line for each image.
    seconds: how long the command may take over the images of an update.
  """

  weight: float = 1.0
  function: str = ''
  command: str = ''
  seconds: float = 600.0


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
  """Settings by which a stage with the objective 'grpo' or 'dpo' samples and learns.

  Attributes:
    prompts: .txt with a prompt a line, or .jsonl with a 'prompt' and anything else that a reward reads; '' means the
      toy world's.
    pairs: .jsonl of stored pairs for 'dpo', {prompt, chosen, rejected} with paths of images or codes; '' makes pairs of
      the best and the worst sample of each prompt.
    skills: which of the toy world's skills its prompts are about; () is all of them.
    num_prompts: prompts of an update, or stored pairs.
    group: samples of each prompt.
    rewards: fields of `RewardConfig` by the reward's name.
    cfg_weight: guidance of the samples; 1 means none.
    temperature: of the samples.
    log_probs: one of LOG_PROBS.
    beta: of 'grpo' the weight of the divergence from the model that the stage began with, of 'dpo' the factor of the
      difference in log-probability.
    supervised: weight of the loss of the stage's own batch, which is learned from beside the samples; 0: no such batch.
  """

  prompts: str = ''
  pairs: str = ''
  skills: tuple[str, ...] = ()
  num_prompts: int = 4
  group: int = 8
  rewards: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict, hash=False)
  cfg_weight: float = 1.0
  temperature: float = 1.0
  log_probs: str = 'conditional'
  beta: float = 0.0
  supervised: float = 0.0

  @property
  def reward_configs(self) -> dict[str, RewardConfig]:
    """`rewards`, read."""
    return {name: RewardConfig(**fields) for name, fields in self.rewards.items()}

  @property
  def has_unconditional(self) -> bool:
    """True where each sample has a second row, without its prompt."""
    return self.log_probs == 'sampled' and self.cfg_weight != 1


NO_PREFERENCE = PreferenceConfig()


def needs_reference(objective: str, beta: float) -> bool:
  """Says whether an objective compares the model with the one that its stage began with."""
  return objective == 'dpo' or (objective == 'grpo' and beta > 0)
