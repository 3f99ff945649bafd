"""Weights for benchmarks of windows: the model of cpu.py, trained on the toy world at its own 24 x 24 codes.

    python -m janus_jax.pretrain --config=configs/benchmarks/drawing.py --output=DIR/parts
    python -m janus_jax.train --config=configs/benchmarks/drawing.py --config.init_from=DIR/parts --workdir=DIR/run

Random weights say nothing of how many codes a pass draws. The VQ is barely trained: its codes are other than the
pixels', but flat ground has few of them and edges many, as in trained ones.
"""

from janus_jax.runs.config import default_config, set_stages

ADAPTORS = ('vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head')


def get_config():
  config = default_config()
  config.pretraining = {
    'model': 'benchmark',
    'vq': {'steps': 40, 'batch_size': 2, 'learning_rate': 1e-3, 'warmup_steps': 20},
    'vision': {'steps': 2, 'batch_size': 2, 'learning_rate': 1e-3, 'warmup_steps': 1},
    'contrast': {'text_depth': 2},
    'decoder': {'steps': 6, 'batch_size': 1, 'learning_rate': 1e-3, 'warmup_steps': 1},
  }
  config.data.num_train = 400
  config.data.precompute_codes = True
  config.compute.dtype = 'float32'
  config.compute.remat = 'none'
  config.sequence_length = 640
  config.loss_chunk = 64
  config.log_every = 20
  config.eval_every = 0
  config.save_every = 100
  stage = {
    'steps': 120,
    'batch_size': 4,
    'learning_rate': 1e-3,
    'warmup_steps': 20,
    'schedule': 'cosine',
    'final_fraction': 0.05,
    'ratio': (0, 0, 1),
    'sources': {'generation': {'shapes': 1}},
    'trainable': (*ADAPTORS, 'language_model'),
  }
  set_stages(config, {'stage2': stage})
  return config
