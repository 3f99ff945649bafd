"""GRPO or DPO on the toy world, from a run of tiny.py: the judge that scores images rewards them.

    bash launch/quickstart.sh
    python -m janus_jax.train --config=configs/preference/toy.py --config.init_from=quickstart-output/run --workdir=DIR
    python -m janus_jax.evaluate --checkpoint=DIR --out=DIR/scores

toy.py:dpo makes pairs of the best and the worst sample of each prompt, toy.py:sft goes on with the data alone: what to
compare the others with. In all of them part of what is learned from is Stage III's data, so that nothing is forgotten.
"""

import pathlib

from janus_jax.errors import InputError
from janus_jax.runs.config import set_stages
from janus_jax.runs.recipes import read_recipe

TINY = str(pathlib.Path(__file__).parent.parent / 'tiny.py')
OBJECTIVES = ('grpo', 'dpo', 'sft')


def get_config(objective='grpo'):
  if objective not in OBJECTIVES:
    raise InputError(f'objective is {objective!r}: expected one of {", ".join(OBJECTIVES)}')
  config = read_recipe(TINY)
  stage = config.stages.stage3.to_dict()
  del stage['preference'], stage['lora']
  stage.update(
    {
      'objective': objective,
      'steps': 2000,
      'learning_rate': 1e-4,
      'warmup_steps': 10,
      'schedule': 'constant',
      'preference': {
        'rewards': {'toy': {'weight': 1.0}},
        'num_prompts': 4,
        'group': 8,
        'cfg_weight': 1.2,
        'temperature': 1.0,
        'supervised': 1.0,
        'beta': 0.1 if objective == 'dpo' else 0.0,
      },
    }
  )
  set_stages(config, {objective: stage})
  config.log_every = 20
  config.save_every = 200
  config.evaluation.toy = 40
  config.evaluation.every = 500
  return config
