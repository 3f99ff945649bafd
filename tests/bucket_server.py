"""A bucket for tests: a real server of Google Cloud Storage's API (gcp-storage-emulator), which others wrote.

It ignores conditions on generations, which TensorStore sets on the one file that writers could share, an OCDBT
manifest: each process of a run has a manifest of its own. It cannot move objects (501); gcsfs then copies and deletes.
"""

import contextlib
import importlib.util
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

BUCKET = 'janus'
# Not imported: gcsfs reads its environment then.
INSTALLED = all(map(importlib.util.find_spec, ('gcsfs', 'gcp_storage_emulator')))


def free_port() -> int:
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def environment(port: int) -> dict[str, str]:
  """What points gcsfs, google-cloud-storage (which Orbax asks for the kind of a bucket) and TensorStore at a server."""
  url = f'http://127.0.0.1:{port}'
  return {
    'STORAGE_EMULATOR_HOST': url,
    'TENSORSTORE_GCS_HTTP_URL': url,
    # It asks over gRPC what kind of bucket this is, which the server does not speak.
    'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
  }


@contextlib.contextmanager
def serving() -> Iterator[str]:
  """Gives 'gs://BUCKET', empty, to this process and those that it starts."""
  port = free_port()
  command = [sys.executable, '-m', 'gcp_storage_emulator', 'start', '--host=127.0.0.1', f'--port={port}']
  server = subprocess.Popen(
    [*command, '--in-memory', f'--default-bucket={BUCKET}'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
  try:
    wait_until_answering(port)
    with pytest.MonkeyPatch.context() as patch:
      for name, value in environment(port).items():
        patch.setenv(name, value)
      yield f'gs://{BUCKET}'
  finally:
    server.kill()
    server.wait()


def wait_until_answering(port: int) -> None:
  end = time.monotonic() + 60
  while True:
    with contextlib.suppress(OSError):
      urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=5)
      return
    assert time.monotonic() < end, 'no server of buckets'
    time.sleep(0.05)
