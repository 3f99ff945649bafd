"""Settings of a stage that learns from rewards or from pairs (`preference.py`)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

OBJECTIVES = ('sft', 'grpo', 'dpo')
# What is sampled for a prompt: an image, or an answer about the images of its record.
SAMPLES = ('images', 'answers')
# Log-probabilities: of the conditional rows alone, or of what they were sampled from, guidance and temperature
# included, which costs a second row for each image.
LOG_PROBS = ('conditional', 'sampled')


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """A reward of samples. Without function and command its name is built in: 'toy' or 'yes' of
  images, 'answer' of answers.

  Attributes:
    weight: of this reward in the sum that is learned from; 0: it is only watched. What is gamed shows in such a one.
    function: MODULE:NAME or FILE.py:NAME of a function (records of the prompts, uint8[N, size, size, 3] or a list of
      answers) -> N numbers.
    command: program that reads {"prompt": ..., "image": PATH}, or {"prompt": ..., "response": answer}, and writes
      {"reward": number}, a line for each sample.
    seconds: how long the command may take over the samples of an update.
  """

  weight: float = 1.0
  function: str = ''
  command: str = ''
  seconds: float = 600.0


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
  """Settings by which a stage with the objective 'grpo' or 'dpo' samples and learns.

  Attributes:
    samples: one of SAMPLES.
    prompts: .txt with a prompt a line, or .jsonl with a 'prompt' and anything else that a reward reads, for answers
      'image', a path, or 'images', a list; '' means the toy world's.
    pairs: .jsonl of stored pairs for 'dpo', {prompt, chosen, rejected} with paths of images or codes, or with answers;
      '' makes pairs of the best and the worst sample of each prompt.
    skills: which of the toy world's skills its prompts are about, or kinds of its questions; () is all of them.
    num_prompts: prompts of an update, or stored pairs.
    group: samples of each prompt.
    rewards: fields of `RewardConfig` by the reward's name.
    cfg_weight: guidance of sampled images; 1 means none.
    temperature: of the samples.
    max_new_tokens: the longest answer.
    log_probs: one of LOG_PROBS.
    beta: of 'grpo' the weight of the divergence from the model that the stage began with, of 'dpo' the factor of the
      difference in log-probability.
    supervised: weight of the loss of the stage's own batch, which is learned from beside the samples; 0: no such batch.
  """

  samples: str = 'images'
  prompts: str = ''
  pairs: str = ''
  skills: tuple[str, ...] = ()
  num_prompts: int = 4
  group: int = 8
  rewards: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict, hash=False)
  cfg_weight: float = 1.0
  temperature: float = 1.0
  max_new_tokens: int = 64
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
    return self.samples == 'images' and self.log_probs == 'sampled' and self.cfg_weight != 1


NO_PREFERENCE = PreferenceConfig()


def needs_reference(objective: str, beta: float) -> bool:
  """Says whether an objective compares the model with the one that its stage began with."""
  return objective == 'dpo' or (objective == 'grpo' and beta > 0)
