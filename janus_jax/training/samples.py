"""Samples of the model as a batch to learn from: images of prompts, and answers to questions about images."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from janus_jax.data.examples import IMAGE, TEXT, UNDERSTANDING_LOSS, Example, generation_example, no_images, predicting
from janus_jax.data.packing import BatchShape, make_batch
from janus_jax.data.prompts import unconditional_ids
from janus_jax.training.preference import ADVANTAGE, SAMPLE


class SampledImage(NamedTuple):
  """A sampled image: the record of its prompt, which has a 'prompt', the ids of that, up to begin-of-image, codes
  int32[P], pixels uint8[size, size, 3].
  """

  record: Mapping[str, Any]
  ids: Sequence[int]
  codes: np.ndarray
  pixels: np.ndarray | None

  @property
  def example(self) -> Example:
    """What is learned from: its codes are the targets."""
    none = no_images(1)
    return generation_example(np.array(self.ids, np.int32), self.codes, none, none)


class SampledAnswer(NamedTuple):
  """A sampled answer: the record of its question, which has a 'prompt', the ids of that with its images, the ids of the
  answer, with the end token unless it was cut at its longest, its text, and the images seen, uint8[I, size, size, 3].
  """

  record: Mapping[str, Any]
  ids: Sequence[int]
  answer: Sequence[int]
  text: str
  pixels: np.ndarray
  image_token: int

  @property
  def example(self) -> Example:
    """What is learned from: the ids of the answer are the targets."""
    tokens = np.array([*self.ids, *self.answer], np.int32)
    places = np.arange(len(tokens))
    # An answer may be any token: the placeholder, too, stands for no image there.
    types = np.where((tokens == self.image_token) & (places < len(self.ids)), IMAGE, TEXT).astype(np.uint8)
    answered = np.append(places[1:] >= len(self.ids), False)
    return predicting(tokens, types, answered, UNDERSTANDING_LOSS, self.pixels, no_images(1))


Sample = SampledImage | SampledAnswer


def sample_batch(
  samples: Sequence[Sample],
  advantages: np.ndarray,
  length: int,
  *,
  pad: int | None = None,
  streams: int = 1,
  images: int = 0,
) -> dict[str, np.ndarray]:
  """Samples as a batch, a row each (`packing.make_batch`), with SAMPLE and ADVANTAGE of each target.

  Args:
    samples: N, images or answers.
    advantages: float32[N].
    length: T.
    pad: the id that stands for a prompt in N rows more, which have no targets; None for no such rows.
    streams: that the rows are cut into; each holds the pixels of its rows.
    images: seen in a row, at most.
  """
  batch = _rows([sample.example for sample in samples], length, streams, images)
  is_target = batch['weights'] > 0
  batch[SAMPLE] = np.where(is_target, np.arange(len(samples), dtype=np.int32)[:, None], 0)
  batch[ADVANTAGE] = np.where(is_target, advantages[:, None], 0).astype(np.float32)
  if pad is None:
    return batch
  dropped = [sample._replace(ids=unconditional_ids(sample.ids, pad)).example for sample in samples]
  none = {name: np.zeros_like(batch[name]) for name in ('weights', SAMPLE, ADVANTAGE)}
  others = _rows(dropped, length, streams, images) | none
  return {name: np.concatenate([x, others[name]]) for name, x in batch.items()}


def _rows(examples: Sequence[Example], length: int, streams: int, images: int) -> dict[str, np.ndarray]:
  rows, size = len(examples) // streams, examples[0].pixels.shape[1]
  shape = BatchShape(rows, length, rows * images, 0)
  parts = [
    make_batch(examples[start : start + rows], range(rows), shape, num_codes=0, image_size=size, generation_size=None)
    for start in range(0, len(examples), rows)
  ]
  batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  if not images:
    del batch['pixels']
  return batch
