"""A small model that requests are made of, and a record of the calls that these end in."""

import types
from collections.abc import Callable

import pytest

import janus_jax
from janus_jax.inference.requests import LoadedJanus


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory) -> str:
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  import small_checkpoint

  return small_checkpoint.write(tmp_path_factory.mktemp('requests') / 'checkpoint')


@pytest.fixture(scope='session')
def model(checkpoint) -> LoadedJanus:
  return janus_jax.load(checkpoint)


@pytest.fixture
def recorded(monkeypatch) -> Callable[[types.ModuleType, str], list[tuple[tuple, dict]]]:
  """Arguments of the calls that a module makes of a function, which still happens."""

  def record(module: types.ModuleType, name: str) -> list[tuple[tuple, dict]]:
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: calls.append((args, kwargs)) or function(*args, **kwargs))
    return calls

  return record
