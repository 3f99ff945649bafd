"""Janus-1.3B, the three stages of its paper.

    python -m janus_jax.train --config=configs/janus_1_3b.py:ROOT --workdir=DIR \
        --config.init_from=vision_encoder=siglip-large-patch16-384,vq=vq_ds16_t2i.pt,language_model=deepseek-llm-1.3b-base

The paper's hardware: 16 nodes of 8 A100-40GB for 7 days. Not run here. Every number is from Table 1 of the Janus paper
(arXiv 2410.13848) unless a comment says otherwise; README.md has what is assumed. ROOT holds the data
(runs/report_data.py); without `:ROOT` the toy world stands in for it, digits for ImageNet and shapes for
captioned images.
"""

from janus_jax.runs.config import default_config, set_stages
from janus_jax.runs.report_data import JANUS, use_report_data


def get_config(root: str = ''):
  config = default_config()
  config.run = ('stage1', 'stage2_imagenet', 'stage2', 'stage3')
  # Roles are the words User and Assistant.
  config.template = 'deepseek_old'
  # Context length (section 4.1); sequences are packed.
  config.sequence_length = 4096
  sources = {'understanding': {'shapes': 1, 'digits': 1}, 'text': {'captions': 1}}
  imagenet, captioned = ({**sources, 'generation': {name: 1}} for name in ('digits', 'shapes'))
  # Not stated when `gen_embed` trains; the released table is not the codebook any more, so it did.
  new_parts = ('vision_aligner', 'gen_aligner', 'gen_head', 'gen_embed')
  stage2 = {
    'batch_size': 512,
    'learning_rate': 1e-4,
    'schedule': 'constant',
    'weight_decay': 0.0,
    'ratio': (2, 3, 5),
    'trainable': (*new_parts, 'language_model'),
  }
  stages = {
    # Adaptors and image head. The one stage with a cosine schedule.
    'stage1': {
      'sources': imagenet,
      'steps': 10_000,
      'batch_size': 256,
      'learning_rate': 1e-3,
      'schedule': 'cosine',
      'warmup_steps': 300,
      'weight_decay': 0.0,
      'ratio': (1, 0, 1),
      'trainable': new_parts,
    },
    # Stage II generates ImageNet's images for the first 120K of its 180K steps (section 4.1): one stage, in two parts.
    'stage2_imagenet': {**stage2, 'sources': imagenet, 'steps': 120_000, 'warmup_steps': 5_000},
    'stage2': {**stage2, 'sources': captioned, 'steps': 60_000, 'warmup_steps': 0, 'carry_moments': True},
    # All but the generation encoder: the VQ never trains.
    'stage3': {
      'sources': captioned,
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
  use_report_data(config, JANUS, root)
  return config
