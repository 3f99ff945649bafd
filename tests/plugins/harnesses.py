"""The parts of lmms-eval 0.7.3 and VLMEvalKit e8e78f0 that the plug-ins touch, for where these are not installed."""

import dataclasses
import importlib
import importlib.util
import sys
import types
from typing import Any


@dataclasses.dataclass(frozen=True)
class ModelManifest:
  model_id: str
  simple_class_path: str | None = None
  chat_class_path: str | None = None
  aliases: tuple[str, ...] = ()


class LmmsModel:
  is_simple = True

  def __init__(self):
    self._rank, self._world_size, self.task_dict = 0, 1, {}

  rank = property(lambda self: self._rank)
  world_size = property(lambda self: self._world_size)


class BaseModel:
  INTERLEAVE, allowed_types = False, ['text', 'image', 'video']

  def __init__(self):
    self.dump_image_func = None

  def set_dump_image(self, function):
    self.dump_image_func = function

  def dump_image(self, line, dataset):
    return self.dump_image_func(line)

  def preproc_content(self, inputs):
    return inputs

  def generate(self, message, dataset=None):
    assert all(part['type'] in self.allowed_types for part in message)
    return self.generate_inner(self.preproc_content(message), dataset)


# Module -> what it holds.
STAND_INS: dict[str, dict[str, Any]] = {
  'lmms_eval': {},
  'lmms_eval.api': {},
  'lmms_eval.api.model': {'lmms': LmmsModel},
  'lmms_eval.models': {},
  'lmms_eval.models.registry_v2': {'ModelManifest': ModelManifest},
}


def load_lmms_eval(monkeypatch) -> types.ModuleType:
  """`janus_jax.plugins.lmms_eval` over the real harness where it is installed, else over stand-ins."""
  if importlib.util.find_spec('lmms_eval') is None:
    for name, content in STAND_INS.items():
      module = types.ModuleType(name)
      vars(module).update(content)
      monkeypatch.setitem(sys.modules, name, module)
  monkeypatch.delitem(sys.modules, 'janus_jax.plugins.lmms_eval', raising=False)
  return importlib.import_module('janus_jax.plugins.lmms_eval')


def base_model() -> type:
  """VLMEvalKit's BaseModel, or its stand-in."""
  try:
    return importlib.import_module('vlmeval.vlm.base').BaseModel
  except ImportError:
    return BaseModel
