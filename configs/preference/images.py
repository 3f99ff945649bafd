"""A released model learns from rewards of images that it generates itself: GRPO with LoRA on one card.

    python -m janus_jax.train --config=configs/preference/images.py:prompts.jsonl:t2i_r1:7b_80gb --workdir=DIR

After the file of prompts: whose published settings (below), and the card, as in ../finetune/pictures.py. The reward
is the model's own opinion: whether it says yes when asked if it sees the prompt. Others go into `rewards`.
"""

from janus_jax.errors import InputError
from janus_jax.runs.config import set_stages
from janus_jax.runs.finetuning import lora_config

# T2I-R1 (arXiv 2505.00703, its run_grpo.sh) and STAGE (arXiv 2509.25027) trained all of Janus-Pro-7B on eight GPUs, the
# former with 128 images an update. Factors of LoRA want ten times the rate of full tuning (../finetune/pictures.py).
PUBLISHED = {
  't2i_r1': {'learning_rate': 1e-5, 'beta': 0.01, 'steps': 1600},
  'stage': {'learning_rate': 5e-5, 'beta': 0.03, 'steps': 1600},
}


def get_config(argument='prompts.jsonl'):
  prompts, name, card = [*argument.split(':'), '', ''][:3]
  name = name or 't2i_r1'
  if name not in PUBLISHED:
    raise InputError(f'settings are {name!r}: expected one of {", ".join(PUBLISHED)}')
  config = lora_config({}, (0, 0, 1), card or '1b_16gb')
  stage = config.stages.finetune.to_dict()
  published = PUBLISHED[name]
  stage.update(
    {
      'objective': 'grpo',
      'steps': published['steps'],
      'learning_rate': published['learning_rate'],
      'sources': {'generation': {}},
      'preference': {
        'prompts': prompts,
        'num_prompts': 16,
        'group': 8,
        'cfg_weight': 5.0,
        'temperature': 1.0,
        'rewards': {'yes': {'weight': 1.0}},
        'beta': published['beta'],
      },
    }
  )
  set_stages(config, {'grpo': stage})
  config.accumulation *= 8  # So many rows are there.
  config.eval_every = 0
  config.patience = 0
  config.save_every = 50
  return config
