import hashlib

import ml_dtypes
import numpy as np
import pytest

from janus_jax.data.sources.manifest import parameters_hash, read_manifest
from janus_jax.errors import InputError


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, 'No such file or directory: expected the output of janus_jax.tokenize'),
    ('{', 'not JSON'),
    ('[]', 'format_version is None: expected 1'),
    ('{"format_version": 2}', 'format_version is 2: expected 1'),
    ('{"format_version": 1}', "not the manifest of codes ('name')"),
  ],
)
def test_manifests_that_are_none(tmp_path, content, message):
  if content is not None:
    (tmp_path / 'manifest.json').write_text(content)
  with pytest.raises(InputError) as error:
    read_manifest(str(tmp_path))
  assert str(error.value).startswith(f'{tmp_path}/manifest.json: {message}')


def test_the_hash_is_of_names_shapes_and_values():
  params = {'vq/b': np.arange(6, dtype=np.float32).reshape(2, 3), 'vq/a': np.ones(2, np.float32)}
  whole = b'vq/a (2,)\n' + params['vq/a'].tobytes() + b'vq/b (2, 3)\n' + params['vq/b'].tobytes()
  expected = hashlib.sha256(whole).hexdigest()
  assert parameters_hash(params) == expected
  # The same numbers, stored otherwise.
  assert parameters_hash(dict(reversed(params.items()))) == expected
  assert parameters_hash({path: array.astype(ml_dtypes.bfloat16) for path, array in params.items()}) == expected
  assert parameters_hash({**params, 'vq/b': np.asfortranarray(params['vq/b'])}) == expected
  changed = params['vq/b'] + np.eye(2, 3, dtype=np.float32) * 1e-6
  for other in ({'vq/b': changed}, {'vq/b': params['vq/b'].reshape(3, 2)}, {'vq/c': np.zeros(0, np.float32)}):
    assert parameters_hash({**params, **other}) != expected
