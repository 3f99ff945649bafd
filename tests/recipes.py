"""Recipes of configs/ by name."""

import importlib.util
import pathlib

from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).parent.parent


def recipe(name: str, *arguments: str) -> ConfigDict:
  """What `get_config` of configs/NAME.py gives."""
  spec = importlib.util.spec_from_file_location(name, ROOT / 'configs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*arguments)
