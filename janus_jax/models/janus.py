"""Janus: two visual encoders, two adaptors, one decoder. The methods are the interface; there is no mode flag.

    text   ids     -> embed_text   ┐                      ┌ text_logits   (lm_head)
    image  pixels  -> embed_images ┼-> hidden (decoder) ->┤
    codes  ids     -> embed_codes  ┘                      └ image_logits  (gen_head)

    pixels -> encode_pixels -> codes -> decode_codes -> pixels            (the VQ tokenizer)

Reference: `MultiModalityCausalLM` of deepseek-ai/Janus, `JanusForConditionalGeneration` of transformers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from janus_jax.models import layers
from janus_jax.models.attention import KeyValueStore
from janus_jax.models.config import ComputeConfig, JanusConfig
from janus_jax.models.llama import Llama
from janus_jax.models.siglip import Siglip
from janus_jax.models.vq import VQ


def normalize_pixels(pixels: jax.Array) -> jax.Array:
  """uint8 0..255 -> float32 -1..1; floats are taken to be in -1..1 already."""
  if pixels.dtype == jnp.uint8:
    return (pixels.astype(jnp.float32) / 255.0 - 0.5) / 0.5
  return pixels


class Janus(nn.Module):
  """The whole model. The names of its parts are those of the parameter tree."""

  config: JanusConfig
  compute: ComputeConfig = ComputeConfig()

  def setup(self):
    config, compute = self.config, self.compute
    width, codes = config.language_model.width, config.vq.codebook_size
    self.vision_encoder = Siglip(config.vision_encoder, compute)
    self.vision_aligner = layers.Adaptor(config.vision_encoder.width, width, width, compute)
    self.vq = VQ(config.vq, compute)
    self.gen_embed = layers.Embedding(codes, config.vq.code_dim, compute)
    self.gen_aligner = layers.Adaptor(config.vq.code_dim, width, width, compute)
    self.gen_head = layers.Adaptor(width, width, codes, compute, out_dtype='float32')
    self.language_model = Llama(config.language_model, compute)

  def embed_text(self, tokens: jax.Array) -> jax.Array:
    """int32[B, T] -> [B, T, D]."""
    return self.language_model.embed(tokens)

  def embed_images(self, pixels: jax.Array) -> jax.Array:
    """uint8[I, size, size, 3], or floats in -1..1 -> [I, P, D]; P is `config.num_image_tokens`."""
    if self.config.shared_encoder:
      return self.embed_codes(self.encode_pixels(pixels))
    return self.align_features(self.encode_images(pixels))

  def encode_images(self, pixels: jax.Array) -> jax.Array:
    """uint8[I, size, size, 3], or floats in -1..1 -> [I, P, Dv]: SigLIP's features."""
    return self.vision_encoder(normalize_pixels(pixels))

  def align_features(self, features: jax.Array) -> jax.Array:
    """[..., Dv] -> [..., D]."""
    return self.vision_aligner(features)

  def embed_codes(self, codes: jax.Array) -> jax.Array:
    """int32[B, T] -> [B, T, D]."""
    return self.gen_aligner(self.gen_embed(codes))

  def embed_prompt(self, tokens: jax.Array, pixels: jax.Array) -> jax.Array:
    """Text with images in it.

    Args:
      tokens: int32[B, T]; positions that hold `config.image_token_id` are replaced, in reading order over the batch, by
        the features of the images. There must be I * P of them.
      pixels: uint8[I, size, size, 3], or floats in -1..1; in the order the batch mentions them.

    Returns:
      [B, T, D].
    """
    text = self.embed_text(tokens)
    features = self.embed_images(pixels)
    features = features.reshape(-1, features.shape[-1])
    is_image = tokens == self.config.image_token_id
    order = jnp.cumsum(is_image.reshape(-1)).reshape(tokens.shape) - 1
    # Too many placeholders would silently reuse the last patch; NaN makes the mistake visible.
    placed = jnp.take(features, order, axis=0, mode='fill', fill_value=jnp.nan)
    return jnp.where(is_image[..., None], placed, text)

  def hidden(
    self,
    embeddings: jax.Array,
    positions: jax.Array,
    segments: jax.Array | None = None,
    store: KeyValueStore | None = None,
  ) -> tuple[jax.Array, KeyValueStore | None]:
    """Final hidden states [B, T, D] of the decoder; see `Llama.hidden`."""
    return self.language_model.hidden(embeddings, positions, segments, store)

  def text_logits(self, hidden: jax.Array) -> jax.Array:
    """[..., D] -> float32[..., V]."""
    return self.language_model.logits(hidden)

  def image_logits(self, hidden: jax.Array) -> jax.Array:
    """[..., D] -> float32[..., C]."""
    return self.compute.constrain('logits', self.gen_head(hidden))

  def encode_pixels(self, pixels: jax.Array) -> jax.Array:
    """uint8[B, size, size, 3], or floats in -1..1 -> codes int32[B, P]. Always float32."""
    return self.vq.encode(normalize_pixels(pixels))

  def decode_codes(self, codes: jax.Array, grid: tuple[int, int] | None = None) -> jax.Array:
    """int32[B, P] -> float32[B, h, w, 3], about -1..1 but not clipped. `grid`: rows and columns; None: the square."""
    return self.vq.decode(codes, grid)

  def __call__(self, tokens: jax.Array, pixels: jax.Array, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Every part once, on one sequence: a prompt and then codes. What `init` traces.

    Args:
      tokens: int32[B, T].
      pixels: [I, size, size, 3].
      codes: int32[B, P].

    Returns:
      text logits float32[B, T + P, V] and image logits float32[B, T + P, C].
    """
    codes = self.encode_pixels(self.decode_codes(codes))
    embeddings = jnp.concatenate([self.embed_prompt(tokens, pixels), self.embed_codes(codes)], axis=1)
    hidden, _ = self.hidden(embeddings, jnp.broadcast_to(jnp.arange(embeddings.shape[1]), embeddings.shape[:2]))
    return self.text_logits(hidden), self.image_logits(hidden)


def abstract_params(config: JanusConfig, compute: ComputeConfig) -> dict[str, Any]:
  """The parameter tree as jax.ShapeDtypeStruct leaves; costs nothing. Values: `initialization.initial_params`."""
  config = dataclasses.replace(config, shared_encoder=False)  # Which leaves parameters unused, but not out.
  size = config.image_size

  # All within: not even a device is asked for.
  def init() -> dict[str, Any]:
    tokens, codes = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, config.vq.num_tokens), jnp.int32)
    return Janus(config, compute).init(jax.random.key(0), tokens, jnp.zeros((1, size, size, 3)), codes)

  return jax.eval_shape(init)['params']
