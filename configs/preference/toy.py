"""GRPO or DPO on the toy world, from a run of tiny.py: the judge that scores images rewards them.

    bash launch/quickstart.sh
    python -m janus_jax.train --config=configs/preference/toy.py --config.init_from=quickstart-output/run --workdir=DIR
    python -m janus_jax.evaluate --checkpoint=DIR --out=DIR/scores

toy.py:dpo makes pairs of the best and the worst sample of each prompt; toy.py:answers rewards right answers, by GRPO;
toy.py:sft goes on with the data alone for as long: what to compare the others with. In all of them part of what is
learned from is Stage III's data, so that nothing is forgotten.
"""

import pathlib

from janus_jax.errors import InputError
from janus_jax.runs.config import set_stages
from janus_jax.runs.recipes import read_recipe

TINY = str(pathlib.Path(__file__).parent.parent / 'tiny.py')
# Each with its steps and rate; an update with samples takes as long as seven or eight without.
GOALS = {'grpo': (600, 3e-4), 'dpo': (600, 3e-4), 'answers': (600, 3e-4), 'sft': (4500, 3e-4)}
# What is left to learn after tiny.py; the data keeps the others.
SKILLS = ('attributes', 'counting', 'two_objects', 'position', 'colour_binding')
KINDS = ('where', 'beside')


def get_config(goal='grpo'):
  if goal not in GOALS:
    raise InputError(f'goal is {goal!r}: expected one of {", ".join(GOALS)}')
  config = read_recipe(TINY)
  stage = config.stages.stage3.to_dict()
  del stage['preference'], stage['lora']
  steps, learning_rate = GOALS[goal]
  answers = goal == 'answers'
  stage.update(
    {
      'objective': 'grpo' if answers else goal,
      'steps': steps,
      'learning_rate': learning_rate,
      'warmup_steps': 10,
      'schedule': 'cosine',
      'preference': {
        'samples': 'answers' if answers else 'images',
        'skills': KINDS if answers else SKILLS,
        'rewards': {'answer' if answers else 'toy': {'weight': 1.0}},
        'num_prompts': 4,
        'group': 8,
        'cfg_weight': 1.2,
        'temperature': 1.0,
        'max_new_tokens': 8,
        # At 1 rewards rise half as fast; at 0.25, and a constant rate, two points of answers are lost.
        'supervised': 0.5,
        'beta': 0.1 if goal == 'dpo' else 0.0,
      },
    }
  )
  set_stages(config, {goal: stage})
  config.optimizer.muon = ()  # The rates are AdamW's.
  config.log_every = steps // 60
  config.save_every = steps // 6
  config.evaluation.toy = 20
  config.evaluation.every = steps // 3
  return config
