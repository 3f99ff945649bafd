"""The package itself: what it offers, and the text of a mesh."""

import pytest

import janus_jax
from janus_jax.errors import InputError
from janus_jax.sharding.mesh import parse_mesh


def test_what_the_package_offers_is_listed_and_there():
  for name in dir(janus_jax):
    assert getattr(janus_jax, name) is not None
  with pytest.raises(AttributeError, match='nothing'):
    janus_jax.nothing  # noqa: B018


def test_mesh_text():
  assert parse_mesh(None) is None
  assert dict(parse_mesh('tensor=2,data=-1').shape) == {'data': 4, 'fsdp': 1, 'tensor': 2, 'context': 1}
  for wrong in ('tensor', 'tensor=x', 'tensor=2,'):
    with pytest.raises(InputError, match='expected axis=number'):
      parse_mesh(wrong)
