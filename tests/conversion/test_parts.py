"""A Janus composed of pretrained parts: what comes out computes what its sources do, and the rest is new."""

import functools
import logging
import os

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
tokenizers = pytest.importorskip('tokenizers')

import reference  # noqa: E402
import safetensors.torch  # noqa: E402
from conversion.checkpoints import TINY, assert_same_bits  # noqa: E402
from conversion.fixtures import BOS, EOS, IMAGE, JANUS_TOKENS, make_tokenizer  # noqa: E402
from conversion.pretrained import (  # noqa: E402
  BASE_SIZE,
  BASE_TOKENIZER,
  LLAMA,
  VISION,
  composed,
  edit_tensors,
  llama_model,
  save_llama,
  save_parts,
  save_vq,
  siglip_model,
  vq_state,
)

from janus_jax.conversion.checkpoint import write_checkpoint  # noqa: E402
from janus_jax.conversion.export import exporting  # noqa: E402
from janus_jax.conversion.load import load_params  # noqa: E402
from janus_jax.conversion.parts import TEMPLATES  # noqa: E402
from janus_jax.conversion.tokenizer_files import tokenizer_files_for  # noqa: E402
from janus_jax.data import prompts  # noqa: E402
from janus_jax.models.config import JanusConfig  # noqa: E402
from janus_jax.models.janus import Janus  # noqa: E402
from janus_jax.runs.loading import load_tokenizer  # noqa: E402

TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2, 6]], np.int32)


@pytest.fixture(scope='module')
def parts(tmp_path_factory) -> dict[str, str]:
  return save_parts(tmp_path_factory.mktemp('parts'))


@functools.partial(jax.jit, static_argnums=0)
def features(config: JanusConfig, params, pixels):
  """Of the tower, before the adaptor; pixels [B, size, size, 3] in -1..1."""
  return Janus(config).bind({'params': params}).vision_encoder(pixels)


@functools.partial(jax.jit, static_argnums=0)
def text_logits(config: JanusConfig, params, tokens):
  janus = Janus(config).bind({'params': params})
  positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  return janus.text_logits(janus.hidden(janus.embed_text(tokens), positions)[0])


def some_pixels() -> np.ndarray:
  shape = (2, VISION.image_size, VISION.image_size, 3)
  return np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)


def their_features(model: 'torch.nn.Module') -> 'torch.Tensor':
  tower = model.vision_model if hasattr(model, 'text_model') else model
  return tower(reference.to_torch(some_pixels().transpose(0, 3, 1, 2))).last_hidden_state


def rename(prefix: str, **more: 'torch.Tensor'):
  """Puts every tensor under `prefix` instead of `vision_model.` or nothing."""
  return lambda state: {prefix + name.removeprefix('vision_model.'): tensor for name, tensor in (state | more).items()}


POSITION_IDS = {'embeddings.position_ids': torch.arange(VISION.num_tokens)[None]}  # Older files have this buffer.


@pytest.mark.parametrize(
  ('model_class', 'edit'),
  [
    ('SiglipVisionModel', rename('vision_model.', **POSITION_IDS)),
    ('SiglipVisionModel', rename('')),
    ('SiglipModel', lambda state: state),
  ],
  ids=['vision model', 'vision model without prefix', 'whole SigLIP'],
)
def test_the_tower_computes_what_siglip_does(tmp_path, parts, model_class, edit):
  model = siglip_model(model_class)
  model.save_pretrained(tmp_path / 'siglip')
  edit_tensors(tmp_path / 'siglip' / 'model.safetensors', edit)
  checkpoint = composed(parts, vision_encoder=str(tmp_path / 'siglip'))
  assert checkpoint.config.vision_encoder == VISION
  params = load_params(checkpoint, None)
  assert reference.difference(features(checkpoint.config, params, some_pixels()), their_features(model)) < 1e-5


def test_a_tower_trained_with_another_gelu_is_taken_over_and_said(tmp_path, parts, caplog):
  approximate = siglip_model(hidden_act='gelu_pytorch_tanh')
  approximate.save_pretrained(tmp_path / 'siglip')
  with caplog.at_level(logging.INFO):
    exact_weights = composed(parts).params
  assert 'GELU' not in caplog.text
  with caplog.at_level(logging.INFO):
    checkpoint = composed(parts, vision_encoder=str(tmp_path / 'siglip'))
  assert f'{tmp_path / "siglip"} was trained with gelu_pytorch_tanh; Janus runs exact GELU' in caplog.text
  assert checkpoint.config.vision_encoder.activation == 'gelu'
  for path, leaf in checkpoint.params.items():
    np.testing.assert_array_equal(leaf[...], exact_weights[path][...], err_msg=path)
  # Large enough a difference that the tests of values above would see the wrong one.
  assert (their_features(approximate) - their_features(siglip_model())).abs().max() > 1e-4


def test_the_decoder_computes_what_llama_does(parts):
  checkpoint = composed(parts)
  assert checkpoint.config.language_model == LLAMA
  ours = text_logits(checkpoint.config, load_params(checkpoint, None), TOKENS)
  assert reference.difference(ours, llama_model()(reference.to_torch(TOKENS).long()).logits) < 1e-4


def test_a_tied_head_is_the_token_table(tmp_path, parts):
  path = save_llama(tmp_path / 'llama', tied=True)
  assert 'lm_head.weight' not in safetensors.torch.load_file(tmp_path / 'llama' / 'model.safetensors')
  checkpoint = composed(parts, language_model=path)
  ours = text_logits(checkpoint.config, load_params(checkpoint, None), TOKENS)
  assert reference.difference(ours, llama_model(tied=True)(reference.to_torch(TOKENS).long()).logits) < 1e-4


@pytest.mark.parametrize('file', ['vq_ds16_t2i.pt', 'vq.safetensors'])
def test_the_export_is_what_transformers_and_its_processor_load(tmp_path, parts, file):
  """Every pretrained value is where transformers' own conversion puts it, bit by bit."""
  checkpoint = composed(parts, vq=save_vq(tmp_path / file))
  output = str(tmp_path / 'janus')
  with exporting(checkpoint, output, 'huggingface', overwrite=False) as directory:
    write_checkpoint(checkpoint, directory, 'huggingface', lambda _: None)
  model, info = transformers.JanusForConditionalGeneration.from_pretrained(output, output_loading_info=True)
  assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), info
  assert_same_bits(reference.huggingface_model(TINY).model.vqmodel.state_dict(), model.model.vqmodel.state_dict())
  assert_same_bits(llama_model().model.state_dict(), model.model.language_model.state_dict())
  assert_same_bits(llama_model().lm_head.state_dict(), model.lm_head.state_dict())
  assert (their_features(model.model.vision_model) - their_features(siglip_model())).abs().max() < 1e-6
  processor = transformers.AutoProcessor.from_pretrained(output)
  inputs = processor(text=f'red {IMAGE}', images=[np.zeros((8, 8, 3), np.uint8)], return_tensors='np')
  assert (inputs['input_ids'] == model.config.image_token_id).sum() == VISION.num_tokens
  assert inputs['input_ids'].max() < model.config.text_config.vocab_size


def test_the_tokenizer_gets_the_special_tokens(parts):
  checkpoint = composed(parts)
  base = tokenizers.Tokenizer.from_str(BASE_TOKENIZER.decode())
  tokenizer = tokenizers.Tokenizer.from_str(checkpoint.tokenizer_files['tokenizer.json'].decode())
  assert checkpoint.config.image_token_id == tokenizer.token_to_id(IMAGE)
  new_ids = [tokenizer.token_to_id(token) for token in JANUS_TOKENS]
  assert sorted(new_ids) == list(range(BASE_SIZE, BASE_SIZE + len(JANUS_TOKENS)))
  assert tokenizer.encode('How many red circles?').ids == base.encode('How many red circles?').ids
  # Generation settings of the base, its stop tokens among them, are not Janus's.
  assert os.path.exists(os.path.join(parts['language_model'], 'generation_config.json'))
  assert set(checkpoint.tokenizer_files) == {'tokenizer.json'}


@pytest.mark.parametrize('layout', ['orbax', 'deepseek', 'huggingface'])
@pytest.mark.parametrize('template', TEMPLATES)
def test_the_roles_stay_what_they_were_composed_with(tmp_path, parts, template, layout):
  """In every layout, and read back from it."""
  checkpoint = composed(parts, template=template)
  files = tokenizer_files_for(layout, checkpoint.tokenizer_files, checkpoint.config)
  again = tokenizer_files_for('orbax', files, checkpoint.config)
  for name, content in again.items():
    (tmp_path / name).write_bytes(content)
  tokenizer, found = load_tokenizer(str(tmp_path))
  assert found == prompts.TEMPLATES[template]
  asked = tokenizer.encode(prompts.render_prompt(found, ['Hello?', '']), add_bos=False)
  assert tokenizer.decode(asked, skip_special=False) == f'{found.user}: Hello?\n\n{found.assistant}:'
  # A token each, or words.
  assert (len(asked) == len(': Hello?\n\n:') + 2) == (template == 'deepseek')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_vocabulary_too_small_grows_by_mean_rows(tmp_path, parts, dtype):
  vocab_size = BASE_SIZE + 2
  path = save_llama(tmp_path / 'llama', vocab_size=vocab_size)
  file = tmp_path / 'llama' / 'model.safetensors'
  edit_tensors(file, lambda state: {name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()})
  checkpoint = composed(parts, language_model=path)
  assert checkpoint.config.language_model.vocab_size == 384  # The next multiple of 128.
  source = safetensors.torch.load_file(file)
  tolerance = {'float32': 1e-6, 'bfloat16': 2**-8}[dtype]
  for path, name in (('embed_tokens/table', 'model.embed_tokens.weight'), ('lm_head/kernel', 'lm_head.weight')):
    leaf, old = checkpoint.params[f'language_model/{path}'], source[name]
    assert (leaf.shape, leaf.dtype.name) == ((384, LLAMA.width), dtype)
    rows = leaf[...]
    assert_same_bits({name: old}, {name: torch.from_numpy(rows[:vocab_size].view(np.uint8)).view(old.dtype)})
    mean = old.double().mean(0).expand(384 - vocab_size, -1)
    assert reference.difference(rows[vocab_size:], mean) < tolerance * float(mean.abs().max())
    # A device that holds a part of the table reads that part.
    np.testing.assert_array_equal(leaf[300:310, 5:7], rows[300:310, 5:7])


def test_a_vocabulary_just_under_a_multiple_grows_past_it(tmp_path, parts):
  """383 rows, 380 of them taken: the six special tokens need more than the next multiple of 128 has room for."""
  tokenizer = make_tokenizer((BOS, EOS, *(f'<filler_{i}>' for i in range(78))))
  path = save_llama(tmp_path / 'llama', tokenizer, vocab_size=383)
  config = composed(parts, language_model=path).config
  assert config.language_model.vocab_size == 512
  assert 380 <= config.image_token_id < 386


def test_gen_embed_starts_as_the_codebook_at_unit_length(parts):
  rows = composed(parts).params['gen_embed/table'][...]
  expected = torch.nn.functional.normalize(vq_state()['quantize.embedding.weight'], dim=-1)
  assert reference.difference(rows, expected) < 1e-6
  np.testing.assert_array_equal(composed(parts).params['gen_embed/table'][3:7], rows[3:7])


def test_gen_embed_starts_as_noise_where_told(parts):
  tables = [composed(parts, 'normal', seed).params['gen_embed/table'][...] for seed in (0, 0, 1)]
  np.testing.assert_array_equal(tables[0], tables[1])
  assert abs(np.corrcoef(tables[0].ravel(), tables[2].ravel())[0, 1]) < 0.15
  assert tables[0].std() == pytest.approx(0.02, rel=0.1)


def test_new_parts_depend_on_the_seed_only(tmp_path, parts):
  new = ('vision_aligner/', 'gen_aligner/', 'gen_head/')
  other_llama = save_llama(tmp_path / 'llama', vocab_size=BASE_SIZE + 2, seed=9)
  first, other, reseeded = (
    {path: leaf[...] for path, leaf in checkpoint.params.items() if path.startswith(new)}
    for checkpoint in (composed(parts), composed(parts, language_model=other_llama), composed(parts, seed=1))
  )
  assert len(first) == 12
  for path, values in first.items():
    np.testing.assert_array_equal(values, other[path], err_msg=path)
    if path.endswith('/bias'):
      assert not values.any()
    else:
      assert (values != reseeded[path]).mean() > 0.99
      assert values.std() == pytest.approx(values.shape[-1] ** -0.5, rel=0.1)
