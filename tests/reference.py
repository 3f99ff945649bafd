"""The reference side of parity tests: transformers' own classes with random weights, and the same weights for us."""

import functools

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.conversion.configs import janus_to_huggingface
from janus_jax.conversion.lazy import from_numpy
from janus_jax.conversion.translate import parameter_shapes, params_from_tensors
from janus_jax.models.config import PRESETS, JanusConfig

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

TINY = PRESETS['test_tiny']


def randomize(module: 'torch.nn.Module', seed: int) -> None:
  """Gives every parameter, norms and biases included, a value that matters, of a size that keeps activations near 1."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, parameter in module.named_parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      if parameter.ndim > 1:
        fan_in = parameter[0].numel()
        is_table = 'embed' in name and 'patch' not in name
        parameter.copy_(noise if is_table else noise * fan_in**-0.5)
      else:
        is_scale = name.endswith('weight')
        parameter.copy_(noise * 0.1 + (1.0 if is_scale else 0.0))


@functools.cache
def huggingface_model(config: JanusConfig = TINY, seed: int = 0) -> 'torch.nn.Module':
  """JanusForConditionalGeneration in float32 with random weights."""
  fields = janus_to_huggingface(config, 'float32')
  model = transformers.JanusForConditionalGeneration(transformers.JanusConfig.from_dict(fields)).eval()
  randomize(model, seed)
  return model


def arrays(module: 'torch.nn.Module') -> dict:
  """State dict as lazy arrays."""
  return {name: from_numpy(tensor.detach().numpy(), name) for name, tensor in module.state_dict().items()}


@functools.cache
def our_params(config: JanusConfig = TINY, seed: int = 0) -> dict:
  """The weights of `huggingface_model` as our parameter tree."""
  model = huggingface_model(config, seed)
  lazy = params_from_tensors(parameter_shapes(config), arrays(model), 'huggingface', 'reference')
  return flax.traverse_util.unflatten_dict({path: jnp.asarray(array[...]) for path, array in lazy.items()}, sep='/')


def greedy_codes(model: 'torch.nn.Module', ids: np.ndarray, mask: np.ndarray, tokens: dict[str, int]) -> np.ndarray:
  """int[B, P], codes that transformers generates greedily at guidance 5; `tokens`: ids called bos, pad and boi."""
  options = transformers.GenerationConfig(
    do_sample=False,
    guidance_scale=5.0,
    bos_token_id=tokens['bos'],
    pad_token_id=tokens['pad'],
    generation_kwargs={'boi_token_id': tokens['boi']},
  )
  ids, mask = torch.from_numpy(ids).long(), torch.from_numpy(mask).long()
  return model.generate(ids, attention_mask=mask, generation_mode='image', generation_config=options).numpy()


def to_torch(array: np.ndarray) -> 'torch.Tensor':
  return torch.from_numpy(np.array(array))


def difference(ours, reference: 'torch.Tensor') -> float:
  """Largest absolute difference; NaN counts as infinite."""
  delta = np.abs(np.asarray(ours, np.float64) - reference.detach().double().numpy())
  return float(np.nan_to_num(delta, nan=np.inf).max())
