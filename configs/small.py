"""A small Janus on a richer toy world, all three stages, meant for 3 hours on 2 CPU cores (not measured yet).

    bash launch/quickstart.sh --recipe=small

runs it with its scores and a page. Six shapes, eight colours and three sizes on 56 x 56 pixels, and no scene twice: few
scenes are learned by heart, and what is asked of two objects stays unlearned (janus_jax/toy/README.md).
"""

from janus_jax.runs.config import default_config, set_stages

SOURCES = {
  'understanding': {'shapes': 4, 'digits': 1},
  'text': {'captions': 1},
  'generation': {'shapes': 9, 'digits': 1},
}
ADAPTORS = ('vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head')


def get_config():
  config = default_config()
  config.sequence_length = 160  # Two images to generate and a sentence, or one with six questions.
  config.data.num_train = 0  # A new scene for every record.
  config.data.toy_grid = 7
  config.data.toy_shapes = 6
  config.data.toy_colours = 8
  config.data.toy_sizes = 3
  config.data.toy_combinations = 12
  config.data.toy_mixture = (0.2, 0.25, 0.55)
  config.data.toy_questions = 6  # An image is 49 tokens, a question 12.
  config.compute.dtype = 'float32'
  config.compute.remat = 'none'
  config.compute.unroll = 6
  config.optimizer.b2 = 0.98
  config.optimizer.learning_rate_rules = ((r'vision_encoder/.*', 0.3),)
  config.loss_chunk = 160
  config.log_every = 100
  config.eval_every = 0
  # What emerges when: in the metrics and on the page.
  config.evaluation.toy = 24
  config.evaluation.every = 4000
  config.save_every = 1000
  config.sampling.cfg_weight = 1.5
  config.sampling.temperature = 0.6
  common = {
    'batch_size': 4,
    'sources': SOURCES,
    'expected_tokens': (120, 12, 66),
    'warmup_steps': 100,
    'schedule': 'cosine',
    'final_fraction': 0.05,
    'loss_weights': (2.0, 1.0, 1.0),
  }
  stages = {
    'stage1': {**common, 'steps': 300, 'learning_rate': 2e-3, 'ratio': (1, 0, 3), 'trainable': ADAPTORS},
    'stage2': {
      **common,
      'steps': 20000,
      'learning_rate': 1e-3,
      'ratio': (2, 3, 5),
      'trainable': (*ADAPTORS, 'language_model'),
    },
    'stage3': {
      **common,
      'steps': 14000,
      'learning_rate': 7e-4,
      'ratio': (5, 1, 4),
      'trainable': (*ADAPTORS, 'language_model', 'vision_encoder'),
    },
  }
  set_stages(config, stages)
  config.pretraining = {
    'model': 'small',
    'vq': {'steps': 4000, 'batch_size': 4, 'learning_rate': 2e-3, 'warmup_steps': 20},
    'quantisation': {'unquantised_steps': 400},
    'vision': {'steps': 5000, 'batch_size': 32, 'learning_rate': 1e-3},
    'contrast': {'text_depth': 2, 'near_misses': 2},
    'decoder': {'steps': 300, 'batch_size': 4, 'learning_rate': 2e-3},
  }
  return config
