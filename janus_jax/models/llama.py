"""The decoder: DeepSeek-LLM, architecturally Llama (RMSNorm, rotary embedding, SwiGLU, untied `lm_head`).

Reference: `LlamaForCausalLM` of transformers. It takes embeddings, not ids: in Janus text, image features and image
codes all arrive as embeddings, and each kind of logits is asked for by name.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from janus_jax.models import layers
from janus_jax.models.attention import KeyValueStore, attention
from janus_jax.models.config import ComputeConfig, LlamaConfig


class LlamaAttention(nn.Module):
  """Causal grouped-query attention with rotary positions and no biases."""

  config: LlamaConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x, rotary, segments, store: KeyValueStore | None, layer):
    D, N, K, H = self.config.width, self.config.num_heads, self.config.num_kv_heads, self.config.head_dim
    q, k, v = layers.linears(self, x, {'q': (N, H), 'k': (K, H), 'v': (K, H)}, self.compute)
    q, k = layers.rotate(q, rotary), layers.rotate(k, rotary)
    if store is None:
      kernel, layout = self.compute.attention, self.compute.layout
      attended = attention(q, k, v, segments=segments, causal=True, implementation=kernel, layout=layout)
    else:
      attended, store = store.attend(layer, q, k, v)
    return layers.Linear((D,), (N, H), self.compute, use_bias=False, name='o')(attended), store


class LlamaMLP(nn.Module):
  """SwiGLU: down(silu(gate(x)) * up(x))."""

  config: LlamaConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    D, F = self.config.width, self.config.mlp_dim
    gate, up = layers.linears(self, x, {'gate': (F,), 'up': (F,)}, self.compute)
    hidden = self.compute.constrain('mlp', jax.nn.silu(gate) * up)
    return layers.dense(F, D, self.compute, use_bias=False, name='down')(hidden)


class LlamaBlock(nn.Module):
  """Pre-norm block. The carry is (x, store): the key/value store travels through the layer loop, updated in place."""

  config: LlamaConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, carry, layer, rotary, segments):
    x, store = carry
    eps = self.config.norm_eps
    normed = layers.RMSNorm(eps, self.compute, name='attn_norm')(x)
    attended, store = LlamaAttention(self.config, self.compute, name='attn')(normed, rotary, segments, store, layer)
    x = self.compute.constrain('hidden', x + attended)
    x = x + LlamaMLP(self.config, self.compute, name='mlp')(layers.RMSNorm(eps, self.compute, name='mlp_norm')(x))
    return (self.compute.constrain('hidden', x), store), None


class Llama(nn.Module):
  """Decoder with token table and text head; the methods are its interface."""

  config: LlamaConfig
  compute: ComputeConfig

  def setup(self):
    config, compute = self.config, self.compute
    self.embed_tokens = layers.Embedding(config.vocab_size, config.width, compute)
    self.layers = layers.stack_layers(
      LlamaBlock, config.depth, compute, in_axes=(0, nn.broadcast, nn.broadcast), config=config
    )
    self.final_norm = layers.RMSNorm(config.norm_eps, compute)
    self.lm_head = layers.dense(config.width, config.vocab_size, compute, use_bias=False, out_dtype='float32')

  def embed(self, tokens: jax.Array) -> jax.Array:
    """int32[B, T] -> [B, T, D]."""
    # In two moves: XLA finds no short way from a table split along D to rows split over the same devices.
    return self.compute.constrain('hidden', self.compute.constrain('embedded', self.embed_tokens(tokens)))

  def hidden(
    self,
    embeddings: jax.Array,
    positions: jax.Array,
    segments: jax.Array | None = None,
    store: KeyValueStore | None = None,
  ) -> tuple[jax.Array, KeyValueStore | None]:
    """Final (RMS-normalised) hidden states.

    Args:
      embeddings: [B, T, D].
      positions: int32[B, T], counted within each example.
      segments: int32[B, T]; attention stays within a segment. None: one segment. Unused where `store` is given (the
        store knows which of its keys are readable).
      store: keys and values of earlier positions; None runs the T positions by themselves.

    Returns:
      ([B, T, D], the store with T more positions, or None).
    """
    x = self.compute.constrain('hidden', embeddings.astype(jnp.dtype(self.compute.dtype)))
    rotary = layers.rotary_tables(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
    (x, store), _ = self.layers((x, store), jnp.arange(self.config.depth), rotary, segments)
    return self.final_norm(x), store

  def logits(self, hidden: jax.Array) -> jax.Array:
    """[..., D] -> float32[..., V]."""
    return self.compute.constrain('logits', self.lm_head(hidden))

  def __call__(self, tokens: jax.Array, positions: jax.Array, segments: jax.Array | None = None) -> jax.Array:
    """Text only: int32[B, T] -> float32[B, T, V]."""
    return self.logits(self.hidden(self.embed(tokens), positions, segments)[0])
