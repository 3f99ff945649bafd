"""A checkpoint of 384 pixels, converted to larger ones: transformers' classes load it, and compute what ours does."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import reference  # noqa: E402
from conversion.checkpoints import TINY, huggingface_directory  # noqa: E402

import janus_jax  # noqa: E402
from janus_jax.conversion.checkpoint import open_checkpoint, write_checkpoint  # noqa: E402
from janus_jax.errors import InputError  # noqa: E402
from janus_jax.inference.drawing import Window, generate_codes, guided_prompts  # noqa: E402
from janus_jax.inference.requests import decoder_for  # noqa: E402
from janus_jax.inference.sampling import Sampling, row_key  # noqa: E402
from janus_jax.models.config import JanusConfig, LlamaConfig, SiglipConfig, VQConfig  # noqa: E402
from janus_jax.models.janus import Janus, normalize_pixels  # noqa: E402

# As released but for widths and depths: 384 pixels, patches and codes of 16.
RELEASED = JanusConfig(
  SiglipConfig(width=32, mlp_dim=64, depth=1, num_heads=2),
  VQConfig(codebook_size=256, z_channels=32, base_channels=32, num_res_blocks=1),
  LlamaConfig(
    vocab_size=384, width=32, mlp_dim=64, depth=2, num_heads=2, num_kv_heads=2, head_dim=16, max_positions=2048
  ),
  image_token_id=TINY.image_token_id,
)
BOS, PAD, BOI = 256, 258, 259


@pytest.fixture(scope='module')
def larger(tmp_path_factory):
  """transformers' model and ours, of 512 pixels, from the files of one of 384."""
  directory = tmp_path_factory.mktemp('larger')
  source = huggingface_directory(directory / 'source', config=RELEASED)
  write_checkpoint(open_checkpoint(source).resized(512, 512), str(directory), 'huggingface', lambda _: None)
  load = transformers.JanusForConditionalGeneration.from_pretrained
  model, found = load(directory, output_loading_info=True, dtype=torch.float32)
  assert not any(found.values()), found
  return model.eval(), janus_jax.load(str(directory))


def test_images_are_understood_as_by_transformers(larger):
  model, janus = larger
  assert model.config.vision_config.num_image_tokens == janus.config.num_image_tokens == 1024
  pixels = np.random.default_rng(0).integers(0, 256, (1, 512, 512, 3), np.uint8)
  module = Janus(janus.config)
  ours = jax.jit(lambda x: module.apply({'params': janus.params}, x, method='embed_images'))(pixels)
  values = torch.from_numpy(np.array(normalize_pixels(jnp.asarray(pixels)))).permute(0, 3, 1, 2)
  with torch.inference_mode():
    found = model.model.get_image_features(values)
  theirs = getattr(found, 'pooler_output', found)
  assert reference.difference(ours.reshape(theirs.shape), theirs) < 1e-5


def test_codes_of_images_are_those_of_transformers(larger):
  model, janus = larger
  pixels = np.random.default_rng(1).integers(0, 256, (1, 32, 32, 3), np.uint8).repeat(16, 1).repeat(16, 2)
  ours = jax.jit(lambda x: Janus(janus.config).apply({'params': janus.params}, x, method='encode_pixels'))(pixels)
  values = torch.from_numpy(np.array(normalize_pixels(jnp.asarray(pixels)))).permute(0, 3, 1, 2)
  vqmodel = model.model.vqmodel
  with torch.inference_mode():  # The nearest rows by their cosines: transformers' own look-up is another.
    latents = vqmodel.quant_conv(vqmodel.encoder(values))[0].flatten(1).T
    normalized = torch.nn.functional.normalize
    theirs = (normalized(latents) @ normalized(vqmodel.quantize.embedding.weight).T).argmax(1)
  assert ours.shape == (1, 1024)
  np.testing.assert_array_equal(np.asarray(ours).reshape(-1), theirs.numpy().reshape(-1))
  assert len(np.unique(ours)) > 8


def test_greedy_codes_are_those_of_transformers(larger):
  model, janus = larger
  prompt = [BOS, 5, 17, 99, 3, BOI]
  rows = guided_prompts([prompt], [[BOS, *[PAD] * (len(prompt) - 2), BOI]], 5.0)
  tokens, mask = np.array(rows, np.int32), np.ones((2, len(prompt)), bool)
  keys = jnp.stack([row_key(0, 0)])
  how = {'guidance': 5.0, 'sampling': Sampling(temperature=0), 'window': Window(16)}
  ours = generate_codes(decoder_for(janus), tokens, mask, keys, **how).codes
  theirs = reference.greedy_codes(
    model, np.array([prompt]), np.ones((1, len(prompt))), {'bos': BOS, 'pad': PAD, 'boi': BOI}
  )
  assert ours.shape == (1, 1024)
  np.testing.assert_array_equal(ours, theirs)
  assert len(np.unique(ours)) > 8


def test_images_to_generate_may_be_larger_in_deepseeks_layout(tmp_path):
  """Its tensors are those of the checkpoint of one size: the class has no parameter that a grid of codes changes."""
  source = huggingface_directory(tmp_path / 'source', config=RELEASED)
  for name, sizes in (('one', (384, 384)), ('two', (384, 768)), ('three', (384, 384))):
    (tmp_path / name).mkdir()
    write_checkpoint(open_checkpoint(source).resized(*sizes), str(tmp_path / name), 'deepseek', lambda _: None)
  one, two = (open_checkpoint(str(tmp_path / name)) for name in ('one', 'two'))
  assert (two.config.image_size, two.config.vq.image_size) == (384, 768)
  assert two.config == one.config.resized(generation_size=768)
  assert {path: array.shape for path, array in two.params.items()} == {p: a.shape for p, a in one.params.items()}
  written, plain = (json.loads((tmp_path / name / 'config.json').read_text()) for name in ('two', 'one'))
  assert written['gen_vision_config']['params'].pop('image_size') == 768
  assert written == plain
  with pytest.raises(InputError, match='the huggingface layout can only express the grid of the vision tower'):
    write_checkpoint(two, str(tmp_path / 'three'), 'huggingface', lambda _: None)
