"""Opens checkpoints for use from Python, and the checks and settings that drawing and answering share.

    config, params = janus_jax.load('Janus-Pro-1B', dtype='bfloat16')
    tokenizer, template = janus_jax.load_tokenizer('Janus-Pro-1B')
    images = janus_jax.generate_images(config, params, ['a red cube'], tokenizer=tokenizer, template=template)
    answers = janus_jax.answer(config, params, [[image]], ['What is it?'], tokenizer=tokenizer, template=template)

The last two live in `drawing.py` and `answering.py`, whose `stream_*` functions give results as they come.
"""

import contextlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from janus_jax.conversion.buckets import local_files
from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.conversion.export import cast_params
from janus_jax.conversion.load import load_params
from janus_jax.conversion.resample import resize_images
from janus_jax.conversion.workdir import split_ema
from janus_jax.data.prompts import Template, find_template
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import InputError
from janus_jax.inference.decoder import Decoder, is_spread, make_decoder
from janus_jax.inference.sampling import row_key
from janus_jax.models.attention_choice import choose, of_images, platform_of
from janus_jax.models.config import ComputeConfig, JanusConfig
from janus_jax.sharding.mesh import make_mesh
from janus_jax.sharding.rules import parameter_shardings


def load(
  path: str,
  dtype: str | None = None,
  mesh: jax.sharding.Mesh | None = None,
  image_size: int | None = None,
) -> tuple[JanusConfig, dict]:
  """Loads a checkpoint of any layout: Orbax, transformers' or DeepSeek's. It tells which by looking.

  Args:
    path: directory, local or in a bucket (gs://BUCKET/...); WORKDIR@ema for the averages of a run with
      `optimizer.ema_decay`.
    dtype: 'float32', 'bfloat16' or 'float16'; None keeps what is stored.
    mesh: devices to spread the parameters over, by `sharding/rules.py`; None puts them on the default device.
    image_size: pixels; another size than the checkpoint's resamples the table of patch positions.

  Returns:
    The architecture, and the parameters for `models.janus.Janus(config).apply({'params': params}, ...)`.

  Raises:
    InputError: no checkpoint there, damaged files, or tensors that are not a Janus's.
  """
  checkpoint = cast_params(open_checkpoint(path), dtype)
  if image_size is not None:
    checkpoint = resize_images(checkpoint, image_size)
  shardings = None
  if mesh is not None:
    shardings = parameter_shardings({name: leaf.shape for name, leaf in checkpoint.params.items()}, mesh)
  return checkpoint.config, load_params(checkpoint, shardings)


def load_tokenizer(path: str) -> tuple[Tokenizer, Template]:
  """The tokenizer of a checkpoint directory, and the names it was taught for who speaks.

  Both belong to the one checkpoint: ids and names differ between the released ones, and the wrong ones are accepted by
  the model and ruin what it makes.

  Raises:
    InputError: no tokenizer there, or not a Janus's.
  """
  path = local_files(split_ema(path)[0])
  tokenizer = Tokenizer.from_directory(path)
  return tokenizer, find_template(path, tokenizer)


def parse_mesh(text: str | None) -> jax.sharding.Mesh | None:
  """'tensor=2,fsdp=-1' -> a mesh over all devices (`sharding.mesh.make_mesh`); None or '' -> None."""
  if not text:
    return None
  sizes = {}
  for part in text.split(','):
    axis, _, size = part.partition('=')
    if not size.removeprefix('-').isdecimal():
      raise InputError(f'mesh {text!r}: {part!r}: expected axis=number, as in tensor=2,fsdp=-1')
    sizes[axis.strip()] = int(size)
  return make_mesh(sizes)


def decoder_for(config: JanusConfig, params: dict, weights: str = 'full', cache_dtype: str | None = None) -> Decoder:
  """`make_decoder` computing in the dtype that the decoder's parameters are stored in, with the device's kernels."""
  dtype = params['language_model']['final_norm']['scale'].dtype.name
  # XLA cannot split a TPU's kernel over the devices that the parameters lie on.
  requested = 'xla' if is_spread(params) else 'auto'
  kernel = choose(requested, platform_of(jax.devices()[0]), of_images(config, dtype))
  compute = ComputeConfig(dtype=dtype, attention=requested, vision_attention=kernel)
  return make_decoder(config, compute, params, weights, cache_dtype)


def full_precision(decoder: Decoder) -> contextlib.AbstractContextManager:
  """Where a float32 decoder runs: accelerators round the inputs of float32 products unless told not to."""
  exact = decoder.compute.dtype == 'float32'
  return jax.default_matmul_precision('highest') if exact else contextlib.nullcontext()


def request_keys(seed: int, rows: Sequence[Sequence[int]]) -> jax.Array:
  """key[B] of (seed, *indices) for each row; InputError where jax would silently wrap the seed."""
  if not 0 <= seed < 2**32:
    raise InputError(f'seed is {seed}: expected 0 to 2^32 - 1')
  return jnp.stack([row_key(seed, *indices) for indices in rows])


def check_positive(name: str, value: int) -> None:
  """Raises InputError, naming the setting."""
  if value < 1:
    raise InputError(f'{name} is {value}: expected 1 or more')


def check_tokenizer(config: JanusConfig, tokenizer: Tokenizer) -> None:
  """Raises InputError for a tokenizer of another checkpoint.

  It pads with an ordinary word, which would ruin guidance without a sign; and an id beyond the rows of the embedding
  table is embedded as NaN. A table may have more rows than the tokenizer has tokens.
  """
  placeholder = tokenizer.special.image_placeholder
  if placeholder != config.image_token_id:
    raise InputError(
      f'{tokenizer.path}: image placeholder is token {placeholder}: expected {config.image_token_id} as in the '
      'config; this is the tokenizer of another checkpoint'
    )
  rows = config.language_model.vocab_size
  if tokenizer.largest_id >= rows:
    raise InputError(
      f'{tokenizer.path}: has a token with id {tokenizer.largest_id}: expected ids below {rows}, the rows of the '
      "model's embedding table (vocab_size)"
    )
