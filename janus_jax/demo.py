"""Serves a page on which people generate images and ask about images.

    python -m janus_jax.demo --checkpoint=PATH [--port=7860 --host=127.0.0.1]
                             [--max_images=4 --max_new_tokens=256 --queue_size=16 --max_upload_mib=20]
                             [--example_prompt="..." --example_question="..."]
                             [--weights=int8 --cache_dtype=int8 --window=auto]

The page is Gradio's: `pip install 'janus_jax[demo]'`. It listens on this machine alone unless --host says otherwise,
loads nothing from the internet and sends nothing there. Requests are served one at a time; images and answers are those
of `generate` and `understand`, and a downloaded image holds the settings that it was made with.
"""

from absl import flags

from janus_jax import cli
from janus_jax.inference.requests import AnswerSettings, ImageSettings
from janus_jax.inference.windows import check_window
from janus_jax.runs import loading
from janus_jax.runs.value_checks import Integer
from janus_jax.serving import page, server
from janus_jax.serving.description import describe
from janus_jax.serving.handlers import Service
from janus_jax.serving.uploads import MEBIBYTE, Limits
from janus_jax.serving.worker import Worker
from janus_jax.sharding.mesh import parse_mesh

_CHECKPOINT, _DTYPE, _MESH = cli.define_model()
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'Address to listen on; 0.0.0.0: all of this machine.')
_PORT = cli.define_number('port', 7860, 'Port to listen on.', Integer(1, 65535))
_MAX_IMAGES = cli.define_number('max_images', 4, 'Images that a visitor may ask for at a time.', Integer(1, 64))
_TILES = cli.define_settings(AnswerSettings, 'tiles')
_MAX_NEW_TOKENS = cli.define_number('max_new_tokens', 256, 'The longest answer, in tokens.', Integer(1))
_QUEUE_SIZE = cli.define_number('queue_size', 16, 'Requests that may wait; one more is refused.', Integer(1))
_MAX_UPLOAD = cli.define_number('max_upload_mib', 20, 'Size of an uploaded image file, in MiB.', Integer(1, 1024))
_EXAMPLE_PROMPT = flags.DEFINE_multi_string('example_prompt', [], 'Prompt to click on; may be given several times.')
_EXAMPLE_QUESTION = flags.DEFINE_multi_string(
  'example_question', [], 'Question to click on; may be given several times.'
)
_PREPARED = cli.define_settings(ImageSettings, 'weights', 'cache_dtype', 'window')


def main() -> None:
  address = _HOST.value, _PORT.value
  server.check_address(*address)
  server.check_gradio()
  janus = loading.load(_CHECKPOINT.value, _DTYPE.value, parse_mesh(_MESH.value))
  prepared = cli.values(*_PREPARED)
  images = ImageSettings(**janus.sampling, **prepared, num_images=min(ImageSettings.num_images, _MAX_IMAGES.value))
  check_window(janus.config.vq.num_tokens, images.window)
  card = describe(_CHECKPOINT.value, janus)
  examples = page.TOY if card.is_toy else page.GENERAL
  examples = page.Examples(_EXAMPLE_PROMPT.value or examples.prompts, _EXAMPLE_QUESTION.value or examples.questions)
  limits = Limits(num_images=_MAX_IMAGES.value, upload_bytes=_MAX_UPLOAD.value * MEBIBYTE)
  try:
    with server.private_directory() as directory:
      service = Service(
        worker=Worker(janus, images.weights, images.cache_dtype),
        name=card.name,
        dtype=card.dtype,
        images=images,
        answers=AnswerSettings(max_new_tokens=_MAX_NEW_TOKENS.value, **cli.values(*_TILES)),
        limits=limits,
        directory=directory,
      )
      server.serve(page.build(service, card, examples), address, directory, _QUEUE_SIZE.value, limits.upload_bytes)
  except KeyboardInterrupt:
    cli.quit_at_once()  # A thread may be compiling, which an orderly end of the process would abort.


if __name__ == '__main__':
  cli.run(main)
