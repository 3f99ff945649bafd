"""Marks answers: right or wrong, no judgement."""

from collections.abc import Sequence


def normalise(text: str) -> str:
  """Lower case, single spaces, no full stop at the end."""
  return ' '.join(text.lower().split()).rstrip('. ')


def is_right(answer: str, expected: Sequence[str]) -> bool:
  """Whether `answer` is one of the `expected`, word for word; there are no synonyms."""
  return normalise(answer) in {normalise(text) for text in expected}
