"""What `janus_jax.report` takes for scores."""

import json

import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.report import SCORE_FIELDS, read_scores


def write(directory, scores, drawings=1, scenes=1):
  (directory / 'scores.json').write_text(scores if isinstance(scores, str) else json.dumps(scores))
  pixels = {name: np.zeros((n, 4, 4, 3), np.uint8) for name, n in (('drawings', drawings), ('questions', scenes))}
  np.savez_compressed(directory / 'pictures.npz', **pixels)


def whole() -> dict:
  return {name: [dict.fromkeys(fields, 0)] for name, fields in SCORE_FIELDS.items()}


def test_whole_scores_are_read(tmp_path):
  write(tmp_path, whole())
  scores, drawings, scenes = read_scores(str(tmp_path))
  assert (scores, drawings.shape, scenes.shape) == (whole(), (1, 4, 4, 3), (1, 4, 4, 3))


@pytest.mark.parametrize('name', SCORE_FIELDS)
def test_scores_without_a_part_are_refused(tmp_path, name):
  for part in ([], {}, None, [{}], [3]):
    write(tmp_path, {**whole(), name: part})
    with pytest.raises(InputError, match=rf'scores.json: {name}(: entry 0 has no | is missing or empty: expected )'):
      read_scores(str(tmp_path))


@pytest.mark.parametrize('text', ['', '{}', '[]', 'null', '\x00'])
def test_empty_scores_are_refused(tmp_path, text):
  write(tmp_path, text)
  with pytest.raises(InputError, match=r'scores\.json: '):
    read_scores(str(tmp_path))


def test_images_must_be_those_of_the_scores(tmp_path):
  write(tmp_path, whole(), drawings=2)
  with pytest.raises(InputError, match=r'pictures\.npz: 2 drawings and 1 scenes: expected 1 and 1'):
    read_scores(str(tmp_path))
  for content in (b'', b'PK', b'not an archive'):
    (tmp_path / 'pictures.npz').write_bytes(content)
    with pytest.raises(InputError, match=r'pictures\.npz: .*expected what janus_jax.evaluate writes'):
      read_scores(str(tmp_path))
