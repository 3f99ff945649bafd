"""The Python interface: `janus_jax.load`. `janus_jax/__init__.py` re-exports it."""

import jax

from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.conversion.export import cast_params
from janus_jax.conversion.load import load_params
from janus_jax.conversion.resample import resize_images
from janus_jax.models.config import JanusConfig
from janus_jax.sharding.rules import parameter_shardings


def load(
  path: str,
  dtype: str | None = None,
  mesh: jax.sharding.Mesh | None = None,
  image_size: int | None = None,
) -> tuple[JanusConfig, dict]:
  """Loads a checkpoint of any layout: Orbax, transformers' or DeepSeek's. It tells which by looking.

  Args:
    path: directory.
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
