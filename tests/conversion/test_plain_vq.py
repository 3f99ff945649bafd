"""A VQ whose encoder has no residual blocks: DeepSeek's layout keeps it, transformers' cannot."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from conversion.checkpoints import TINY, TOKENIZER  # noqa: E402
from transformers.models.janus.modeling_janus import JanusVQVAE  # noqa: E402

from janus_jax.conversion.checkpoint import Checkpoint, open_checkpoint, write_checkpoint  # noqa: E402
from janus_jax.conversion.export import exporting  # noqa: E402
from janus_jax.conversion.lazy import from_numpy  # noqa: E402
from janus_jax.errors import InputError  # noqa: E402
from janus_jax.models.config import PRESETS  # noqa: E402
from janus_jax.models.initialization import initial_params  # noqa: E402
from janus_jax.training.state import flatten  # noqa: E402


@pytest.fixture(scope='module')
def checkpoint() -> Checkpoint:
  config = dataclasses.replace(PRESETS['small'], image_token_id=TINY.image_token_id)
  arrays = {name: from_numpy(np.asarray(leaf), name) for name, leaf in flatten(initial_params(config, 0)).items()}
  return Checkpoint(config, arrays, {'tokenizer.json': TOKENIZER}, {}, ())


def test_deepseeks_layout_gives_the_same_model_back(checkpoint, tmp_path):
  with exporting(checkpoint, str(tmp_path / 'deepseek'), 'deepseek', False) as directory:
    write_checkpoint(checkpoint, directory, 'deepseek', lambda _: None)
  back = open_checkpoint(str(tmp_path / 'deepseek'))
  assert back.config == checkpoint.config
  assert back.params.keys() == checkpoint.params.keys()
  for name, array in checkpoint.params.items():
    np.testing.assert_array_equal(back.params[name][...], array[...], err_msg=name)


def test_transformers_layout_is_refused_and_nothing_written(checkpoint, tmp_path):
  output = tmp_path / 'huggingface'
  refused = pytest.raises(InputError, match=r'^vq\.num_res_blocks is 0: the huggingface layout .* expected 1 or more$')
  with refused, exporting(checkpoint, str(output), 'huggingface', False) as directory:
    write_checkpoint(checkpoint, directory, 'huggingface', lambda _: None)
  assert not output.exists()


def test_transformers_cannot_run_such_a_vq():
  """Why the layout is refused: there, only residual blocks change the number of channels."""
  sizes = {'base_channels': 32, 'channel_multiplier': [1, 2, 2], 'num_res_blocks': 0, 'latent_channels': 32}
  model = JanusVQVAE(transformers.JanusVQVAEConfig(**sizes, num_patches=2))
  with pytest.raises(RuntimeError, match='channels'):
    model(torch.zeros(1, 3, 8, 8))
