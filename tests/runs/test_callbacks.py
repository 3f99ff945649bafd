"""The toy world's scores along the way: which are written, of what model, and when they are asked for."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('sklearn')

from recipes import recipe

from janus_jax.inference.answering import Answer
from janus_jax.inference.generation import GeneratedImage
from janus_jax.inference.requests import ImageSettings, LoadedJanus
from janus_jax.models.config import PRESETS
from janus_jax.runs import setup
from janus_jax.runs.callbacks import ToyScores
from janus_jax.runs.config import parse_config, replaced
from janus_jax.runs.datasets import Samples
from janus_jax.toy import scoring, shapes, test_set
from janus_jax.toy.shapes import World
from janus_jax.training.metrics import MetricWriter

WORLD = World()


def test_scores_of_the_toy_world_are_written_in_percent(tmp_path, monkeypatch):
  """A model that says what is right of shapes only, and whose images are blank."""
  params = {'x': jnp.ones(2, jnp.bfloat16)}
  asked, how = [], []

  def answer(janus, images, texts, **options):
    assert (janus.params['x'].dtype, len(janus.params)) == (jnp.float32, 1)
    asked.append(texts)
    cases = test_set.build_questions(WORLD, 3, seed=5)
    return [Answer('what?' if case.content == 'digit' else case.expected[0], []) for case in cases]

  def generate(janus, texts, settings):
    how.append(settings)
    blank = np.full((24, 24, 3), shapes.GROUND, np.uint8)
    return [[GeneratedImage(i, 0, np.zeros(36, np.int32), blank)] for i in range(len(texts))]

  monkeypatch.setattr(scoring, 'answer', answer)
  monkeypatch.setattr(scoring, 'generate_images', generate)
  settings = ImageSettings(cfg_weight=1.5, temperature=0.6, top_k=3, seed=5)
  callback = ToyScores(LoadedJanus(PRESETS['toy'], {}), WORLD, settings, 3)
  with MetricWriter(str(tmp_path)) as writer:
    for step in (7, 9):
      callback(step, 'stage2', params, writer)
  first, second = map(json.loads, (tmp_path / 'metrics.jsonl').read_text().splitlines())
  assert (first['step'], first['stage'], second['step']) == (7, 'stage2', 9)
  scores = {name: value for name, value in first.items() if name.startswith('scores/')}
  assert scores == {name: value for name, value in second.items() if name.startswith('scores/')}
  assert asked[0] == asked[1] == [case.question for case in test_set.build_questions(WORLD, 3, seed=5)]
  assert [(one.cfg_weight, one.temperature, one.top_k, one.seed) for one in how] == [(1.5, 0.6, 3, 5)] * 2
  groups = {(*case.key,) for case in (*test_set.build_questions(WORLD, 3, 5), *test_set.build_prompts(WORLD, 3, 5))}
  assert len(scores) == len(groups)
  assert set(scores.values()) == {0.0, 100.0}
  assert scores['scores/new_scene/one_object:_colour'] == 100
  assert scores['scores/new_scene/digit:_digit'] == 0
  assert scores['scores/new_combination/colour_binding'] == 0
  assert not any(' ' in name for name in scores)


@pytest.mark.parametrize(('toy', 'every'), [(0, 50), (4, 0), (4, 50)])
def test_the_config_says_whether_and_how_often_the_toy_world_is_scored(toy, every):
  config = replaced(parse_config(recipe('tiny')), {'evaluation.toy': toy, 'evaluation.every': every})
  janus = types.SimpleNamespace(config=PRESETS['toy'])
  callbacks = setup._request_callbacks(config, janus, Samples([], []), 'run')
  found = {name: callback for name, callback in callbacks.items() if isinstance(callback.call, ToyScores)}
  assert list(found) == (['scoring the toy world'] if toy else [])
  assert all(callback.every == every for callback in found.values())
