"""Serves the page: the address it listens on, and what of Gradio's server may be reached."""

import logging
import os
import pathlib
import signal
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from janus_jax.errors import InputError

if TYPE_CHECKING:
  import gradio as gr

# Of Gradio's paths, those that the page itself asks for. Among the others are one that fetches any address of the
# internet, recordings, run histories, and an API beside the queue.
SERVED = ('/assets/', '/static/', '/theme.css', '/favicon.ico', '/config')
SERVED += tuple(
  f'/gradio_api/{name}'
  for name in ('queue/', 'run/predict', 'upload', 'heartbeat/', 'startup-events', 'cancel', 'reset')
)
FILES = '/gradio_api/file='
# The browser loads nothing from elsewhere. Gradio's page has scripts and styles in line, and makes some of texts.
POLICY = (
  "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
  "frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
SESSIONS = 100  # Conversations in memory.
STYLE = pathlib.Path(__file__).with_name('page.css')


def check_gradio() -> None:
  """Raises InputError where Gradio is not installed. Tells it to send nothing to its makers."""
  os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
  try:
    import gradio  # noqa: F401
  except ImportError as error:
    raise InputError(f"the page needs gradio ({error}): pip install 'janus_jax[demo]'") from None


def check_address(host: str, port: int) -> None:
  """Raises InputError where nothing can listen there."""
  try:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      probe.bind(address)
  except OSError as error:
    raise InputError(f'--host={host} --port={port}: {error.strerror}: expected another --port or --host') from None


@contextmanager
def private_directory() -> Iterator[str]:
  """A temporary directory for all files of the page: uploads, images, thumbnails. Removed in the end."""
  with tempfile.TemporaryDirectory(prefix='janus_jax-demo-') as directory:
    os.environ['GRADIO_TEMP_DIR'] = directory
    yield directory


def is_served(path: str, directory: str) -> bool:
  """Says whether a request's path is one that the page needs: of files, those in its directory alone."""
  if path.startswith(FILES):
    return os.path.realpath(path.removeprefix(FILES)).startswith(f'{os.path.realpath(directory)}{os.sep}')
  return path == '/' or path.startswith(SERVED)


class PageOnly:
  """ASGI middleware that answers 404 for what is not served, and sends POLICY with everything else."""

  def __init__(self, app: Callable[..., Awaitable[None]], directory: str):
    self._app, self._directory = app, directory

  async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
    if scope['type'] == 'http' and not is_served(scope['path'], self._directory):
      await send({'type': 'http.response.start', 'status': 404, 'headers': []})
      await send({'type': 'http.response.body'})
      return

    async def send_with_policy(message: dict[str, Any]) -> None:
      if message['type'] == 'http.response.start':
        message['headers'] = [*message['headers'], (b'content-security-policy', POLICY.encode())]
      await send(message)

    await self._app(scope, receive, send_with_policy)


def serve(page: 'gr.Blocks', address: tuple[str, int], directory: str, queue_size: int, upload_bytes: int) -> None:
  """Serves a page until Ctrl-C or SIGTERM.

  Args:
    page: what is shown.
    address: host and port (`check_address`).
    directory: that of `private_directory`.
    queue_size: requests that wait at most; one more is refused with a message.
    upload_bytes: of a file at most.
  """
  import gradio as gr
  from starlette.middleware import Middleware

  signal.signal(signal.SIGTERM, signal.default_int_handler)
  fonts = {'font': ['system-ui', 'sans-serif'], 'font_mono': ['ui-monospace', 'monospace']}  # Others are downloaded.
  page.queue(max_size=queue_size, default_concurrency_limit=1, api_open=False)
  page.launch(
    server_name=address[0],
    server_port=address[1],
    prevent_thread_lock=True,
    share=False,
    quiet=True,
    footer_links=[],
    run_history=False,
    max_file_size=upload_bytes,
    state_session_capacity=SESSIONS,
    enable_monitoring=False,
    ssr_mode=False,
    pwa=False,
    mcp_server=False,
    app_kwargs={'middleware': [Middleware(PageOnly, directory=directory)]},
    theme=gr.themes.Soft(primary_hue='indigo', neutral_hue='slate', **fonts),
    css_paths=STYLE,
  )
  logging.info('serving on %s; Ctrl-C ends it', page.local_url)
  try:
    threading.Event().wait()
  finally:
    page.close(verbose=False)
