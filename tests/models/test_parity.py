"""Parity with transformers' Janus on the same random weights in float32, rung by rung from a norm to a prefill."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

import reference  # noqa: E402

from janus_jax.models import layers  # noqa: E402
from janus_jax.models.config import ComputeConfig, SiglipConfig, VQConfig  # noqa: E402
from janus_jax.models.janus import Janus  # noqa: E402
from janus_jax.models.llama import LlamaAttention, LlamaMLP  # noqa: E402
from janus_jax.models.siglip import Siglip, SiglipBlock  # noqa: E402
from janus_jax.models.vq import VQ  # noqa: E402

COMPUTE = ComputeConfig()
CONFIG = reference.TINY
MHA = dataclasses.replace(CONFIG, language_model=dataclasses.replace(CONFIG.language_model, num_kv_heads=4))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def layer(tree: dict, index: int) -> dict:
  return jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.fixture(scope='module')
def model():
  return reference.huggingface_model()


@pytest.fixture(scope='module')
def params():
  return reference.our_params()


def test_siglip_block(model, params):
  x = normal(2, CONFIG.vision_encoder.num_tokens, CONFIG.vision_encoder.width)
  for i, block in enumerate(model.model.vision_model.encoder.layers):
    ours, _ = SiglipBlock(CONFIG.vision_encoder, COMPUTE).apply(
      {'params': layer(params['vision_encoder']['layers'], i)}, x
    )
    theirs = block(reference.to_torch(x), attention_mask=None)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    assert reference.difference(ours, theirs) < 1e-5


def test_siglip_output(model, params):
  size = CONFIG.vision_encoder.image_size
  pixels = normal(3, size, size, 3)
  ours = Siglip(CONFIG.vision_encoder, COMPUTE).apply({'params': params['vision_encoder']}, pixels)
  theirs = model.model.vision_model(reference.to_torch(pixels.transpose(0, 3, 1, 2))).last_hidden_state
  assert reference.difference(ours, theirs) < 1e-5


@pytest.mark.parametrize(
  ('name', 'theirs', 'width'),
  [
    ('vision_aligner', 'aligner', CONFIG.vision_encoder.width),
    ('gen_aligner', 'generation_aligner', CONFIG.vq.code_dim),
    ('gen_head', 'generation_head', CONFIG.language_model.width),
  ],
)
def test_adaptor(model, params, name, theirs, width):
  x = normal(2, 5, width)
  out = CONFIG.vq.codebook_size if name == 'gen_head' else CONFIG.language_model.width
  ours = layers.Adaptor(width, CONFIG.language_model.width, out, COMPUTE).apply({'params': params[name]}, x)
  assert reference.difference(ours, getattr(model.model, theirs)(reference.to_torch(x))) < 1e-5


def test_rms_norm(model, params):
  x = 3 * normal(2, 5, CONFIG.language_model.width)
  norm = layers.RMSNorm(CONFIG.language_model.norm_eps, COMPUTE)
  ours = norm.apply({'params': params['language_model']['final_norm']}, x)
  assert reference.difference(ours, model.model.language_model.norm(reference.to_torch(x))) < 1e-6


def test_rotary_tables_and_rotation(model):
  llama = CONFIG.language_model
  positions = np.array([[0, 1, 2, 3], [5, 250, 7, 500]], np.int32)
  x = normal(2, 4, llama.num_heads, llama.head_dim)
  tables = layers.rotary_tables(jnp.asarray(positions), llama.head_dim, llama.rope_theta, jnp.float32)
  cos, sin = model.model.language_model.rotary_emb(reference.to_torch(x), reference.to_torch(positions).long())
  assert reference.difference(tables[0], cos) < 1e-4  # float32 angles up to 500 rad.
  from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

  torch_x = reference.to_torch(x).transpose(1, 2)
  rotated, _ = apply_rotary_pos_emb(torch_x, torch_x, cos, sin)
  assert reference.difference(layers.rotate(x, tables), rotated.transpose(1, 2)) < 1e-4


@pytest.mark.parametrize('config', [CONFIG, MHA], ids=['grouped-query', 'multi-head'])
def test_decoder_attention(config):
  model, params = reference.huggingface_model(config), reference.our_params(config)
  llama = config.language_model
  x, positions = normal(2, 7, llama.width), np.tile(np.arange(7), (2, 1))
  rotary = layers.rotary_tables(jnp.asarray(positions), llama.head_dim, llama.rope_theta, jnp.float32)
  weights = layer(params['language_model']['layers']['attn'], 1)
  ours, _ = LlamaAttention(llama, COMPUTE).apply({'params': weights}, x, rotary, None, None, 1)
  mask = torch.full((7, 7), float('-inf')).triu(1)[None, None].expand(2, 1, 7, 7)
  theirs, _ = model.model.language_model.layers[1].self_attn(
    reference.to_torch(x),
    position_embeddings=tuple(reference.to_torch(table) for table in rotary),
    attention_mask=mask,
  )
  assert reference.difference(ours, theirs) < 1e-5


def test_decoder_mlp(model, params):
  x = normal(2, 5, CONFIG.language_model.width)
  weights = layer(params['language_model']['layers']['mlp'], 2)
  ours = LlamaMLP(CONFIG.language_model, COMPUTE).apply({'params': weights}, x)
  assert reference.difference(ours, model.model.language_model.layers[2].mlp(reference.to_torch(x))) < 1e-5


@functools.partial(jax.jit, static_argnums=1)
def run(params: dict, method: str, *args):
  return Janus(CONFIG).apply({'params': params}, *args, method=method)


@pytest.fixture(scope='module')
def hidden(model, params):
  """Final hidden states of the same embeddings: ours, and transformers'."""
  x = normal(2, 9, CONFIG.language_model.width)
  ours, _ = run(params, 'hidden', x, jnp.tile(jnp.arange(9), (2, 1)))
  return ours, model.model.language_model(inputs_embeds=reference.to_torch(x)).last_hidden_state


def test_decoder_hidden_states(hidden):
  assert reference.difference(*hidden) < 2e-5


def test_text_logits(model, params, hidden):
  assert reference.difference(run(params, 'text_logits', hidden[0]), model.lm_head(hidden[1])) < 1e-4


def test_image_logits(model, params, hidden):
  assert reference.difference(run(params, 'image_logits', hidden[0]), model.model.generation_head(hidden[1])) < 1e-4


def test_text_and_code_embeddings(model, params):
  tokens = np.array([[0, 5, 511]], np.int32)
  codes = np.array([[0, 77, 127]], np.int32)
  embed = model.model.language_model.embed_tokens
  assert reference.difference(run(params, 'embed_text', tokens), embed(reference.to_torch(tokens).long())) == 0
  theirs = model.prepare_embeddings_for_image_generation(reference.to_torch(codes).long())
  assert reference.difference(run(params, 'embed_codes', codes), theirs) < 1e-5


def test_vq_decode(model, params):
  codes = np.random.default_rng(0).integers(0, CONFIG.vq.codebook_size, (2, CONFIG.vq.num_tokens)).astype(np.int32)
  # transformers takes the grid from the understanding tower; ours is the tokenizer's own.
  vqmodel = model.model.vqmodel
  vqmodel.quantize.quant_state_dims = [CONFIG.vq.grid] * 2
  theirs = vqmodel.decode(reference.to_torch(codes).long())
  ours = run(params, 'decode_codes', codes)
  assert reference.difference(ours, theirs.permute(0, 2, 3, 1)) < 1e-4


def original_codes(z: 'torch.Tensor', codebook: 'torch.Tensor') -> 'torch.Tensor':
  """The original's quantizer (vq_model.py): both sides L2-normalised, smallest distance. z [B, C, h, w]."""
  z = torch.nn.functional.normalize(z.permute(0, 2, 3, 1), dim=-1)
  rows = torch.nn.functional.normalize(codebook, dim=-1)
  distance = z.square().sum(-1, keepdim=True) + rows.square().sum(-1) - 2 * z @ rows.T
  return distance.argmin(-1).flatten(1)


def test_vq_encode_has_the_originals_semantics(model, params):
  size = CONFIG.vq.image_size
  pixels = np.tanh(normal(8, size, size, 3))
  vqmodel = model.model.vqmodel
  latents = vqmodel.quant_conv(vqmodel.encoder(reference.to_torch(pixels.transpose(0, 3, 1, 2))))
  theirs = original_codes(latents, vqmodel.quantize.embedding.weight)
  ours = np.asarray(run(params, 'encode_pixels', pixels))
  assert (ours == theirs.numpy()).all()
  assert len(np.unique(ours)) > 10
  # The codebook's rows here are of unequal length, so that forgetting to normalise them would show.
  lengths = np.linalg.norm(np.asarray(params['vq']['codebook']), axis=-1)
  assert lengths.max() > 1.5 * lengths.min()


def test_uint8_pixels_are_normalised_on_the_device(params):
  size = CONFIG.vision_encoder.image_size
  pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
  floats = (pixels.astype(np.float32) / 255 - 0.5) / 0.5
  np.testing.assert_array_equal(run(params, 'encode_pixels', pixels), run(params, 'encode_pixels', floats))
  embedded = run(params, 'embed_images', pixels)
  np.testing.assert_allclose(embedded, run(params, 'embed_images', floats), atol=1e-5)


def test_whole_multimodal_prefill_with_two_images(model, params):
  P, size = CONFIG.vision_encoder.num_tokens, CONFIG.vision_encoder.image_size
  image = [CONFIG.image_token_id] * P
  tokens = np.array([[1, 2, *image, 3, 4, *image, 5, 6, 7]], np.int32)
  pixels = normal(2, size, size, 3)
  embeddings = run(params, 'embed_prompt', tokens, pixels)
  hidden, _ = run(params, 'hidden', embeddings, jnp.arange(tokens.shape[1])[None])
  theirs = model(
    input_ids=reference.to_torch(tokens).long(),
    pixel_values=reference.to_torch(pixels.transpose(0, 3, 1, 2)),
    attention_mask=torch.ones(tokens.shape, dtype=torch.long),
  ).logits
  assert reference.difference(run(params, 'text_logits', hidden), theirs) < 1e-4
  # The order of the images matters, so the placement is really tested.
  swapped = run(params, 'embed_prompt', tokens, pixels[::-1])
  assert np.abs(np.asarray(swapped - embeddings)).max() > 0.1


@pytest.fixture
def without_initialisation(monkeypatch):
  """Torch's own random weights, which `randomize` overwrites, would take longer than running a full-size model."""
  for name in ('kaiming_uniform_', 'uniform_', 'normal_', 'trunc_normal_', 'xavier_uniform_'):
    monkeypatch.setattr(torch.nn.init, name, lambda tensor, *arguments, **options: tensor)


def test_siglip_tower_at_full_size(without_initialisation):
  from transformers.models.janus import modeling_janus

  config = SiglipConfig()
  theirs = modeling_janus.JanusVisionModel(modeling_janus.JanusVisionConfig()).eval()
  reference.randomize(theirs, 0)
  tree = part_params(theirs, 'model.vision_model.', 'vision_encoder')
  pixels = np.tanh(normal(1, 384, 384, 3))
  ours = jax.jit(Siglip(config, COMPUTE).apply)({'params': tree}, pixels)
  with torch.no_grad():
    expected = theirs(reference.to_torch(pixels.transpose(0, 3, 1, 2))).last_hidden_state
  assert reference.difference(ours, expected) < 1e-4


def test_vq_decode_at_full_size(without_initialisation):
  from transformers.models.janus import modeling_janus

  config = VQConfig()
  theirs = modeling_janus.JanusVQVAE(modeling_janus.JanusVQVAEConfig(num_patches=24)).eval()
  reference.randomize(theirs, 0)
  tree = part_params(theirs, 'model.vqmodel.', 'vq')
  codes = np.random.default_rng(0).integers(0, config.codebook_size, (1, 576)).astype(np.int32)
  ours = jax.jit(lambda p, c: VQ(config, COMPUTE).apply({'params': p}, c, method='decode'))(tree, codes)
  with torch.no_grad():
    expected = theirs.decode(reference.to_torch(codes).long()).permute(0, 2, 3, 1)
  assert reference.difference(ours, expected) < 1e-4


def part_params(module: 'torch.nn.Module', prefix: str, part: str) -> dict:
  """Weights of one part of a full-size model, as our subtree."""
  import flax.traverse_util

  from janus_jax.conversion.lazy import LazyArray
  from janus_jax.conversion.translate import parameter_shapes, params_from_tensors
  from janus_jax.models.config import JanusConfig

  shapes = {path: shape for path, shape in parameter_shapes(JanusConfig()).items() if path.startswith(part + '/')}
  tensors: dict[str, LazyArray] = {prefix + name: array for name, array in reference.arrays(module).items()}
  lazy = params_from_tensors(shapes, tensors, 'huggingface', 'reference')
  flat = {path.removeprefix(part + '/'): jnp.asarray(array[...]) for path, array in lazy.items()}
  return flax.traverse_util.unflatten_dict(flat, sep='/')
