"""Two visual encoders against one for both tasks, and both tasks against one of them: ablation (g).

    python -m janus_jax.ablate --config=configs/ablations/encoders.py --workdir=DIR

The rows of the Janus paper's Table 5 (arXiv 2410.13848) that need no other tokenizer:
  two_encoders         SigLIP to understand, VQ to draw (row D)
  shared_vq            the VQ for both: an image of a question is codes, as one to draw (row A)
  understanding_only   as two_encoders; generations lie in its batches as well but do not count (row E)
  generation_only      the same of questions (row F)
Text counts in all of them. A loss that does not count, in place of data left out, has all four make the same number of
updates, and the last three see the same examples as two_encoders in the same order. In shared_vq an image of a question
takes 36 positions in place of 9, so its rows hold fewer examples.

With :0.1 after the name of the file all stages are a tenth as long, with :small or :small,0.1 the base is small.py. A
further --config.seeds=0,1,2,3,4 adds two seeds.
"""

import pathlib

from janus_jax.ablation.settings import ablation_config, toy_base

CONFIGS = pathlib.Path(__file__).parents[1]
WITHOUT_USE = ('vision_encoder', 'vision_aligner')


def get_config(argument: str = '1'):
  base = toy_base(CONFIGS, argument)
  understanding, text, generation = base.stages.stage1.loss_weights

  def weighted(*weights: float) -> dict[str, tuple[float, ...]]:
    return {f'stages.{name}.loss_weights': weights for name in base.stages}

  shared = {
    f'stages.{name}.trainable': tuple(part for part in stage.trainable if part not in WITHOUT_USE)
    for name, stage in base.stages.items()
  }
  variants = {
    'two_encoders': {},
    'shared_vq': {'shared_encoder': True, **shared},
    'understanding_only': weighted(understanding, text, 0.0),
    'generation_only': weighted(0.0, text, generation),
  }
  return ablation_config(base, variants, 'two_encoders')
