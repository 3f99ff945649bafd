"""Samples of an update, generated from the parameters as they are: images of prompts, answers to questions.

What is sampled depends on the parameters, the run's seed and the number of the update alone: a run that was killed in
the middle of a rollout samples the same again.
"""

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from janus_jax.data import prompts as prompts_lib
from janus_jax.data.images import load_image
from janus_jax.errors import InputError
from janus_jax.inference.answering import answer_questions, prepare_question
from janus_jax.inference.decoder import Decoder
from janus_jax.inference.generation import prompt_rows, stream_images
from janus_jax.inference.requests import AnswerSettings, ImageSettings, LoadedJanus, decoder_for
from janus_jax.training.preference_config import PreferenceConfig
from janus_jax.training.run_config import row_length
from janus_jax.training.samples import Sample, SampledAnswer, SampledImage


class Sampler(Protocol):
  """Samples answers to prompts.

  Attributes:
    janus: model, tokenizer and template; without parameters.
    records: of the prompts, each with a 'prompt'.
    length: positions that hold any prompt with a sample.
    images: that a sample sees, at most.
  """

  janus: LoadedJanus
  records: Sequence[Mapping[str, Any]]
  length: int
  images: int

  def __call__(self, update: int, chosen: Sequence[int], params: Any) -> list[Sample]:
    """The samples of an update: a group for each of the chosen records, one after another."""


@dataclasses.dataclass(frozen=True)
class _Settings:
  """Settings of either sampler.

  Attributes:
    janus: as of `Sampler`.
    dtype: dtype that samples are generated in.
    records: as of `Sampler`.
    preference: the stage's settings.
    seed: the run's.
  """

  janus: LoadedJanus
  dtype: str
  records: Sequence[Mapping[str, Any]]
  preference: PreferenceConfig
  seed: int

  def decoder(self, params: Any) -> Decoder:
    """These parameters, with their floats in `dtype`; kernels in int8 stay."""
    cast = jax.tree.map(lambda x: x.astype(self.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)
    return decoder_for(dataclasses.replace(self.janus, params=cast))


class ImageSampler(_Settings):
  """Images of prompts."""

  images = 0

  @functools.cached_property
  def ids(self) -> list[list[int]]:
    """Ids of each prompt, up to begin-of-image. Raises InputError for one that is empty or too long."""
    tokenizer, template = self.janus.tokenizer_and_template()
    return prompt_rows(self.janus.config, [record['prompt'] for record in self.records], tokenizer, template)

  @functools.cached_property
  def length(self) -> int:
    return row_length(max(map(len, self.ids)) + self.janus.config.vq.num_tokens - 1)

  def __call__(self, update: int, chosen: Sequence[int], params: Any) -> list[SampledImage]:
    how, (tokenizer, _) = self.preference, self.janus.tokenizer_and_template()
    first = update * how.num_prompts
    # The index of an image among all of the run decides its noise. Evaluations have seeds of their own.
    rows = {first + i: self.ids[index] for i, index in enumerate(chosen)}
    wanted = [(prompt, sample) for prompt in rows for sample in range(how.group)]
    settings = ImageSettings(
      cfg_weight=how.cfg_weight,
      temperature=how.temperature,
      seed=zlib.crc32(f'samples {self.seed}'.encode()),
      batch_size=len(wanted),
    )
    stream = stream_images(self.decoder(params), rows, wanted, tokenizer.special.pad, settings)
    found = {(image.prompt_index, image.image_index): image for image in stream}
    return [
      SampledImage(self.records[chosen[prompt - first]], rows[prompt], found[prompt, i].codes, found[prompt, i].pixels)
      for prompt, i in wanted
    ]


class AnswerSampler(_Settings):
  """Answers to prompts about the 'images' of their records: paths, or uint8[height, width, 3]."""

  @functools.cached_property
  def ids(self) -> list[list[int]]:
    """Ids of each prompt with its images. Raises InputError for one that is empty, too long, or at odds with them."""
    config, (tokenizer, template) = self.janus.config, self.janus.tokenizer_and_template()
    rows = []
    for number, record in enumerate(self.records, start=1):
      try:
        rows.append(
          prompts_lib.understanding_ids(
            tokenizer,
            template,
            [prompts_lib.with_placeholders(record['prompt'])],
            num_images=len(record['images']),
            num_image_tokens=config.num_image_tokens,
            max_length=config.language_model.max_positions - self.preference.max_new_tokens,
          )
        )
      except InputError as error:
        raise InputError(f'prompt {number} of {len(self.records)}: {error}') from None
    return rows

  @functools.cached_property
  def length(self) -> int:
    return row_length(max(map(len, self.ids)) + self.preference.max_new_tokens)

  @functools.cached_property
  def images(self) -> int:
    return max(len(record['images']) for record in self.records)

  def __call__(self, update: int, chosen: Sequence[int], params: Any) -> list[SampledAnswer]:
    """Raises InputError for an image that cannot be read."""
    how, config, (tokenizer, template) = self.preference, self.janus.config, self.janus.tokenizer_and_template()
    records = [self.records[index] for index in chosen for _ in range(how.group)]
    asked = []
    for index in chosen:
      images = [open_image(image) for image in self.records[index]['images']]
      asked += [prepare_question(config, images, self.records[index]['prompt'], tokenizer, template)] * how.group
    settings = AnswerSettings(
      temperature=how.temperature,
      max_new_tokens=how.max_new_tokens,
      seed=zlib.crc32(f'samples {self.seed} {update}'.encode()),
      batch_size=len(asked),
    )
    found = []
    for record, question, answer in zip(
      records, asked, answer_questions(self.decoder(params), asked, tokenizer, settings), strict=True
    ):
      ended = len(answer.token_ids) < how.max_new_tokens
      ids = [*answer.token_ids, *([tokenizer.special.eos] if ended else [])]
      found.append(SampledAnswer(record, question.ids, ids, answer.text, question.pixels, config.image_token_id))
    return found


def open_image(image: str | np.ndarray) -> Image.Image:
  """An image of a record. Raises InputError for one that cannot be read."""
  return load_image(image) if isinstance(image, str) else Image.fromarray(image)
