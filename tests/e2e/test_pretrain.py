"""The pretrained parts of the toy world, from the command to a checkpoint that training can start from."""

import pathlib
import sys

import numpy as np
import pytest

pytest.importorskip('sklearn')

from e2e import forks

import janus_jax
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.models.config import PRESETS
from janus_jax.models.initialization import initial_params
from janus_jax.training.state import flatten

ROOT = pathlib.Path(__file__).parent.parent.parent
# configs/tiny.py with two steps per part.
RECIPE = f"""
import importlib.util

spec = importlib.util.spec_from_file_location('tiny', {str(ROOT / 'configs' / 'tiny.py')!r})
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
SHORT = dict(steps=2, batch_size=4, learning_rate=1e-3, warmup_steps=1)


def get_config():
  config = tiny.get_config()
  config.data.num_train = 60
  config.pretraining.update(vq=SHORT, vision=SHORT, decoder=SHORT)
  return config
"""


def test_the_parts_and_only_they_are_trained(tmp_path):
  recipe, output = tmp_path / 'short.py', tmp_path / 'parts'
  recipe.write_text(RECIPE)
  command = [sys.executable, '-m', 'janus_jax.pretrain', f'--config={recipe}', f'--output={output}']
  result = forks.run(command, cwd=ROOT, timeout=300)
  assert result.returncode == 0, result.stderr
  assert f'wrote {output} in ' in result.stderr
  janus = janus_jax.load(str(output))
  config, params = janus.config, janus.params
  special = Tokenizer.from_directory(output).special
  assert config.image_token_id == special.image_placeholder
  before, after = (flatten(tree) for tree in (initial_params(PRESETS['toy'], 0), params))
  changed = {path.split('/')[0] for path in after if (np.asarray(after[path]) != before[path]).any()}
  assert changed == {'vq', 'vision_encoder', 'language_model', 'gen_embed'}
  # As in a composed Janus: `gen_embed` starts as the codebook's rows at unit length.
  codebook = np.asarray(after['vq/codebook'])
  rows = codebook / np.linalg.norm(codebook, axis=-1, keepdims=True)
  np.testing.assert_allclose(after['gen_embed/table'], rows, atol=1e-6)
