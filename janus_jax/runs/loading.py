"""Opens a checkpoint for use from Python.

janus = janus_jax.load('Janus-Pro-1B', dtype='bfloat16')
images = janus_jax.generate_images(janus, ['a red cube'], num_images=4)
answers = janus_jax.answer(janus, [[image]], ['What is it?'])
"""

import logging

import jax
import numpy as np

from janus_jax.conversion.adapters import split_base
from janus_jax.conversion.buckets import local_files
from janus_jax.conversion.checkpoint import Checkpoint, open_checkpoint
from janus_jax.conversion.export import cast_params
from janus_jax.conversion.hub import resolved
from janus_jax.conversion.load import load_params
from janus_jax.conversion.peft_files import is_peft, recorded_base
from janus_jax.conversion.refiner_files import check_vq, read_refiner
from janus_jax.conversion.workdir import split_ema
from janus_jax.data.prompts import Template, find_template
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.inference.decoder import Spread
from janus_jax.inference.refining import ImageRefiner
from janus_jax.inference.requests import LoadedJanus
from janus_jax.runs import workdirs
from janus_jax.runs.image_codes import vq_arrays
from janus_jax.sharding.mesh import ROW_AXES
from janus_jax.sharding.rules import parameter_shardings


def load(
  path: str,
  dtype: str | None = None,
  mesh: jax.sharding.Mesh | None = None,
  image_size: int | None = None,
  generation_size: int | None = None,
) -> LoadedJanus:
  """Loads a checkpoint of any layout: Orbax, transformers' or DeepSeek's.

  Weights alone, without a tokenizer.json, load too.

  Args:
    path: directory, local or in a bucket (gs://BUCKET/...), or a name on the hub; WORKDIR@ema for the averages of a run
      with `optimizer.ema_decay`; BASE+ADAPTER for an adapter over another base than it names.
    dtype: 'float32', 'bfloat16' or 'float16'; None keeps what is stored.
    mesh: devices to spread the parameters over, by `sharding/rules.py`; None puts them on the default device.
    image_size: pixels; another size than the checkpoint's resamples the table of patch positions.
    generation_size: of images to generate; None: `image_size` if that is given, else the checkpoint's.

  Raises:
    InputError: no checkpoint there, damaged files, tensors that are not a Janus's, or a tokenizer that is not.
  """
  checkpoint = cast_params(open_checkpoint(path), dtype)
  checkpoint = checkpoint.resized(image_size or 0, generation_size or image_size or 0)
  shardings = None
  if mesh is not None:
    shardings = parameter_shardings({name: leaf.shape for name, leaf in checkpoint.params.items()}, mesh)
  words = load_tokenizer(path) if 'tokenizer.json' in checkpoint.tokenizer_files else (None, None)
  params, sampling = load_params(checkpoint, shardings), workdirs.read_sampling(path)
  return LoadedJanus(checkpoint.config, params, *words, sampling, None if mesh is None else spread_over(mesh))


def load_refiner(path: str, checkpoint: Checkpoint, shape: tuple[int, int]) -> ImageRefiner:
  """Loads a refiner for the VQ of a checkpoint, and says what it does.

  Args:
    path: its directory (`conversion.refiner_files`).
    checkpoint: as `open_checkpoint` opens it.
    shape: height and width of the images to refine, in pixels.

  Raises:
    InputError: no refiner there, damaged files, a refiner for another VQ, or one that cannot take the size.
  """
  stored, arrays = read_refiner(path), vq_arrays(checkpoint)
  check_vq(stored, path, arrays, shape)
  small, large = (f'{scale * shape[1]} x {scale * shape[0]}' for scale in (1, stored.config.scale))
  logging.info('%s: images of %s pixels become %s, in %d steps each', path, small, large, stored.config.flow_steps)
  return ImageRefiner(stored.config, stored.params, np.asarray(arrays['vq/codebook'], np.float32))


def spread_over(mesh: jax.sharding.Mesh) -> Spread | None:
  """How rows of requests are split where parameters are by `sharding/rules.py`; None of one device."""
  return Spread(mesh, computed=('data',), stored=ROW_AXES) if mesh.size > 1 else None


def load_tokenizer(path: str) -> tuple[Tokenizer, Template]:
  """The tokenizer and template (names of the roles) of a checkpoint directory; of an adapter of peft, its base's.

  They differ between the released checkpoints; the model accepts wrong ones, and they ruin what it makes.

  Raises:
    InputError: no tokenizer there, or not a Janus's.
  """
  base, path = split_base(path)
  path = local_files(resolved(split_ema(path)[0]))
  if is_peft(path):
    return load_tokenizer(base or recorded_base(path))
  tokenizer = Tokenizer.from_directory(path)
  return tokenizer, find_template(path, tokenizer)
