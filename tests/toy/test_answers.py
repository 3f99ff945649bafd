import pytest

from janus_jax.toy import answers


@pytest.mark.parametrize('answer', ['red', ' Red', 'red.', 'RED\n'])
def test_right(answer):
  assert answers.is_right(answer, ['red'])


@pytest.mark.parametrize('answer', ['', 'dark red', 'red red', 'crimson', 'r e d', 'reds'])
def test_wrong(answer):
  assert not answers.is_right(answer, ['red'])


def test_any_of_several():
  assert answers.is_right('a red  circle', ['a circle', 'a red circle'])
  assert not answers.is_right('a blue circle', ['a circle', 'a red circle'])
