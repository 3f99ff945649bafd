"""Short pretraining of the understanding encoder by SigLIP's sigmoid contrastive loss (arXiv 2303.15343).

A small text tower reads captions; it is thrown away with both projections. Two things are not SigLIP's. A batch has
several positives per image where the same caption is true of several. And it has captions that are nearly true of an
image (NegCLIP, arXiv 2210.01936): with chance ones alone an encoder learns which words are said and not which belongs
to which, as any of them tells two images apart.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from janus_jax.errors import InputError
from janus_jax.models import layers
from janus_jax.models.config import ComputeConfig, JanusConfig, SiglipConfig
from janus_jax.models.janus import normalize_pixels
from janus_jax.models.siglip import Siglip, SiglipBlock
from janus_jax.models.vq import l2_normalize
from janus_jax.toy.pretraining import PretrainingSetup, minimize


@dataclasses.dataclass(frozen=True)
class Contrast:
  """The text tower and the loss.

  Attributes:
    text_depth: transformer blocks of the text tower; width, heads and MLP are the encoder's.
    near_misses: captions for each image of a batch that are nearly true of it.
    temperature: initial factor of the cosines (SigLIP: 10). Learned.
    bias: initial number that is then added to them (SigLIP: -10). Learned.
  """

  text_depth: int = 2
  near_misses: int = 0
  temperature: float = 10.0
  bias: float = -10.0


class _TextTower(nn.Module):
  """Captions int32[B, L], padded with -1 -> [B, D]: blocks that read all words, mean over those that are none."""

  vocab_size: int
  config: SiglipConfig
  depth: int
  compute: ComputeConfig

  @nn.compact
  def __call__(self, captions: jax.Array) -> jax.Array:
    D, is_word = self.config.width, (captions >= 0)[..., None]
    x = layers.Embedding(self.vocab_size, D, self.compute, name='embed')(jnp.maximum(captions, 0))
    # Tables start small; words and positions must reach the blocks at the size that their norms expect.
    positions = self.param('positions', nn.initializers.normal(0.02), (captions.shape[1], D))
    x = jnp.where(is_word, x + positions, 0.0)
    x, _ = layers.stack_layers(SiglipBlock, self.depth, self.compute, in_axes=(), name='layers', config=self.config)(x)
    x = layers.LayerNorm(self.config.norm_eps, self.compute, name='final_norm')(x)
    return jnp.sum(x * is_word, axis=1) / jnp.maximum(jnp.sum(is_word, axis=1), 1)


class _Pair(nn.Module):
  """Both towers, their projections, and the two learned numbers of the loss."""

  config: JanusConfig
  contrast: Contrast
  compute: ComputeConfig

  @nn.compact
  def __call__(self, pixels: jax.Array, captions: jax.Array) -> jax.Array:
    """uint8[B, size, size, 3], int32[C, L] -> logits float32[B, C]."""
    vision, vocab = self.config.vision_encoder, self.config.language_model.vocab_size
    D = vision.width
    image = jnp.mean(Siglip(vision, self.compute, name='vision_encoder')(normalize_pixels(pixels)), axis=1)
    text = _TextTower(vocab, vision, self.contrast.text_depth, self.compute, name='text_tower')(captions)
    image = l2_normalize(layers.dense(D, D, self.compute, name='image_projection')(image))
    text = l2_normalize(layers.dense(D, D, self.compute, name='text_projection')(text))
    scale = self.param('log_temperature', nn.initializers.constant(np.log(self.contrast.temperature)), ())
    bias = self.param('bias', nn.initializers.constant(self.contrast.bias), ())
    return jnp.exp(scale) * (image @ text.T) + bias


def sigmoid_loss(logits: jax.Array, is_true: jax.Array) -> jax.Array:
  """SigLIP's loss: -log sigmoid(±logit), summed over the captions, mean over the images.

  Args:
    logits: float32[B, C].
    is_true: bool[B, C], True where the caption is true of the image.
  """
  return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(jnp.where(is_true, logits, -logits)), axis=-1))


def pretrain_vision(
  setup: PretrainingSetup,
  params: Any,
  images: np.ndarray,
  captions: np.ndarray,
  said: tuple[np.ndarray, np.ndarray],
  contrast: Contrast,
) -> Any:
  """Trains the understanding encoder; each step sees some images, the true caption of each and some near misses.

  Args:
    setup: how; `model` gives the encoder's sizes and the vocabulary.
    params: tree of `vision_encoder`.
    images: uint8[N, size, size, 3].
    captions: int32[C, L], token ids padded with -1; all distinct captions there are.
    said: rows of `captions` for each image: int[N] the true one, int[N, M] near misses, of which each step samples.
    contrast: the text tower and the loss.

  Returns:
    The trained tree, on the device.

  Raises:
    InputError: shapes do not fit each other, a token outside the vocabulary, a caption that is not there.
  """
  vocab = setup.model.language_model.vocab_size
  true, wrong = said
  if not len(true) == len(wrong) == len(images):
    raise InputError(f'{len(images)} images, {len(true)} captions and {len(wrong)} near misses: expected one of each')
  if min(true.min(), wrong.min(initial=0)) < 0 or max(true.max(), wrong.max(initial=0)) >= len(captions):
    raise InputError(f'an image has a caption that is not there: expected 0..{len(captions) - 1}')
  rng = np.random.default_rng(setup.seed)
  order = setup.optimization.sample_rows(rng, len(images))
  if captions.min() < -1 or captions.max() >= vocab:
    raise InputError(f'captions hold {captions.min()}..{captions.max()}: expected -1 (padding) and 0..{vocab - 1}')
  model = _Pair(setup.model, contrast, setup.compute)
  init = jax.jit(model.init)(jax.random.key(setup.seed), images[:1], captions[:1])['params']

  def objective(params, batch):
    pixels, words, is_true = batch
    return sigmoid_loss(model.apply({'params': params}, pixels, words), is_true)

  def batch(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Of each image others than before, without one that it has twice.
    picks = rng.random((len(rows), wrong.shape[1])).argsort(axis=1)[:, : contrast.near_misses]
    words = np.concatenate([true[rows], np.take_along_axis(wrong[rows], picks, axis=1).ravel()])
    return images[rows], captions[words], words == true[rows, None]

  batches = map(batch, order)
  return minimize(setup, {**init, 'vision_encoder': params}, objective, batches)['vision_encoder']
