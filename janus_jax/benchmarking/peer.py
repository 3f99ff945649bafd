"""The peer: transformers' Janus in torch with the same weights, run as a good user would run it.

It has a process of its own, which waits while it is not its turn: in one process the threads of torch and of XLA wait
for work by spinning and take each other's cores; on two cores both took half again as long.
"""

import multiprocessing
from collections.abc import Callable
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
  """torch and transformers; raises InputError where one of them is not installed."""
  try:
    import torch
    import transformers
  except ImportError as error:
    raise InputError(f'--peer=transformers: {error}: expected `pip install torch transformers`') from None
  return torch, transformers


def peer_model(config: JanusConfig, params: Any, dtype: str) -> Any:
  """`JanusForConditionalGeneration` with the numpy arrays of our tree in `dtype`, on the GPU where torch sees one.

  Raises:
    InputError: torch or transformers is missing, or transformers cannot express the architecture.
  """
  torch, transformers = import_peer()
  transformers.logging.set_verbosity_error()  # In every run it says which of its settings go first.
  transformers.logging.disable_progress_bar()
  fields = transformers.JanusConfig.from_dict(janus_to_huggingface(config, dtype))
  lazy = {path: from_numpy(np.asarray(leaf, np.float32), path) for path, leaf in flatten(params).items()}
  tensors = tensors_from_params(lazy, 'huggingface')
  state = {name: torch.from_numpy(np.array(tensor[...])) for name, tensor in tensors.items()}
  # Not by the class itself, which first samples weights of its own (15 s for a billion on one core).
  peer, report = transformers.JanusForConditionalGeneration.from_pretrained(
    None, config=fields, state_dict=state, dtype=getattr(torch, dtype), output_loading_info=True
  )
  if wrong := {name: keys for name, keys in report.items() if keys}:
    raise InputError(f'--peer=transformers: transformers takes the weights otherwise than expected: {wrong}')
  return peer.to(device_of(torch)).eval()


def device_of(torch: Any) -> str:
  return 'cuda' if torch.cuda.is_available() else 'cpu'


def should_compile(asked: bool | None) -> bool:
  """True if the peer goes through `torch.compile`: as asked; None: on a GPU, where it pays."""
  return device_of(import_peer()[0]) == 'cuda' if asked is None else asked


def described(dtype: str, compiled: bool, how: str) -> str:
  """Sentence about the peer: versions, device, settings."""
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


class PeerProcess:
  """An object in another process; its methods are called by name."""

  def __init__(self, make: Callable[[], Any]):
    """`make`, which can be pickled, makes the object over there."""
    context = multiprocessing.get_context('spawn')
    self._ours, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, make), daemon=True)
    self._process.start()
    theirs.close()
    self._answer()

  def call(self, method: str, *arguments: Any) -> Any:
    """Waits for what the method returns; raises InputError for what it raised, or where the process died."""
    self._ours.send((method, arguments))
    return self._answer()

  def close(self) -> None:
    """Ends the process and frees its memory."""
    self._ours.close()
    self._process.join()

  def _answer(self) -> Any:
    try:
      failed, value = self._ours.recv()
    except EOFError:
      self._process.join()
      raise InputError(f'the peer died with exit code {self._process.exitcode}: out of memory?') from None
    if failed:
      raise InputError(value)
    return value


def _serve(connection: Any, make: Callable[[], Any]) -> None:
  jax.config.update('jax_platforms', 'cpu')  # It only prepares arrays with jax.
  try:
    made = make()
    connection.send((False, None))
    while True:
      method, arguments = connection.recv()
      connection.send((False, getattr(made, method)(*arguments)))
  except EOFError:
    return
  except InputError as error:
    connection.send((True, str(error)))
  except Exception as error:
    connection.send((True, f'the peer: {type(error).__name__}: {" ".join(str(error).split())[:500]}'))
