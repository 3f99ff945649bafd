"""The parts that a new Janus is made of, small and random, as transformers and LlamaGen save them."""

import functools
import pathlib

import reference
import safetensors.torch
import torch
import transformers
from conversion.checkpoints import TINY, deepseek_from_huggingface
from conversion.fixtures import BOS, EOS, make_tokenizer

from janus_jax.conversion.checkpoint import Checkpoint
from janus_jax.conversion.parts import compose

BASE_TOKENIZER = make_tokenizer((BOS, EOS))
BASE_SIZE = 302  # Ids of BASE_TOKENIZER.
VISION, LLAMA = TINY.vision_encoder, TINY.language_model


@functools.cache
def siglip_model(model_class: str = 'SiglipVisionModel', hidden_act: str = 'gelu') -> 'torch.nn.Module':
  """A tower of TINY's sizes; all of one `model_class` have the same weights."""
  fields = {
    'hidden_act': hidden_act,
    'hidden_size': VISION.width,
    'image_size': VISION.image_size,
    'intermediate_size': VISION.mlp_dim,
    'num_attention_heads': VISION.num_heads,
    'num_hidden_layers': VISION.depth,
    'patch_size': VISION.patch_size,
  }
  if model_class == 'SiglipVisionModel':
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**fields)).eval()
  else:
    text = {'hidden_size': 32, 'intermediate_size': 32, 'num_attention_heads': 2, 'num_hidden_layers': 1}
    model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=fields, text_config=text)).eval()
  reference.randomize(model, seed=1)
  return model


@functools.cache
def llama_model(vocab_size: int = LLAMA.vocab_size, tied: bool = False, seed: int = 2) -> 'torch.nn.Module':
  config = transformers.LlamaConfig(
    head_dim=LLAMA.head_dim,
    hidden_size=LLAMA.width,
    intermediate_size=LLAMA.mlp_dim,
    max_position_embeddings=LLAMA.max_positions,
    num_attention_heads=LLAMA.num_heads,
    num_hidden_layers=LLAMA.depth,
    num_key_value_heads=LLAMA.num_kv_heads,
    tie_word_embeddings=tied,
    vocab_size=vocab_size,
  )
  model = transformers.LlamaForCausalLM(config).eval()
  reference.randomize(model, seed)
  return model


@functools.cache
def vq_state() -> dict[str, 'torch.Tensor']:
  """As LlamaGen saves it: DeepSeek's names without the prefix, the usage buffer included."""
  state = deepseek_from_huggingface(reference.huggingface_model(TINY).state_dict(), TINY)
  prefix = 'gen_vision_model.'
  return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def edit_tensors(file: pathlib.Path, edit) -> None:
  safetensors.torch.save_file(edit(safetensors.torch.load_file(file)), file, {'format': 'pt'})


def save_vq(file: pathlib.Path) -> str:
  if file.suffix == '.safetensors':
    safetensors.torch.save_file(vq_state(), file)
  else:
    torch.save({'model': vq_state(), 'steps': 4}, file)
  return str(file)


def save_llama(directory: pathlib.Path, tokenizer: bytes = BASE_TOKENIZER, **model) -> str:
  llama_model(**model).save_pretrained(directory)
  (directory / 'tokenizer.json').write_bytes(tokenizer)
  return str(directory)


def save_parts(root: pathlib.Path) -> dict[str, str]:
  """Paths of the three parts, as `compose` takes them; tests that edit one work on a copy."""
  siglip_model().save_pretrained(root / 'siglip')
  return {
    'vision_encoder': str(root / 'siglip'),
    'vq': save_vq(root / 'vq_ds16_t2i.pt'),
    'language_model': save_llama(root / 'llama'),
  }


def composed(
  parts: dict[str, str], gen_embed: str = 'codebook', seed: int = 0, template: str = 'deepseek', **other_parts
) -> Checkpoint:
  return compose(**{**parts, **other_parts}, gen_embed=gen_embed, seed=seed, template=template)
