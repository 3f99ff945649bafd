"""Janus-Pro-7B, the three stages of its report.

    python -m janus_jax.train --config=configs/janus_pro_7b.py:ROOT --workdir=DIR \
        --config.init_from=vision_encoder=siglip-large-patch16-384,vq=vq_ds16_t2i.pt,language_model=deepseek-llm-7b-base

The report's hardware: 32 nodes of 8 A100-40GB for 14 days. Not run here. Differs from the 1B in the length of Stage III
(Table 2 of arXiv 2501.17811). ROOT holds the data (runs/report_data.py); without `:ROOT` the toy world stands
in for it. `:ROOT,sizes=384-512-768` goes on with images of 512 and 768 pixels (`add_sizes` there).
"""

from janus_jax.runs.config import default_config, set_stages
from janus_jax.runs.report_data import JANUS_PRO, add_sizes, read_options, use_report_data


def get_config(options: str = ''):
  root, sizes = read_options(options)
  config = default_config()
  config.sequence_length = 4096
  sources = {
    'understanding': {'shapes': 1, 'digits': 1},
    'text': {'captions': 1},
    'generation': {'shapes': 1, 'digits': 1},
  }
  common = {'sources': sources, 'schedule': 'constant', 'weight_decay': 0.0}
  new_parts = ('vision_aligner', 'gen_aligner', 'gen_head', 'gen_embed')
  stages = {
    'stage1': {
      **common,
      'steps': 20_000,
      'batch_size': 256,
      'learning_rate': 1e-3,
      'warmup_steps': 600,
      'ratio': (1, 0, 3),
      'trainable': new_parts,
    },
    # 360K steps planned, stopped at 270K (section 3.1).
    'stage2': {
      **common,
      'steps': 270_000,
      'batch_size': 512,
      'learning_rate': 1e-4,
      'warmup_steps': 5_000,
      'ratio': (2, 3, 5),
      'trainable': (*new_parts, 'language_model'),
    },
    'stage3': {
      **common,
      'steps': 40_000,
      'batch_size': 128,
      'learning_rate': 4e-5,
      'warmup_steps': 0,
      'ratio': (5, 1, 4),
      'trainable': (*new_parts, 'language_model', 'vision_encoder'),
    },
  }
  set_stages(config, stages)
  use_report_data(config, JANUS_PRO, root)
  add_sizes(config, sizes)
  return config
