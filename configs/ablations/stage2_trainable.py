"""Which parts train in Stage II: ablation (f).

    python -m janus_jax.ablate --config=configs/ablations/stage2_trainable.py --workdir=DIR

decoder_too        adaptors, image head and decoder (the recipe; Janus's Figure 3)
  all                the understanding encoder as well
  all_but_decoder    the encoder, but not the decoder: another reading of "all components but ..."
  decoder_only       no adaptors
  adaptors_only      as Stage I
Stage I is the same and trained once per seed. The VQ never trains.

With :0.1 after the name of the file all stages are a tenth as long, with :small or :small,0.1 the base is small.py. A
further --config.seeds=0,1,2,3,4 adds two seeds.
"""

import pathlib

from janus_jax.ablation.settings import ablation_config, toy_base

CONFIGS = pathlib.Path(__file__).parents[1]

ADAPTORS = ('vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head')


def get_config(argument: str = '1'):
  trainable = {
    'decoder_too': (*ADAPTORS, 'language_model'),
    'all': (*ADAPTORS, 'language_model', 'vision_encoder'),
    'all_but_decoder': (*ADAPTORS, 'vision_encoder'),
    'decoder_only': ('language_model',),
    'adaptors_only': ADAPTORS,
  }
  variants = {name: {'stages.stage2.trainable': parts} for name, parts in trainable.items()}
  return ablation_config(toy_base(CONFIGS, argument), variants, 'decoder_too')
