"""Drawing and answering: seconds per image, to the first token, per token. Prompts are random tokens."""

import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.benchmarking.benchmark_model import BenchmarkModel
from janus_jax.data.images import to_uint8
from janus_jax.inference.answering import TextPrompts, generate_text
from janus_jax.inference.decoder import Decoder
from janus_jax.inference.generation import generate_codes, guided_prompts, has_guidance
from janus_jax.inference.requests import LoadedJanus, decoder_for, request_keys
from janus_jax.inference.sampling import Sampling
from janus_jax.sharding.accelerators import ACCELERATORS

# Ids that stand for the special tokens; with random weights any will do.
BOS, PAD, BEGIN_OF_IMAGE = 0, 1, 2
WORDS = 3  # The first id of those that stand for words.
NO_END = -1  # No token ends an answer, so that every row is as long as asked for.


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
  """What is asked of a model.

  Attributes:
    tokens: int32[R, T], left-padded.
    mask: bool[R, T], False on padding.
    pixels: uint8[R, size, size, 3], or None.
    share: so many consecutive rows begin alike, and we run that once for them.
    seen: tokens that those begin with.
  """

  tokens: np.ndarray
  mask: np.ndarray
  pixels: np.ndarray | None
  share: int = 1
  seen: int = 0

  def slots_read(self, position: float) -> float:
    """Of the cache in a decode step of all rows, at that position after the prompts."""
    rows, length = self.tokens.shape
    return rows * (length + position) - (rows - rows // self.share) * self.seen


def benchmark_decoder(
  subject: BenchmarkModel, dtype: str, weights: str = 'full', cache_dtype: str | None = None
) -> Decoder:
  """The subject's weights in `dtype`, or rounded from that, ready to draw and answer (`requests.decoder_for`)."""
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.dtype(dtype)), subject.make_params())
  return decoder_for(LoadedJanus(subject.model, params), weights, cache_dtype)


def drawing_prompts(subject: BenchmarkModel, batch: int, words: int, guidance: float, share: int = 1) -> Prompts:
  """Prompts of `words` tokens, each for `share` images, the last token begin-of-image (`generation.guided_prompts`)."""
  tokens = _words(subject, batch // share, words, np.random.default_rng(subject.config.seed)).repeat(share, axis=0)
  tokens[:, -1] = BEGIN_OF_IMAGE
  without = tokens.copy()
  without[:, 1:-1] = PAD
  tokens = np.stack(guided_prompts(tokens, without, guidance))
  return Prompts(tokens, np.ones(tokens.shape, bool), None, share, words)


def questions(subject: BenchmarkModel, batch: int, words: int, share: int = 1) -> Prompts:
  """An image, the same for `share` questions, and `words` tokens after it."""
  rng, model = np.random.default_rng(subject.config.seed), subject.model
  tokens = _words(subject, batch, 1 + model.num_image_tokens + words, rng)
  tokens[:, 1 : 1 + model.num_image_tokens] = model.image_token_id
  pixels = rng.integers(0, 256, (batch // share, model.image_size, model.image_size, 3), np.uint8)
  return Prompts(tokens, np.ones(tokens.shape, bool), pixels.repeat(share, axis=0), share, 1 + model.num_image_tokens)


def texts(subject: BenchmarkModel, batch: int, words: int) -> Prompts:
  """`words` tokens without an image."""
  tokens = _words(subject, batch, words, np.random.default_rng(subject.config.seed))
  return Prompts(tokens, np.ones(tokens.shape, bool), None)


def _words(subject: BenchmarkModel, batch: int, count: int, rng: np.random.Generator) -> np.ndarray:
  """int32[batch, count]: begin-of-text, and then any tokens but special ones and the placeholder of images."""
  tokens = rng.integers(WORDS, subject.model.language_model.vocab_size - 1, (batch, count)).astype(np.int32)
  tokens += tokens >= subject.model.image_token_id
  tokens[:, 0] = BOS
  return tokens


def draw_codes(decoder: Decoder, prompts: Prompts, guidance: float, sampling: Sampling) -> np.ndarray:
  """int32[N, P]."""
  images = len(prompts.tokens) // (2 if has_guidance(guidance) else 1)
  keys = request_keys(0, [(row,) for row in range(images)])
  asked = prompts.tokens[:: prompts.share], prompts.mask[:: prompts.share]
  return np.asarray(generate_codes(decoder, *asked, keys, guidance=guidance, sampling=sampling))


@jax.jit
def _decode_codes(decoder: Decoder, codes: jax.Array) -> jax.Array:
  return decoder.method('decode_codes', codes)


def decode_codes(decoder: Decoder, codes: np.ndarray) -> np.ndarray:
  """int32[N, P] to uint8[N, size, size, 3], one image at a time as `drawing.stream_images` does it."""
  return to_uint8(np.concatenate([_decode_codes(decoder, row[None]) for row in codes]))


def answer_tokens(decoder: Decoder, prompts: Prompts, count: int) -> tuple[np.ndarray, float]:
  """int32[R, count], the likeliest ones, and the seconds that those after the first took."""
  keys = request_keys(0, [(row,) for row in range(len(prompts.tokens))])
  options = {'eos_id': NO_END, 'max_new_tokens': count, 'sampling': Sampling(temperature=0.0)}
  tokens, mask, pixels, rest = prompts.tokens, prompts.mask, prompts.pixels, None
  if prompts.share > 1:
    rest = tokens[:, prompts.seen :], mask[:, prompts.seen :]
    tokens, mask = (array[:: prompts.share, : prompts.seen] for array in (tokens, mask))
    pixels = pixels[:: prompts.share]
  chunks = generate_text(decoder, TextPrompts(tokens, mask, pixels, rest), keys, **options)
  first = next(chunks)
  began = time.perf_counter()
  tokens = np.concatenate([first, *chunks], axis=1)
  return tokens, time.perf_counter() - began


def bytes_per_step(decoder: Decoder, head: str, slots: float) -> float:
  """What a decode step has to read at least: the weights of the layers and of a head once, keys and values so far.

  Args:
    decoder: weights.
    head: 'lm_head' or 'gen_head'.
    slots: of the cache, over all rows (`Prompts.slots_read`); the mean over steps gives the mean of bytes.
  """
  rest, llama = decoder.rest, decoder.config.language_model
  heads = {'lm_head': lambda: rest['language_model']['lm_head'], 'gen_head': lambda: [rest[head], rest['gen_aligner']]}
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves((decoder.layers, heads[head]())))
  item = jnp.dtype(decoder.cache_dtype).itemsize
  return weights + math.prod((2, llama.depth, llama.num_kv_heads, llama.head_dim, item)) * slots


def roofline_share(bytes_read: float, seconds: float, device_kind: str) -> float | None:
  """Which part of `seconds` the memory's bandwidth accounts for, 0 to 1; None where it is not known."""
  device = ACCELERATORS.get(device_kind)
  return None if device is None else bytes_read / device.memory_bandwidth / seconds
