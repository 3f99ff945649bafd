"""Parts of the page that need neither Gradio nor a model."""

import pytest

from janus_jax.errors import InputError
from janus_jax.serving.description import ModelDescription, begun_stages, checkpoint_name, source_names
from janus_jax.serving.page import title_html
from janus_jax.serving.server import check_address, is_served

CONFIG = {
  'run': ['one', 'two', 'three'],
  'stages': {
    'one': {'steps': 100, 'sources': {'generation': {'cats': 1}}},
    'two': {'steps': 50, 'sources': {'generation': {'dogs': 1}, 'understanding': {'cats': 2}}},
    'three': {'steps': 50, 'sources': {'text': {'books': 1}}},
  },
}


@pytest.mark.parametrize(
  ('step', 'expected'),
  [(30, (('one', 30),)), (100, (('one', 100),)), (120, (('one', 100), ('two', 20)))],
)
def test_stages_are_those_that_training_has_begun(step, expected):
  assert begun_stages(CONFIG, step) == expected


def test_sources_are_those_of_the_stages_begun():
  assert source_names(CONFIG, ['one', 'two']) == ('cats', 'dogs')


@pytest.mark.parametrize(
  ('path', 'name'),
  [
    ('/home/me/runs/cats/', 'cats'),
    ('gs://bucket/cats@ema', 'cats@ema'),
    ('deepseek-community/Janus-Pro-1B', 'deepseek-community/Janus-Pro-1B'),
  ],
)
def test_a_checkpoint_is_known_by_its_name_without_its_directory(path, name):
  assert checkpoint_name(path) == name


def test_the_title_is_text_and_no_markup():
  card = ModelDescription('<b>', 4_100_000, 24, 'float32', 'cpu', 'parts', (('stage1', 1500),), ('digits', 'shapes'))
  title = title_html(card)
  assert '<h1>&lt;b&gt;</h1>' in title
  assert 'Trained on digits, shapes: stage1 (1,500 steps); started from parts' in title
  assert '4.1 million parameters' in title


@pytest.mark.parametrize(
  ('path', 'served'),
  [
    ('/', True),
    ('/gradio_api/queue/join', True),
    ('/gradio_api/file=/tmp/page/a.png', True),
    ('/gradio_api/file=/tmp/page/../secret', False),
    ('/gradio_api/file=/tmp/pages/a.png', False),
    ('/gradio_api/file=http://example.com', False),
    ('/gradio_api/proxy=http://example.com', False),
    ('/gradio_api/api/generate', False),
  ],
)
def test_nothing_is_served_but_the_page_and_its_files(path, served):
  assert is_served(path, '/tmp/page') is served


def test_a_host_of_another_machine_is_refused():
  with pytest.raises(InputError, match=r'--host=192\.0\.2\.1 --port=7860: '):
    check_address('192.0.2.1', 7860)
