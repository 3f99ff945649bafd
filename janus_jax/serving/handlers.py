"""What the page does when a visitor clicks: values of its components in, new ones out."""

import contextlib
import contextvars
import dataclasses
import os
import pathlib
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from janus_jax.errors import InputError
from janus_jax.inference.image_files import image_settings, save_image
from janus_jax.inference.requests import AnswerSettings, ImageSettings
from janus_jax.serving.conversation import Conversation, UploadedImage, check_question, read_uploads
from janus_jax.serving.uploads import Limits, check_text
from janus_jax.serving.worker import Worker

if TYPE_CHECKING:
  import gradio as gr

FILES_KEPT_SECONDS = 3600


@dataclasses.dataclass(frozen=True)
class Service:
  """A model and how it is offered.

  Attributes:
    worker: the model at work.
    name: of the checkpoint, for the text chunks of images.
    dtype: what is computed in.
    images: settings of images where visitors say nothing else.
    answers: settings of answers.
    limits: of what visitors may send.
    directory: for the files that the page shows.
  """

  worker: Worker
  name: str
  dtype: str
  images: ImageSettings
  answers: AnswerSettings
  limits: Limits
  directory: str


@contextlib.contextmanager
def _said_on_the_page() -> Iterator[None]:
  """Turns an InputError of the block into a message on the page."""
  import gradio as gr

  try:
    yield
  except InputError as error:
    raise gr.Error(str(error), print_exception=False) from None


def generate(
  service: Service, prompt: str, number: int, guidance: float, temperature: float, seed: int, is_random: bool
) -> tuple:
  """Values of: gallery, note, seed, files, chosen file, button to ask."""
  import gradio as gr

  progress, context, total = gr.Progress(), contextvars.copy_context(), service.worker.config.vq.num_tokens

  def report(known: int) -> None:
    context.run(progress, (known, total), desc='Drawing image codes', unit='codes')  # It is called in another thread.

  with _said_on_the_page():
    check_text(prompt, service.limits)
    if not 1 <= number <= service.limits.num_images:
      raise InputError(f'{number} images: expected 1 to {service.limits.num_images}')
    seed = random.randrange(2**32) if is_random else seed or 0
    # As floats, which a page sends without their point: images of `generate` say 2.0, too.
    chosen = {'cfg_weight': float(guidance), 'temperature': float(temperature), 'seed': seed}
    settings = dataclasses.replace(service.images, num_images=number, **chosen)
    progress(0, desc='Reading the prompt; new settings are compiled first, which takes a while')
    start = time.perf_counter()
    images = service.worker.generate(prompt, settings, report)
    seconds = time.perf_counter() - start
  directory = new_directory(service.directory)
  paths = [os.path.join(directory, f'seed-{seed}-{image.image_index:02}.png') for image in images]
  for path, image in zip(paths, images):
    how = image_settings(prompt, (0, image.image_index), settings, service.dtype, service.name)
    save_image(path, image.pixels, image.codes.tolist(), how)
  note = f'Seed {seed} · guidance {guidance:g} · temperature {temperature:g} · {seconds:.1f} s'
  return gr.Gallery(paths, selected_index=None), note, seed, paths, paths[0], gr.Button(visible=True)


def new_directory(root: str) -> str:
  """A new directory in `root`, for files that the page shows. Those of an hour ago are removed."""
  for old in pathlib.Path(root).iterdir():
    if old.stat().st_mtime < time.time() - FILES_KEPT_SECONDS:
      shutil.rmtree(old)
  return tempfile.mkdtemp(dir=root)


def put_image(path: str) -> tuple:
  """Values of: box for questions with that image, tabs with the one for questions in front."""
  import gradio as gr

  return {'text': '', 'files': [path]}, gr.Tabs(selected='ask')


def fill(text: str, value: str | dict[str, Any]) -> str | dict[str, Any]:
  """The value of a box with another text."""
  return {**value, 'text': text} if isinstance(value, dict) else text


def refuse_urls(box: 'gr.MultimodalTextbox') -> None:
  """Takes uploaded files alone: Gradio would download whatever address a visitor sends in place of a file."""
  import gradio as gr

  move = box.async_move_resource_to_block_cache

  async def move_upload(path: str) -> str | None:
    if '://' in path:
      raise gr.Error('Expected an uploaded image.', print_exception=False)
    return await move(path)

  box.async_move_resource_to_block_cache = move_upload


def ask(service: Service, message: dict[str, Any], conversation: Conversation, shown: list[dict]) -> Iterator[tuple]:
  """Values of: box for questions, chat, conversation, what the chat shows; anew with every few tokens."""
  with _said_on_the_page():
    text, paths = message['text'], message['files']
    check_question(conversation, text, len(paths), service.limits)
    uploads = read_uploads(paths, service.worker.config.image_size, service.limits, service.answers.tiles)
    asked = conversation.ask(text, [upload.asked for upload in uploads])
    question = service.worker.prepare(asked, service.answers.tiles)
  shown = [*shown, {'role': 'user', 'content': [*_thumbnails(uploads, service.directory), text]}]
  yield None, shown, conversation, shown
  for answer in service.worker.answer(question, service.answers):
    now = [*shown, {'role': 'assistant', 'content': answer.strip() or '(an empty answer)'}]
    yield None, now, asked.answer(answer), now


def _thumbnails(uploads: list[UploadedImage], root: str) -> list[dict[str, str]]:
  """Messages of the chat that show the images."""
  directory = new_directory(root) if uploads else ''
  paths = [os.path.join(directory, f'{index}.png') for index in range(len(uploads))]
  for path, upload in zip(paths, uploads):
    upload.thumbnail.save(path)
  return [{'path': path} for path in paths]
