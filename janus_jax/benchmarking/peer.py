"""The peer: transformers' Janus in torch with the same weights, run as a good user would run it."""

from typing import Any

import jax
import numpy as np

from janus_jax.conversion.configs import janus_to_huggingface
from janus_jax.conversion.lazy import from_numpy
from janus_jax.conversion.translate import tensors_from_params
from janus_jax.errors import InputError
from janus_jax.models.config import JanusConfig
from janus_jax.training.state import flatten


def import_peer() -> tuple[Any, Any]:
  """torch and transformers.

  Raises:
    InputError: one of them is not installed.
  """
  try:
    import torch
    import transformers
  except ImportError as error:
    raise InputError(f'--peer=transformers: {error}: expected `pip install torch transformers`') from None
  return torch, transformers


def peer_model(model: JanusConfig, params: Any, dtype: str) -> Any:
  """`JanusForConditionalGeneration` with these weights, on the GPU where torch sees one.

  Args:
    model: architecture.
    params: our tree, numpy arrays.
    dtype: of its parameters.

  Raises:
    InputError: torch or transformers is missing, or transformers cannot express the architecture.
  """
  torch, transformers = import_peer()
  transformers.logging.set_verbosity_error()  # It says of every run which of its settings go first.
  fields = transformers.JanusConfig.from_dict(janus_to_huggingface(model, dtype))
  peer = transformers.JanusForConditionalGeneration(fields)
  lazy = {path: from_numpy(np.asarray(leaf, np.float32), path) for path, leaf in flatten(params).items()}
  tensors = tensors_from_params(lazy, 'huggingface')
  peer.load_state_dict({name: torch.from_numpy(np.array(tensor[...])) for name, tensor in tensors.items()})
  return peer.to(device_of(torch), getattr(torch, dtype)).eval()


def device_of(torch: Any) -> str:
  return 'cuda' if torch.cuda.is_available() else 'cpu'


def should_compile(asked: bool | None) -> bool:
  """Whether the peer goes through `torch.compile`: as asked, or None on a GPU only, where it pays."""
  return device_of(import_peer()[0]) == 'cuda' if asked is None else asked


def described(dtype: str, compiled: bool, how: str) -> str:
  """In words: versions, where and how the peer ran."""
  torch, transformers = import_peer()
  where = torch.cuda.get_device_name() if torch.cuda.is_available() else f'CPU, {torch.get_num_threads()} threads'
  compiling = 'torch.compile' if compiled else 'without torch.compile'
  return (
    f'transformers {transformers.__version__}, torch {torch.__version__}, {where}, {dtype}, SDPA attention, '
    f'{compiling}; {how}'
  )


def check_peer() -> None:
  """Raises InputError where the peer is missing, or both sides would not run on one and the same device."""
  torch, _ = import_peer()
  ours, theirs = jax.devices()[0].platform, device_of(torch)
  if (ours == 'cpu') != (theirs == 'cpu'):
    raise InputError(f'--peer=transformers: jax runs on {ours} and torch on {theirs}: expected one device for both')
  if jax.device_count() > 1:
    raise InputError(
      f'--peer=transformers: jax sees {jax.device_count()} devices and the peer uses one: expected one (on GPUs '
      'CUDA_VISIBLE_DEVICES=0)'
    )
