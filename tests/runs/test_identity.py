"""What tells runs apart: data of the same length, weights of the same shapes."""

import json

import numpy as np
import pytest
from conversion.checkpoints import TINY

from janus_jax.conversion.checkpoint import Checkpoint
from janus_jax.conversion.lazy import from_numpy
from janus_jax.data.resizing import pillow
from janus_jax.data.sources import build
from janus_jax.data.sources.build import ImageSizes
from janus_jax.runs import identity
from janus_jax.runs.config import DataConfig
from janus_jax.runs.datasets import RunData, Samples

TEXTS = [f'text number {i:03}' for i in range(200)]


def described(path, texts) -> dict:
  path.mkdir()
  (path / 'texts.jsonl').write_text('\n'.join(json.dumps({'text': text}) for text in texts))
  entries = {'books': {'kind': 'text', 'format': 'json_lines', 'path': str(path / 'texts.jsonl'), 'held_out': 3}}
  opened = build.open_sources(build.read_specs(entries), ImageSizes(8, 8, pillow), 0, str(path / 'index'))
  data = DataConfig(name='files', sources=entries)
  return identity.describe_data(data, RunData(opened['train'], opened['held_out'], False, Samples([], [])))


def test_a_copy_of_the_data_is_the_same(tmp_path):
  found = described(tmp_path / 'a', TEXTS)
  assert found == described(tmp_path / 'b', TEXTS)
  assert {name: value['records'] for name, value in found.items() if 'records' in value} == {
    'train.text.books': 197,
    'held_out.text.books': 3,
  }


@pytest.mark.parametrize('index', [0, 5, 101, 198])
def test_one_other_record_of_the_same_length_makes_other_data(tmp_path, index):
  other = list(TEXTS)
  other[index] = 'TEXT' + other[index][4:]
  assert described(tmp_path / 'a', TEXTS) != described(tmp_path / 'b', other)


def test_large_files_are_compared_by_pieces(tmp_path, monkeypatch):
  monkeypatch.setattr(identity, 'WHOLE_FILES', 100)
  expected = described(tmp_path / 'a', TEXTS)
  assert expected == described(tmp_path / 'b', TEXTS)
  assert expected != described(tmp_path / 'c', [*TEXTS[:-1], 'TEXT' + TEXTS[-1][4:]])


def test_other_weights_and_another_tokenizer_are_another_start():
  rng = np.random.default_rng(0)
  arrays = {f'{part}/{i}/kernel': rng.normal(size=(4, i + 1)) for part in ('vq', 'language_model') for i in range(20)}

  def start(arrays, tokenizer=b'{}') -> dict:
    params = {path: from_numpy(array, path) for path, array in arrays.items()}
    return identity.describe_start(Checkpoint(TINY, params, {'tokenizer.json': tokenizer}, {}, ()))

  expected = start(arrays)
  assert start({path: array.copy() for path, array in arrays.items()}) == expected
  other = start({path: array + (path.startswith('language_model')) for path, array in arrays.items()})
  assert {name for name in expected if expected[name] != other[name]} == {'parameters of language_model'}
  assert start(arrays, b'[]') != expected


def test_code_and_versions():
  assert len(set(identity.code().values())) > 100
  assert set(identity.versions()) == {'python', *identity.PACKAGES}
