"""Janus-1.3B, the three stages of its paper.

    python -m janus_jax.train --config=configs/janus_1_3b.py:ROOT --workdir=DIR \
        --config.init_from=vision_encoder=siglip-large-patch16-384,vq=vq_ds16_t2i.pt,language_model=deepseek-llm-1.3b-base

The paper's hardware: 16 nodes of 8 A100-40GB for 7 days. Not run here. Every number is from Table 1
of the Janus paper (arXiv 2410.13848) unless a comment says
otherwise; ROOT holds the data
(training/report_data.py); without `:ROOT` the embedded world stands in for it.
"""

from janus_jax.training.defaults import default_config, set_stages
from janus_jax.training.report_data import use_report_data


def get_config(root: str = ''):
  config = default_config()
  # Context length of Janus (arXiv 2410.13848, section 4.1); sequences are packed.
  config.sequence_length = 4096
  sources = {
    'understanding': {'shapes': 1, 'digits': 1},
    'text': {'captions': 1},
    'generation': {'shapes': 1, 'digits': 1},
  }
  # 4096 positions hold at most 6 images of 576 features or codes with their text.
  common = {'sources': sources, 'images_per_row': 6, 'drawings_per_row': 6}
  # Not stated when `gen_embed` trains; the released table is not the codebook any more, so it did.
  new_parts = ('vision_aligner', 'gen_aligner', 'gen_head', 'gen_embed')
  stages = {
    # Adaptors and image head. The one stage with a cosine schedule.
    'stage1': {
      **common,
      'steps': 10_000,
      'batch_size': 256,
      'learning_rate': 1e-3,
      'schedule': 'cosine',
      'warmup_steps': 300,
      'weight_decay': 0.0,
      'ratio': (1, 0, 1),
      'trainable': new_parts,
    },
    'stage2': {
      **common,
      'steps': 180_000,
      'batch_size': 512,
      'learning_rate': 1e-4,
      'schedule': 'constant',
      'warmup_steps': 5_000,
      'weight_decay': 0.0,
      'ratio': (2, 3, 5),
      'trainable': (*new_parts, 'language_model'),
    },
    # All but the generation encoder: the VQ never trains.
    'stage3': {
      **common,
      'steps': 24_000,
      'batch_size': 256,
      'learning_rate': 2e-5,
      'schedule': 'constant',
      'warmup_steps': 0,
      'weight_decay': 0.1,
      'ratio': (7, 3, 10),
      'trainable': (*new_parts, 'language_model', 'vision_encoder'),
    },
  }
  set_stages(config, stages)
  if root:
    use_report_data(config, root)
  return config
