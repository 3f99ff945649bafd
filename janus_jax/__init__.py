"""janus_jax: trains Janus-Pro in JAX. Names are loaded when used, so that `janus_jax.models` alone stays light."""

import importlib
from typing import Any

__version__ = '0.1.0'
__all__ = ['AnswerSettings', 'ImageSettings', 'LoadedJanus', '__version__', 'answer', 'generate_images', 'load']

_HOMES = {
  'load': 'janus_jax.runs.loading',
  'generate_images': 'janus_jax.inference.generation',
  'answer': 'janus_jax.inference.answering',
  'LoadedJanus': 'janus_jax.inference.requests',
  'ImageSettings': 'janus_jax.inference.requests',
  'AnswerSettings': 'janus_jax.inference.requests',
}


def __getattr__(name: str) -> Any:
  if name in _HOMES:
    return getattr(importlib.import_module(_HOMES[name]), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return __all__
