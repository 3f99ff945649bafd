"""The decoder's part of a config file, which both PyTorch layouts write as transformers' LlamaConfig."""

from typing import Any

from janus_jax.conversion.config_section import ConfigSection
from janus_jax.conversion.special_tokens import SpecialTokens
from janus_jax.errors import InputError
from janus_jax.models.config import LlamaConfig


def read_llama(llama: ConfigSection) -> LlamaConfig:
  """transformers' LlamaConfig, with its defaults."""
  for field, expected in (
    ('model_type', 'llama'),
    ('hidden_act', 'silu'),
    ('attention_bias', False),
    ('mlp_bias', False),
  ):
    llama.require(field, expected, default=expected)
  width = llama.integer('hidden_size', 4096)
  num_heads = llama.integer('num_attention_heads', 32)
  if width % num_heads:
    raise llama.error('num_attention_heads', f'a divisor of {llama.name("hidden_size")} {width}')
  return LlamaConfig(
    vocab_size=llama.integer('vocab_size', 32000),
    width=width,
    mlp_dim=llama.integer('intermediate_size', 11008),
    depth=llama.integer('num_hidden_layers', 32),
    num_heads=num_heads,
    num_kv_heads=llama.integer('num_key_value_heads', num_heads),
    head_dim=llama.integer('head_dim', width // num_heads),
    rope_theta=_rope_theta(llama),
    norm_eps=llama.number('rms_norm_eps', 1e-6),
    max_positions=llama.integer('max_position_embeddings', 2048),
  )


def _rope_theta(llama: ConfigSection) -> float:
  """`rope_parameters.rope_theta` (transformers 5) or `rope_theta` (before); frequencies must not be rescaled."""
  theta = llama.number('rope_theta', 10000.0)
  for field in ('rope_scaling', 'rope_parameters'):
    rope = llama.section(field)
    rope.require('rope_type' if 'rope_type' in rope.values else 'type', 'default', default='default')
    rope.require('partial_rotary_factor', 1.0, default=1.0)
    theta = rope.number('rope_theta', theta)
  return theta


def llama_fields(llama: LlamaConfig) -> dict[str, Any]:
  if llama.width % llama.num_heads:
    raise InputError(
      f'language_model.num_heads is {llama.num_heads}: the PyTorch layouts expect a divisor of width {llama.width}'
    )
  return {
    'attention_bias': False,
    'head_dim': llama.head_dim,
    'hidden_act': 'silu',
    'hidden_size': llama.width,
    'intermediate_size': llama.mlp_dim,
    'max_position_embeddings': llama.max_positions,
    'mlp_bias': False,
    'model_type': 'llama',
    'num_attention_heads': llama.num_heads,
    'num_hidden_layers': llama.depth,
    'num_key_value_heads': llama.num_kv_heads,
    'rms_norm_eps': llama.norm_eps,
    # transformers 5 reads the first, earlier ones the second.
    'rope_parameters': {'rope_theta': llama.rope_theta, 'rope_type': 'default'},
    'rope_theta': llama.rope_theta,
    'tie_word_embeddings': False,
    'vocab_size': llama.vocab_size,
  }


def token_fields(tokens: SpecialTokens | None) -> dict[str, int | None]:
  # Null, not absent: absent means Llama's own ids 1 and 2, at which transformers would stop an answer.
  return {
    'bos_token_id': tokens.bos if tokens else None,
    'eos_token_id': tokens.eos if tokens else None,
    'pad_token_id': tokens.pad if tokens else None,
  }
