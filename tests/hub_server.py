"""A server that speaks as much of the Hugging Face hub's protocol as `huggingface_hub` asks for when it downloads."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

SHA = '0123456789abcdef0123456789abcdef01234567'  # Of the one commit that every repository has.


@contextlib.contextmanager
def serving(repositories: Mapping[str, pathlib.Path], gated: str = '') -> Iterator[tuple[str, list[str]]]:
  """Gives the URL, and the files that were downloaded so far.

  `repositories` maps names to directories; `gated` is the name of one that nobody may read.
  """
  downloaded = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
      self._answer(False)

    def do_GET(self) -> None:
      self._answer(True)

    def log_message(self, *args) -> None:
      pass

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], with_body: bool) -> None:
      self.send_response(status)
      for name, value in {'Content-Length': str(len(body)), **headers}.items():
        self.send_header(name, value)
      self.end_headers()
      if with_body:
        self.wfile.write(body)

    def _answer(self, with_body: bool) -> None:
      parts = unquote(urlsplit(self.path).path).strip('/').split('/')
      is_api = parts[0] == 'api'
      repository, rest = '/'.join(parts[2:4] if is_api else parts[:2]), parts[4:] if is_api else parts[2:]
      revision = rest[1] if len(rest) > 1 else 'main'
      if repository == gated:
        self._send(403, b'', {'X-Error-Code': 'GatedRepo', 'X-Error-Message': 'ask for access'}, with_body)
      elif repository not in repositories:
        self._send(404, b'', {'X-Error-Code': 'RepoNotFound'}, with_body)
      elif revision not in ('main', 'v1', SHA):
        self._send(404, b'', {'X-Error-Code': 'RevisionNotFound'}, with_body)
      elif is_api:
        self._list(repositories[repository], repository, rest[0] == 'tree')
      else:
        self._file(repository, '/'.join(rest[2:]), with_body)

    def _list(self, directory: pathlib.Path, repository: str, is_tree: bool) -> None:
      files = sorted(path for path in directory.rglob('*') if path.is_file())
      names = [path.relative_to(directory).as_posix() for path in files]
      if is_tree:
        found = [
          {'type': 'file', 'path': name, 'size': path.stat().st_size, 'oid': _digest(path)}
          for name, path in zip(names, files)
        ]
      else:
        found = {'id': repository, 'sha': SHA, 'siblings': [{'rfilename': name} for name in names]}
      self._send(200, json.dumps(found).encode(), {'Content-Type': 'application/json'}, True)

    def _file(self, repository: str, name: str, with_body: bool) -> None:
      path = repositories[repository] / name
      if not path.is_file():
        self._send(404, b'', {'X-Error-Code': 'EntryNotFound'}, with_body)
        return
      if with_body:
        downloaded.append(f'{repository}/{name}')
      headers = {'ETag': f'"{_digest(path)}"', 'X-Repo-Commit': SHA, 'Accept-Ranges': 'bytes'}
      self._send(200, path.read_bytes(), headers, with_body)

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.server_port}', downloaded
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def _digest(path: pathlib.Path) -> str:
  return hashlib.sha1(path.read_bytes()).hexdigest()
