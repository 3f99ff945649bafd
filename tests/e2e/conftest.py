"""Fixtures of tests that train."""

import pytest


@pytest.fixture(scope='module')
def start(tmp_path_factory) -> str:
  """A checkpoint with fresh weights."""
  from e2e.small_run import write_start  # The toy world, which not every environment can make.

  return write_start(tmp_path_factory.mktemp('start'))


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> str:
  """A directory for made data."""
  return str(tmp_path_factory.mktemp('data'))
