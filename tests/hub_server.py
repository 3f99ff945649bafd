"""A server that speaks as much of the Hugging Face hub's protocol as `huggingface_hub` asks for when it downloads, and
when it uploads without Xet.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

SHA = '0123456789abcdef0123456789abcdef01234567'  # Of the one commit that every repository has.
TOKEN, OWNER = 'hf_of_someone', 'someone'  # Who may write, and to whose repositories.
RESERVED, FULL = f'{OWNER}/reserved', f'{OWNER}/full'  # A name that is refused, and one that takes no large files.


@contextlib.contextmanager
def serving(
  repositories: dict[str, pathlib.Path],
  gated: str = '',
  uploads: pathlib.Path | None = None,
  private: set[str] | None = None,
) -> Iterator[tuple[str, list[str]]]:
  """Gives the URL, and the files that were downloaded so far.

  Args:
    repositories: names to directories; new ones are added.
    gated: the name of one that nobody may read.
    uploads: where the directories of new repositories are made.
    private: names of private ones; new ones are added.
  """
  downloaded, private, objects = [], set() if private is None else private, {}

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
      self._answer(False)

    def do_GET(self) -> None:
      self._answer(True)

    def do_PUT(self) -> None:
      repository, oid = self.path.removeprefix('/lfs/').rsplit('/', 1)
      objects[oid] = self._body()
      self._send(413 if repository == FULL else 200, b'', {}, True)

    def do_POST(self) -> None:
      body, parts = self._body(), urlsplit(self.path).path.strip('/').split('/')
      if parts == ['api', 'repos', 'create']:
        self._create(json.loads(body))
      elif parts == ['api', 'validate-yaml']:
        self._send_json(200, {'errors': [], 'warnings': []})
      elif parts[2:] == ['info', 'lfs', 'objects', 'batch']:
        wanted, (host, port) = json.loads(body)['objects'], server.server_address
        store = f'http://{host}:{port}/lfs/{parts[0]}/{parts[1].removesuffix(".git")}'
        found = [{**file, 'actions': {'upload': {'href': f'{store}/{file["oid"]}'}}} for file in wanted]
        self._send_json(200, {'transfer': 'basic', 'objects': found})
      elif self._may_write(parts[2]):
        name = '/'.join(parts[2:4])
        if parts[4] == 'preupload':
          modes = [
            {'path': file['path'], 'uploadMode': 'lfs' if b'\0' in base64.b64decode(file['sample']) else 'regular'}
            for file in json.loads(body)['files']
          ]
          self._send_json(200, {'files': [{**mode, 'shouldIgnore': False} for mode in modes]})
        else:
          for operation in map(json.loads, body.splitlines()):
            self._apply(repositories[name], operation['key'], operation['value'])
          self._send_json(200, {'commitUrl': f'/{name}/commit/{SHA}', 'commitOid': SHA})

    def log_message(self, *args) -> None:
      pass

    def _body(self) -> bytes:
      if 'Content-Length' in self.headers:
        return self.rfile.read(int(self.headers['Content-Length']))
      chunks = []
      while size := int(self.rfile.readline(), 16):
        chunks.append(self.rfile.read(size))
        self.rfile.readline()
      return b''.join(chunks)

    def _may_write(self, owner: str) -> bool:
      """Whether a request may write to repositories of `owner`; if not it is answered."""
      may = self.headers.get('Authorization') == f'Bearer {TOKEN}'
      if not may:
        self._send(401, b'', {'X-Error-Message': 'Invalid username or password.'}, True)
      elif owner != OWNER:
        may = False
        self._send(403, b'', {'X-Error-Message': f'no rights under {owner}'}, True)
      return may

    def _create(self, wanted: Mapping[str, Any]) -> None:
      name = f'{wanted["organization"]}/{wanted["name"]}'
      if not self._may_write(wanted['organization']):
        return
      if name == RESERVED:
        self._send_json(400, {'error': 'this name is reserved'})
      elif name in repositories:
        self._send_json(409, {'error': 'exists', 'url': f'/{name}'})
      else:
        repositories[name] = uploads / name
        repositories[name].mkdir(parents=True)
        if wanted.get('visibility') == 'private' or wanted.get('private'):
          private.add(name)
        self._send_json(200, {'url': f'/{name}'})

    def _apply(self, directory: pathlib.Path, key: str, value: Mapping[str, Any]) -> None:
      path = directory / value.get('path', '')
      if key == 'deletedFile':
        path.unlink()
      elif key != 'header':
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(objects[value['oid']] if key == 'lfsFile' else base64.b64decode(value['content']))

    def _send_json(self, status: int, found: Any) -> None:
      self._send(status, json.dumps(found).encode(), {'Content-Type': 'application/json'}, True)

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
      elif is_api and rest[:1] == ['auth-check']:
        if self._may_write(repository.split('/')[0]):
          self._send(200, b'', {}, True)
      elif revision not in ('main', 'v1', SHA):
        self._send(404, b'', {'X-Error-Code': 'RevisionNotFound'}, with_body)
      elif is_api:
        self._list(repositories[repository], repository, rest[:1] == ['tree'])
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
        siblings = [{'rfilename': name} for name in names]
        found = {'id': repository, 'sha': SHA, 'private': repository in private, 'siblings': siblings}
      self._send_json(200, found)

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
