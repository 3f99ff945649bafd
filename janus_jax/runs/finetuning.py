"""Configs for a person's own files: one stage over them, which trains all parameters or factors of LoRA."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from janus_jax.errors import InputError
from janus_jax.runs.config import default_config, set_stages

Sources = Mapping[str, Mapping[str, Any]]  # Entries of `config.data.sources` by name.


@dataclasses.dataclass(frozen=True)
class Card:
  """Settings with which a released model is tuned on one accelerator of a size.

  Attributes:
    init_from: name on the Hugging Face hub.
    accumulation: microbatches of a batch of BATCH_SIZE rows.
    base_dtype: `models.lora.LoraConfig`.
  """

  init_from: str
  accumulation: int
  base_dtype: str


# By model and memory.
CARDS = {
  '1b_16gb': Card('deepseek-community/Janus-Pro-1B', accumulation=8, base_dtype=''),
  '7b_24gb': Card('deepseek-community/Janus-Pro-7B', accumulation=8, base_dtype='int8'),
  '7b_80gb': Card('deepseek-community/Janus-Pro-7B', accumulation=2, base_dtype=''),
}
# Rows of an update, of SEQUENCE_LENGTH positions: three images to generate, or two to five questions, each.
BATCH_SIZE, SEQUENCE_LENGTH = 8, 2048


def finetune_config(sources: Sources, ratio: Sequence[int]) -> ConfigDict:
  """A config that trains a whole Janus on a person's own files, in one stage with the rates of Janus-Pro's Stage III.

  Sources (`config.data.sources`) of one task are read equally often; the ratio is understanding : text : generation.
  """
  config = default_config()
  config.data.update({'name': 'files', 'sources': {name: dict(entry) for name, entry in sources.items()}})
  config.workers = -1
  weights: dict[str, dict[str, int]] = {}
  for name, entry in sources.items():
    weights.setdefault(entry['kind'], {})[name] = 1
  trainable = ('vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head', 'language_model', 'vision_encoder')
  # The rate is that of arXiv 2501.17811, Table 2.
  stage = {'steps': 1000, 'batch_size': 8, 'learning_rate': 4e-5, 'trainable': trainable, 'ratio': tuple(ratio)}
  set_stages(config, {'finetune': {**stage, 'sources': weights}})
  return config


def lora_config(sources: Sources, ratio: Sequence[int], card: str) -> ConfigDict:
  """A config that trains factors of LoRA beside the decoder's layers, on one accelerator.

  The loss on held-out data and samples come every 25 steps; three losses without a lower one end the run, which is then
  opened at its best step.

  Args:
    sources: as in `finetune_config`; `held_out` of each says how many records measure the loss.
    ratio: understanding : text : generation.
    card: one of CARDS.

  Raises:
    InputError: another card.
  """
  if card not in CARDS:
    raise InputError(f'card is {card!r}: expected one of {", ".join(CARDS)}')
  config, settings = finetune_config(sources, ratio), CARDS[card]
  config.init_from = settings.init_from
  config.sequence_length, config.accumulation = SEQUENCE_LENGTH, settings.accumulation
  config.eval_every, config.patience, config.save_every, config.log_every = 25, 3, 100, 5
  config.sampling.num_images = 4  # Their keys and values lie beside the weights twice.
  config.stages.finetune.update({'steps': 500, 'batch_size': BATCH_SIZE, 'trainable': (), 'warmup_steps': 10})
  # "LoRA Without Regret" (Thinking Machines, 2025): ten times the rate of full tuning, factors beside every linear map.
  config.stages.finetune.learning_rate = 4e-4
  config.stages.finetune.lora.update({'rank': 16, 'alpha': 32.0, 'base_dtype': settings.base_dtype})
  return config
