"""Models for other harnesses. lmms-eval finds its own by an entry point in setup.py, the function here."""

from typing import Any


def lmms_eval_manifest() -> Any:
  """The manifest that lmms-eval registers as `--model janus_jax`; an error here would cost all plug-ins."""
  from lmms_eval.models.registry_v2 import ModelManifest

  return ModelManifest(model_id='janus_jax', chat_class_path='janus_jax.plugins.lmms_eval.JanusJax')
