"""What `janus_jax.report` takes for scores, and what it says of a run."""

import json

import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.models import config as model_config
from janus_jax.models.config import PRESETS
from janus_jax.report import SCORE_FIELDS, comparable, duration, facts, parameter_counts, read_scores, with_total


def write(directory, scores, generations=1, questions=1):
  (directory / 'scores.json').write_text(scores if isinstance(scores, str) else json.dumps(scores))
  pixels = {
    name: np.zeros((n, 4, 4, 3), np.uint8) for name, n in (('generations', generations), ('questions', questions))
  }
  np.savez_compressed(directory / 'images.npz', **pixels)


def whole() -> dict:
  return {name: [dict.fromkeys(fields, 0)] for name, fields in SCORE_FIELDS.items()}


def test_whole_scores_are_read(tmp_path):
  write(tmp_path, whole())
  scores, generations, questions = read_scores(str(tmp_path))
  assert (scores, generations.shape, questions.shape) == (whole(), (1, 4, 4, 3), (1, 4, 4, 3))


@pytest.mark.parametrize('name', SCORE_FIELDS)
def test_scores_without_a_part_are_refused(tmp_path, name):
  for part in ([], {}, None, [{}], [3]):
    write(tmp_path, {**whole(), name: part})
    with pytest.raises(InputError, match=rf'scores.json: {name}(: entry 0 has no | is missing or empty: expected )'):
      read_scores(str(tmp_path))


def test_runs_are_compared_on_the_same_prompts(tmp_path):
  own = whole()
  write(tmp_path, own)
  scores, _ = comparable(own, str(tmp_path))
  assert scores == own
  others = {**own, 'generation_cases': [{**case, 'prompt': 'another'} for case in own['generation_cases']]}
  with pytest.raises(InputError, match='1 prompts, not those of --scores'):
    comparable(others, str(tmp_path))
  with pytest.raises(InputError, match='--beside: expected --scores too'):
    comparable({}, str(tmp_path))


@pytest.mark.parametrize('text', ['', '{}', '[]', 'null', '\x00'])
def test_empty_scores_are_refused(tmp_path, text):
  write(tmp_path, text)
  with pytest.raises(InputError, match=r'scores\.json: '):
    read_scores(str(tmp_path))


def test_images_must_be_those_of_the_scores(tmp_path):
  write(tmp_path, whole(), generations=2)
  with pytest.raises(InputError, match=r'images\.npz: 2 generations and 1 images asked about: expected 1 generations'):
    read_scores(str(tmp_path))
  for content in (b'', b'PK', b'not an archive'):
    (tmp_path / 'images.npz').write_bytes(content)
    with pytest.raises(
      InputError, match=r'images\.npz: .*expected what janus_jax.evaluate --out writes .*evaluate again'
    ):
      read_scores(str(tmp_path))


@pytest.mark.parametrize(
  ('seconds', 'text'), [(0.2, '0 s'), (59.4, '59 s'), (59.6, '1 min 0 s'), (3599.6, '1 h 0 min'), (7384, '2 h 3 min')]
)
def test_durations(seconds, text):
  assert duration(seconds) == text


def test_the_total_is_of_the_values_and_not_of_their_texts():
  assert with_total({'a': 59.4, 'b': 59.4}, duration) == {'a': '59 s', 'b': '59 s', 'total': '1 min 59 s'}
  assert with_total({}, duration) == {}


def test_a_run_is_identified(tmp_path):
  (tmp_path / 'machine.txt').write_text('8 x TPU v5\n')
  lines = [{'step': step, 'time': 1e9 + 60 * step} for step in (10, 1070)]
  found = facts(str(tmp_path), {'seed': 0}, lines)
  expected = {'seed': '0', 'steps': '1,070', 'first to last line of metrics': '17 h 40 min', 'machine': '8 x TPU v5'}
  assert found == expected
  assert facts(str(tmp_path / 'nothing'), {}, []) == {}


def test_parameters_are_counted_by_part():
  found = parameter_counts(json.loads(json.dumps(model_config.config_to_dict(PRESETS['janus_pro_1b']))))
  assert {'vision_encoder', 'vision_aligner', 'vq', 'gen_embed', 'gen_aligner', 'gen_head', 'language_model'} == set(
    found
  )
  assert found['gen_embed'] == 16384 * 8
  assert 2.0e9 < sum(found.values()) < 2.2e9
  assert parameter_counts({}) == {}
