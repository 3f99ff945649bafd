"""A tiny Janus on the toy world, all three stages, on a CPU. `bash launch/quickstart.sh` runs this.

    python -m janus_jax.pretrain --config=configs/tiny.py --output=DIR/parts
    python -m janus_jax.train --config=configs/tiny.py --config.init_from=DIR/parts --workdir=DIR/run

Rates and steps are for a model of a million parameters; the recipe's shape is Janus-Pro's. Guidance 5 ruins images at
this scale; at 1.5 the model draws more objects than it is asked for (janus_jax/toy/README.md).
"""

from janus_jax.runs.config import default_config, set_stages

SOURCES = {
  'understanding': {'shapes': 1, 'digits': 1},
  'text': {'captions': 1},
  # The report mixes real and synthetic images 1 : 1; here digits are learned long before shapes follow their prompts.
  'generation': {'shapes': 3, 'digits': 1},
}
ADAPTORS = ('vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head')


def get_config():
  config = default_config()
  config.sequence_length = 104  # Two images and a sentence; attention's cost grows with the square.
  config.data.precompute_codes = True
  # One object is learned from a quarter of the scenes; counts and pairs take the rest.
  config.data.toy_mixture = (0.25, 0.25, 0.5)
  config.compute.dtype = 'float32'
  config.compute.remat = 'none'
  config.compute.unroll = 4
  config.optimizer.b2 = 0.98
  # Half the updates for the same scores, at 1.4 times the seconds of one.
  config.optimizer.muon = (r'language_model/layers/.*kernel', r'(vision|gen)_aligner/.*kernel', r'gen_head/fc1/kernel')
  # At the full rate Stage III costs the encoder two points of the digits that a linear probe reads off it.
  config.optimizer.learning_rate_rules = ((r'vision_encoder/.*', 0.3),)
  config.loss_chunk = 104
  config.log_every = 100
  config.eval_every = 0
  config.save_every = 1000
  config.sampling.cfg_weight = 1.2
  config.sampling.temperature = 0.8
  common = {
    # At this size what counts is the number of updates, not the tokens in each.
    'batch_size': 4,
    'sources': SOURCES,
    'expected_tokens': (48, 8, 48),
    'warmup_steps': 30,
    'schedule': 'cosine',
    'final_fraction': 0.05,
    # Answers are a few tokens, images 36 codes: without weights nearly all the loss would be generation.
    'loss_weights': (2.0, 1.0, 1.0),
  }
  stages = {
    'stage1': {**common, 'steps': 150, 'learning_rate': 2e-3, 'ratio': (1, 0, 3), 'trainable': ADAPTORS},
    'stage2': {
      **common,
      'steps': 2400,
      'learning_rate': 1.5e-3,
      'ratio': (2, 3, 5),
      'trainable': (*ADAPTORS, 'language_model'),
    },
    'stage3': {
      **common,
      'steps': 1150,
      'learning_rate': 1e-3,
      'ratio': (5, 1, 4),
      'trainable': (*ADAPTORS, 'language_model', 'vision_encoder'),
    },
  }
  set_stages(config, stages)
  config.pretraining = {
    'model': 'toy',
    'vq': {'steps': 1200, 'batch_size': 4, 'learning_rate': 2e-3, 'warmup_steps': 20},
    'vision': {'steps': 1700, 'batch_size': 32, 'learning_rate': 1.5e-3},
    'contrast': {'text_depth': 2, 'near_misses': 1},
    'decoder': {'steps': 150, 'batch_size': 4, 'learning_rate': 3e-3},
  }
  return config
