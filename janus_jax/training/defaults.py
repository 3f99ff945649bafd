"""Every field of a training config, with its default. A file in configs/ starts from here and changes what differs.

Changing one on the command line: `--config.stages.stage2.steps=300`. Fields that are not here are refused.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

# Fields that a stage may leave out (training/stages.py describes all).
STAGE_DEFAULTS: Mapping[str, Any] = {
  'warmup_steps': 0,
  'schedule': 'constant',
  'final_fraction': 0.0,
  'weight_decay': 0.0,
  'loss_weights': (1.0, 1.0, 1.0),
  'images_per_row': 0.0,
  'drawings_per_row': 0.0,
  'carry_moments': False,
  'expected_tokens': (800.0, 1000.0, 650.0),
}


def default_config() -> ConfigDict:
  """A config without stages."""
  config = ConfigDict()

  # Where architecture, tokenizer and parameters come from: a checkpoint of any layout or a workdir, or the pretrained
  # parts a real run starts from: 'vision_encoder=PATH,vq=FILE,language_model=PATH' (as `janus_jax.convert` does it).
  config.init_from = ''
  # How roles are named in a Janus made of parts: 'deepseek' <|User|> and <|Assistant|>, as Janus-Pro's (also where
  # this is empty), 'deepseek_old' User and Assistant, as Janus-1.3B's. A checkpoint has its own.
  config.template = ''
  config.seed = 0
  # True: images are understood through the VQ too, as they are drawn (models.config.JanusConfig), where the checkpoint
  # that the run starts from has two encoders. `vision_encoder` and `vision_aligner` cannot train then.
  config.shared_encoder = False

  # The stages, by name, and the order in which they run. Start at one: run=('stage2', 'stage3'); stop after one:
  # run=('stage1',); repeat one: name it twice.
  config.stages = ConfigDict()
  config.run = ('stage1', 'stage2', 'stage3')
  # 'static' compiles one step per stage, without the gradients of what is frozen; 'traced' one for all stages.
  config.stage_masks = 'static'

  # Data: 'embedded' is the toy world, 'files' what `data.sources` names. That is {name: entry}, an entry having
  # `kind`, `format`, `path`, what its fields mean and what its records become (configs/README.md).
  config.data = ConfigDict({'name': 'embedded', 'directory': '', 'world_grid': 0, 'num_train': 8000})
  config.data.sources = ConfigDict()
  # Whether images to draw are encoded once, before the first step, or in each step that draws them.
  config.data.precompute_codes = False
  # Of images of 'files': 'fast' with vector instructions, 'pillow' to the bit as DeepSeek's processor (resizing.py).
  config.data.resize = 'fast'
  config.sequence_length = 4096
  config.guidance_dropout = 0.1  # Janus paper, footnote 2.
  config.prefetch = 2  # Batches made ahead, by a thread.
  config.workers = 0  # Processes that read and decode records; 0 leaves that to the thread.
  # Of data, each of which makes an equal part of every batch. As long as their number stays the same, batches do not
  # depend on how many hosts share them. 0: one for each host that begins the run.
  config.streams = 0
  config.max_bad_record_share = 0.01

  # Numerics and memory (models.config.ComputeConfig). Attention 'auto': splash on TPUs; on GPUs tokamax where it is
  # installed and the card is Hopper or Blackwell, else pallas, and cuDNN's for images; else chunked for long rows and
  # xla for short ones. Rematerialisation 'auto': 'dots' where its formula says that it fits the accelerator
  # (training/rematerialisation.py), else 'full'.
  config.compute = ConfigDict(
    {
      'dtype': 'bfloat16',
      'vq_dtype': 'float32',
      'remat': 'auto',
      'unroll': 1,
      'attention': 'auto',
      'vision_attention': 'auto',
    }
  )
  config.accumulation = 1
  config.loss_chunk = 256

  # AdamW. Betas and clipping from both reports; they do not state eps.
  config.optimizer = ConfigDict(
    {
      'b1': 0.9,
      'b2': 0.95,
      'eps': 1e-8,
      'max_grad_norm': 1.0,
      'learning_rate_rules': (),
      'weight_decay_rules': ((r'.*(norm.*|bias)', 0.0),),
      # Of an average of the parameters, 0.9999 for instance: callbacks evaluate it, and WORKDIR@ema opens it.
      'ema_decay': 0.0,
      # What the moments are stored in: 'bfloat16' halves their memory, rounded up or down at random.
      'moment_dtype': 'float32',
      # What gradients are summed up in over microbatches: 'bfloat16' halves that memory; 16 sum up to within 1 %.
      'gradient_sum_dtype': 'float32',
    }
  )
  config.max_skipped_in_a_row = 20
  # A step that takes this many times as long as others (and a minute) is reported, with what each thread is doing.
  config.watchdog_factor = 10.0

  # Devices: sizes of the mesh axes, -1 takes what is left.
  config.mesh = ConfigDict({'data': 1, 'fsdp': -1, 'tensor': 1, 'context': 1})

  # What is written, and how often (in steps).
  config.log_every = 10
  config.observe_every = 1000
  config.held_out_batches = 4
  config.save_every = 1000
  config.keep_last = 2
  config.keep_every = 0
  config.wandb_project = ''

  # How pictures are drawn along the way and by default from the checkpoint.
  config.sampling = ConfigDict({'cfg_weight': 5.0, 'temperature': 1.0, 'top_k': 0, 'num_images': 8})
  return config


def set_stages(config: ConfigDict, stages: Mapping[str, Mapping[str, Any]]) -> None:
  """Sets `config.stages`, each with the fields that it leaves out and values of its own.

  ConfigDict keeps a dict that stands in several places as one: where stages were given the same dict of sources,
  `--config.stages.stage2.sources.text.captions=2` would change it in all of them.
  """
  config.stages = {name: copy.deepcopy({**STAGE_DEFAULTS, **stage}) for name, stage in stages.items()}


def finetune_config(sources: Mapping[str, Mapping[str, Any]], ratio: Sequence[int]) -> ConfigDict:
  """A config that trains a whole Janus on a person's own files, in one stage with the rates of Janus-Pro's Stage III.

  Args:
    sources: `config.data.sources`; those of one kind are read equally often.
    ratio: understanding : text : generation.
  """
  config = default_config()
  config.data.name = 'files'
  config.data.sources = {name: dict(entry) for name, entry in sources.items()}
  config.workers = 8  # About as many as there are cores for each device.
  config.run = ('finetune',)
  weights: dict[str, dict[str, int]] = {}
  for name, entry in sources.items():
    weights.setdefault(entry['kind'], {})[name] = 1
  finetune = {
    'steps': 1000,
    'batch_size': 8,
    # arXiv 2501.17811, Table 2.
    'learning_rate': 4e-5,
    'schedule': 'constant',
    'warmup_steps': 0,
    'ratio': tuple(ratio),
    'sources': weights,
    'trainable': ('vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head', 'language_model', 'vision_encoder'),
  }
  set_stages(config, {'finetune': finetune})
  return config
