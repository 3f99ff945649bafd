"""Generation and answers for random prompts: seconds per image, to the first token, per token."""

import dataclasses
import itertools
import math
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.benchmarking.benchmark_model import BenchmarkModel
from janus_jax.data import prompts as prompts_lib
from janus_jax.data.images import to_uint8
from janus_jax.errors import InputError
from janus_jax.inference.answering import TextPrompts, generate_text
from janus_jax.inference.decoder import Decoder
from janus_jax.inference.drawing import ONE_BY_ONE, Drawn, Window, generate_codes, guided_prompts, has_guidance
from janus_jax.inference.generation import prompt_rows
from janus_jax.inference.requests import LoadedJanus, decoder_for, request_keys
from janus_jax.inference.sampling import Sampling
from janus_jax.runs.loading import load_tokenizer
from janus_jax.sharding.accelerators import ACCELERATORS

# Ids that stand for the special tokens; with random weights any will do.
BOS, PAD, BEGIN_OF_IMAGE = 0, 1, 2
FIRST_WORD = 3  # The first id that stands for a word.
NO_END = -1  # No token ends an answer, so that every row is as long as asked for.
GREEDY = Sampling(temperature=0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
  """Prompts of one batch.

  Attributes:
    tokens: int32[R, T], left-padded.
    mask: bool[R, T], False on padding.
    pixels: uint8[R, size, size, 3], or None.
    rows_per_prefix: consecutive rows that begin alike; their prefix runs once for them.
    prefix_length: tokens of that prefix.
    special: ids of begin-of-text, padding and begin-of-image.
  """

  tokens: np.ndarray
  mask: np.ndarray
  pixels: np.ndarray | None
  rows_per_prefix: int = dataclasses.field(default=1, metadata={'static': True})
  prefix_length: int = dataclasses.field(default=0, metadata={'static': True})
  special: tuple[int, int, int] = dataclasses.field(default=(BOS, PAD, BEGIN_OF_IMAGE), metadata={'static': True})

  def slots_read(self, position: float) -> float:
    """Cache slots that a decode step of all rows reads, at that position after the prompts."""
    rows, length = self.tokens.shape
    return rows * (length + position) - (rows - rows // self.rows_per_prefix) * self.prefix_length


def benchmark_decoder(
  model: BenchmarkModel, dtype: str, weights: str = 'full', cache_dtype: str | None = None
) -> Decoder:
  """The model's weights in `dtype`, or rounded from that, ready to generate and answer (`requests.decoder_for`)."""
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.dtype(dtype)), model.make_params())
  return decoder_for(LoadedJanus(model.config, params), weights, cache_dtype)


def image_prompts(model: BenchmarkModel, batch: int, length: int, guidance: float, per_prompt: int = 1) -> Prompts:
  """Prompts of `length` tokens, the last begin-of-image, each for `per_prompt` images (`drawing.guided_prompts`)."""
  rng = np.random.default_rng(model.run.seed)
  tokens = _random_tokens(model, batch // per_prompt, length, rng).repeat(per_prompt, axis=0)
  tokens[:, -1] = BEGIN_OF_IMAGE
  without = tokens.copy()
  without[:, 1:-1] = PAD
  tokens = np.stack(guided_prompts(tokens, without, guidance))
  return Prompts(tokens, np.ones(tokens.shape, bool), None, per_prompt, length)


def questions(model: BenchmarkModel, batch: int, length: int, per_image: int = 1) -> Prompts:
  """Questions of `length` tokens, `per_image` of them about the same image before them."""
  rng, config = np.random.default_rng(model.run.seed), model.config
  prefix = 1 + config.num_image_tokens
  tokens = _random_tokens(model, batch, prefix + length, rng)
  tokens[:, 1:prefix] = config.image_token_id
  pixels = rng.integers(0, 256, (batch // per_image, config.image_size, config.image_size, 3), np.uint8)
  return Prompts(tokens, np.ones(tokens.shape, bool), pixels.repeat(per_image, axis=0), per_image, prefix)


def texts(model: BenchmarkModel, batch: int, length: int) -> Prompts:
  """Prompts of `length` tokens without an image."""
  tokens = _random_tokens(model, batch, length, np.random.default_rng(model.run.seed))
  return Prompts(tokens, np.ones(tokens.shape, bool), None)


def _random_tokens(model: BenchmarkModel, batch: int, length: int, rng: np.random.Generator) -> np.ndarray:
  """int32[batch, length]: begin-of-text, and then any tokens but special ones and the placeholder of images."""
  tokens = rng.integers(FIRST_WORD, model.config.language_model.vocab_size - 1, (batch, length)).astype(np.int32)
  tokens += tokens >= model.config.image_token_id
  tokens[:, 0] = BOS
  return tokens


def described_images(
  model: BenchmarkModel, texts: Sequence[str], batch: int, guidance: float, per_prompt: int = 1
) -> Prompts:
  """Prompts in words, repeated to fill the batch, in the tokens and the template of the checkpoint.

  Raises InputError where there is none, or a prompt is empty or too long.
  """
  if not model.run.init_from:
    raise InputError('--prompt: expected with --config.init_from=PATH, a checkpoint that has a tokenizer')
  tokenizer, template = load_tokenizer(model.run.init_from)
  found = prompt_rows(model.config, texts, tokenizer, template)
  rows = list(itertools.islice(itertools.cycle(found), batch // per_prompt))
  rows = [row for row in rows for _ in range(per_prompt)]
  pad, length = tokenizer.special.pad, max(map(len, rows))
  without = [prompts_lib.unconditional_ids(row, pad) for row in rows]
  tokens, mask = prompts_lib.left_pad(guided_prompts(rows, without, guidance), pad, length)
  return Prompts(tokens, mask, None, per_prompt, length, (rows[0][0], pad, rows[0][-1]))


def sample_codes(
  decoder: Decoder, prompts: Prompts, guidance: float, sampling: Sampling, window: Window = ONE_BY_ONE
) -> Drawn:
  """Codes of N images, and what they took."""
  images = len(prompts.tokens) // (2 if has_guidance(guidance) else 1)
  keys = request_keys(0, [(row,) for row in range(images)])
  tokens, mask = (array[:: prompts.rows_per_prefix] for array in (prompts.tokens, prompts.mask))
  options = {'guidance': guidance, 'sampling': sampling, 'window': window}
  return jax.device_get(generate_codes(decoder, tokens, mask, keys, **options))


@jax.jit
def _decode_codes(decoder: Decoder, codes: jax.Array) -> jax.Array:
  return decoder.method('decode_codes', codes)


def decode_codes(decoder: Decoder, codes: np.ndarray) -> np.ndarray:
  """int32[N, P] to uint8[N, size, size, 3], one image at a time as `generation.stream_images` does it."""
  return to_uint8(np.concatenate([_decode_codes(decoder, row[None]) for row in codes]))


def answer_tokens(decoder: Decoder, prompts: Prompts, count: int) -> tuple[np.ndarray, float]:
  """Greedy answers int32[R, count], and the seconds that tokens after the first took."""
  keys = request_keys(0, [(row,) for row in range(len(prompts.tokens))])
  options = {'eos_id': NO_END, 'max_new_tokens': count, 'sampling': GREEDY}
  tokens, mask, pixels, rest = prompts.tokens, prompts.mask, prompts.pixels, None
  if prompts.rows_per_prefix > 1:
    each, prefix = slice(None, None, prompts.rows_per_prefix), prompts.prefix_length
    rest = tokens[:, prefix:], mask[:, prefix:]
    tokens, mask, pixels = tokens[each, :prefix], mask[each, :prefix], pixels[each]
  chunks = generate_text(decoder, TextPrompts(tokens, mask, pixels, rest), keys, **options)
  first = next(chunks)
  began = time.perf_counter()
  tokens = np.concatenate([first, *chunks], axis=1)
  return tokens, time.perf_counter() - began


def bytes_per_step(decoder: Decoder, head: str, slots: float) -> float:
  """Least bytes that a decode step reads: weights of the layers and of a head once, keys and values so far.

  `head` is 'lm_head' or 'gen_head'; the mean of `slots` over steps (`Prompts.slots_read`) gives the mean of bytes.
  """
  rest, llama = decoder.rest, decoder.config.language_model
  heads = rest['language_model']['lm_head'] if head == 'lm_head' else (rest['gen_head'], rest['gen_aligner'])
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves((decoder.layers, heads)))
  item = jnp.dtype(decoder.cache_dtype).itemsize
  return weights + math.prod((2, llama.depth, llama.num_kv_heads, llama.head_dim, item)) * slots


def roofline_fraction(bytes_read: float, seconds: float, device_kind: str) -> float | None:
  """Fraction of `seconds` that the memory's bandwidth accounts for; None where it is not known."""
  device = ACCELERATORS.get(device_kind)
  return None if device is None else bytes_read / device.memory_bandwidth / seconds
