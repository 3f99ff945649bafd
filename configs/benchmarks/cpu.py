"""A model small enough to time on a CPU against torch: a decoder of 30 M parameters with the released codebook.

    python -m janus_jax.benchmark --config=configs/benchmarks/cpu.py --mode=train --peer=transformers

`stage2` draws: rows are a prompt and an image's 576 codes. `stage3` has every kind, with SigLIP and its images.
"""

from janus_jax.runs.config import default_config, set_stages

ADAPTORS = ('vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head')


def get_config():
  config = default_config()
  config.pretraining = {'model': 'benchmark'}
  config.data.precompute_codes = True
  config.compute.dtype = 'float32'
  config.compute.remat = 'none'
  config.sequence_length = 640
  config.loss_chunk = 64
  common = {
    'steps': 1000,
    'batch_size': 4,
    'learning_rate': 1e-4,
    'sources': {'understanding': {'shapes': 1}, 'text': {'captions': 1}, 'generation': {'shapes': 1}},
  }
  set_stages(
    config,
    {
      'stage2': {**common, 'ratio': (0, 0, 1), 'trainable': (*ADAPTORS, 'language_model')},
      'stage3': {**common, 'ratio': (5, 1, 4), 'trainable': (*ADAPTORS, 'language_model', 'vision_encoder')},
    },
  )
  return config
