"""The model at work for the page: one request at a time, and compiled programs kept for the next."""

import threading
from collections.abc import Callable, Hashable, Iterator

import jax

from janus_jax.data.tokenizer import StreamDecoder
from janus_jax.inference.answering import Question, prepare_question, stream_tokens
from janus_jax.inference.batching import bucket_length
from janus_jax.inference.generation import GeneratedImage, prompt_rows, stream_images
from janus_jax.inference.requests import AnswerSettings, ImageSettings, LoadedJanus, decoder_for
from janus_jax.serving.conversation import Conversation

TOKENS_PER_CHUNK = 4  # Shown at a time.
# Shapes and settings whose programs are kept. Linux allows a process 65,530 memory maps, of which a program on CPUs
# takes some for each kernel; one program too many crashes the process.
MAX_PROGRAMS = 32


class Worker:
  """A checkpoint with its weights prepared for decoding, used by one thread at a time."""

  def __init__(self, janus: LoadedJanus, weights: str = 'full', cache_dtype: str | None = None):
    """Prepares the weights. Raises InputError without a tokenizer, or with that of another checkpoint."""
    self.config = janus.config
    self._tokenizer, self._template = janus.tokenizer_and_template()
    self._decoder = decoder_for(janus, weights, cache_dtype)
    self._lock = threading.Lock()
    self._programs: set[Hashable] = set()
    self._report: Callable[[int], None] = lambda known: None

  def generate(self, prompt: str, settings: ImageSettings, report: Callable[[int], None]) -> list[GeneratedImage]:
    """Generates the images that `generate_images` gives.

    Args:
      prompt: description.
      settings: all but `weights` and `cache_dtype`.
      report: called from other threads, again and again, with the number of codes that every image has so far.

    Raises:
      InputError: an empty or too long prompt.
    """
    rows = prompt_rows(self.config, [prompt], self._tokenizer, self._template, settings.aspect)
    wanted = [(0, image) for image in range(settings.num_images)]
    with self._lock:
      how = settings.cfg_weight, settings.sampling, settings.aspect
      self._keep(('images', bucket_length(len(rows[0])), len(wanted), *how))
      self._report = report
      images = stream_images(self._decoder, rows, wanted, self._tokenizer.special.pad, settings, self._on_pass)
      return sorted(images, key=lambda image: image.image_index)

  def prepare(self, conversation: Conversation, tiles: int = 1) -> Question:
    """The last question of a conversation for `answer`. Raises InputError for what `prepare_question` refuses."""
    images, turns = conversation.images, conversation.turns
    return prepare_question(self.config, images, turns, self._tokenizer, self._template, tiles=tiles)

  def answer(self, question: Question, settings: AnswerSettings) -> Iterator[str]:
    """Yields the answer from its beginning, each time a few tokens longer; in the end it is `janus_jax.answer`'s."""
    special, text, answer = self._tokenizer.special, StreamDecoder(self._tokenizer), ''
    chunks = stream_tokens(self._decoder, [question], [0], special, settings, steps_per_chunk=TOKENS_PER_CHUNK)
    with self._lock:
      self._keep(('answer', bucket_length(len(question.ids)), len(question.pixels)))
    while (chunk := self._next(chunks)) is not None:
      answer += ''.join(map(text.push, chunk[0]))
      yield answer
    yield answer + text.finish()

  def _next(self, chunks: Iterator[list[list[int]]]) -> list[list[int]] | None:
    with self._lock:
      return next(chunks, None)

  def _keep(self, program: Hashable) -> None:
    """Notes that a program is needed; forgets all of them once they are too many."""
    if program not in self._programs and len(self._programs) >= MAX_PROGRAMS:
      jax.clear_caches()
      self._programs.clear()
    self._programs.add(program)

  def _on_pass(self, known: jax.Array) -> None:
    """One function for all requests, as each compiles anew."""
    self._report(int(known))
