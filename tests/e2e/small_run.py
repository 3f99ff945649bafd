"""The smallest run through three stages, for tests that train."""

import importlib.util
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from janus_jax.conversion.checkpoint import Checkpoint, write_checkpoint
from janus_jax.conversion.lazy import from_numpy
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.models.config import JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from janus_jax.models.initialization import initial_params
from janus_jax.toy import tokenizer_training
from janus_jax.toy.shapes import World
from janus_jax.training.state import flatten

ROOT = pathlib.Path(__file__).parent.parent.parent
STEPS = 3
EMBEDDINGS = 'language_model/embed_tokens/table'


def small_model(image_token_id: int) -> JanusConfig:
  return JanusConfig(
    SiglipConfig(image_size=24, patch_size=8, width=32, mlp_dim=32, depth=1, num_heads=2),
    VQConfig(24, codebook_size=16, z_channels=32, base_channels=32, channel_multipliers=(1, 1, 1), num_res_blocks=1),
    LlamaConfig(
      vocab_size=384, width=32, mlp_dim=32, depth=1, num_heads=2, num_kv_heads=1, head_dim=16, max_positions=512
    ),
    image_token_id,
  )


def write_start(directory: pathlib.Path, poison: str = '') -> str:
  """A checkpoint with fresh weights. Where `poison` is read, which is one token, there is no finite loss."""
  path = directory / 'tokenizer.json'
  tokenizer_training.train_tokenizer(tokenizer_training.toy_texts(World(), 50), path, 384)
  config = small_model(Tokenizer(str(path)).special.image_placeholder)
  arrays = {name: from_numpy(leaf, name) for name, leaf in flatten(initial_params(config, 0)).items()}
  if poison:
    *_, token = Tokenizer(str(path)).encode(poison)
    table = arrays[EMBEDDINGS][...].copy()
    table[token] = np.nan
    arrays[EMBEDDINGS] = from_numpy(table, EMBEDDINGS)
  checkpoint = Checkpoint(config, arrays, {'tokenizer.json': path.read_bytes()}, {}, ())
  write_checkpoint(checkpoint, str(directory), 'orbax', lambda _: None)
  return str(directory)


def recipe(start: str, data: str, generation: Sequence[str] = ('shapes',)) -> ConfigDict:
  """The recipe of the quickstart, cut short; images to generate come from these sources."""
  spec = importlib.util.spec_from_file_location('tiny', ROOT / 'configs' / 'tiny.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.init_from, config.data.directory, config.data.num_train = start, data, 60
  config.optimizer.muon = ()  # tests/training/test_muon.py has it.
  config.mesh.data, config.mesh.fsdp = 2, 4  # The tests' eight simulated devices.
  config.log_every, config.save_every, config.held_out_batches, config.sampling.num_images = 1, 1, 1, 0
  for stage in config.stages.values():
    stage.steps, stage.warmup_steps, stage.batch_size = STEPS, 0, 8
    stage.sources.understanding = ConfigDict({'shapes': 1, 'digits': 1})
    stage.sources.generation = ConfigDict(dict.fromkeys(generation, 1))
  return config


def leaves(params: dict) -> dict[str, np.ndarray]:
  return {path: np.asarray(leaf) for path, leaf in flatten(params).items()}


def losses(workdir: pathlib.Path) -> list[tuple]:
  """(step, stage, loss, gradient norm) of every update."""
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [(line['step'], line['stage'], line['loss'], line['grad_norm']) for line in lines if 'loss' in line]
