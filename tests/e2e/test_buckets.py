"""A run whose workdir is in a bucket is the run that it would be on a disk; what is wrong with a bucket is one line."""

import http.server
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import fsspec
import numpy as np
import pytest

pytest.importorskip('sklearn')

from bucket_server import INSTALLED, environment, free_port, serving
from conftest import FAST_COMPILE
from e2e import forks
from e2e.forks import Process
from e2e.small_run import ROOT, leaves, recipe, write_start

import janus_jax
from janus_jax.errors import InputError
from janus_jax.runs import setup
from janus_jax.runs.config import parse_config
from janus_jax.runs.loading import load_tokenizer

if not INSTALLED:
  pytest.skip('needs gcsfs and gcp-storage-emulator', allow_module_level=True)

STEPS = 5

PATIENCE = 240  # Seconds, for a machine that does much else.


@pytest.fixture(scope='module')
def bucket():
  with serving() as url:
    yield url


@pytest.fixture(scope='module')
def start(bucket, tmp_path_factory) -> pathlib.Path:
  """A directory with a config, whose weights lie in the bucket and whose data in the workdir."""
  directory = tmp_path_factory.mktemp('start')
  (directory / 'weights').mkdir()
  write_start(directory / 'weights')
  fsspec.filesystem('gs').put(str(directory / 'weights'), f'{bucket}/start', recursive=True)
  (directory / 'config.py').write_text(f"""
import sys
sys.path.insert(0, {str(ROOT / 'tests')!r})
from e2e import forks
from e2e.forks import Process
from e2e.small_run import recipe

def get_config():
  config = recipe({bucket + '/start'!r}, '')
  config.mesh.data, config.mesh.fsdp = 1, -1
  config.streams, config.run, config.stages.stage1.steps = 2, ('stage1',), {STEPS}
  return config
""")
  return directory


def popen(start: pathlib.Path, command: list[str], log: pathlib.Path, **settings: str) -> Process:
  cpu = {'XLA_FLAGS': FAST_COMPILE, 'JAX_PLATFORMS': 'cpu'}
  return forks.start(
    [sys.executable, '-m', *command],
    cwd=ROOT,
    env=os.environ | cpu | {'HOME': str(start)} | settings,
    stdout=log.open('w'),
    stderr=subprocess.STDOUT,
  )


def train(start: pathlib.Path, workdir: str, log: pathlib.Path, *flags: str, **settings: str) -> Process:
  command = ['janus_jax.train', f'--config={start / "config.py"}', f'--workdir={workdir}', *flags]
  return popen(start, command, log, **settings)


def metrics(text: str) -> list[tuple]:
  """All that a line says of the training, nothing of its speed."""
  names = ('step', 'stage', 'loss', 'grad_norm', 'held_out/understanding', 'held_out/generation')
  return [tuple(json.loads(line).get(name) for name in names) for line in text.splitlines()]


@pytest.fixture(scope='module')
def local(start, tmp_path_factory) -> pathlib.Path:
  directory = tmp_path_factory.mktemp('local')
  process = train(start, str(directory / 'run'), directory / 'log')
  assert process.wait(PATIENCE) == 0, (directory / 'log').read_text()
  return directory / 'run'


@pytest.fixture(scope='module')
def resumed(bucket, start, local, tmp_path_factory) -> str:
  """A workdir in the bucket whose run was killed and called again."""
  workdir, logs = f'{bucket}/run', tmp_path_factory.mktemp('logs')
  files = fsspec.filesystem('gs', use_listings_cache=False)
  process = train(start, workdir, logs / 'first', TMPDIR=str(tmp_path_factory.mktemp('killed')))
  end = time.monotonic() + PATIENCE
  while not files.exists(f'{workdir}/checkpoints/2/commit_success.txt'):
    assert process.poll() is None, (logs / 'first').read_text()
    assert time.monotonic() < end
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  # What is left of a save that is killed: it has no file that says that it is whole.
  files.pipe(f'{workdir}/checkpoints/{STEPS - 1}/params/_METADATA', b'{')
  killed_at = max(line[0] for line in metrics(files.cat_file(f'{workdir}/metrics.jsonl').decode()))
  assert 2 <= killed_at < STEPS
  temporary = tmp_path_factory.mktemp('temporary')
  process = train(start, workdir, logs / 'second', TMPDIR=str(temporary))
  assert process.wait(PATIENCE) == 0, (logs / 'second').read_text()
  log = (logs / 'second').read_text()
  assert f'{workdir}: resuming after step' in log
  assert 'codes of' not in log
  assert not list(temporary.glob('janus_jax*'))
  assert (start / '.cache/janus_jax/data/janus_shapes').is_dir()  # Made once, for all starts on this host.
  return workdir


def test_a_killed_run_goes_on_as_if_nothing_had_been(resumed, local):
  files = fsspec.filesystem('gs', use_listings_cache=False)
  found = metrics(files.cat_file(f'{resumed}/metrics.jsonl').decode())
  assert found == metrics((local / 'metrics.jsonl').read_text())
  assert [line[0] for line in found if line[2] is not None] == list(range(1, STEPS + 1))
  params = leaves(janus_jax.load(resumed).params)
  for path, leaf in leaves(janus_jax.load(str(local)).params).items():
    np.testing.assert_array_equal(params[path], leaf, err_msg=path)


def test_the_bucket_has_what_the_disk_has(resumed, local):
  files = fsspec.filesystem('gs', use_listings_cache=False)
  root = resumed.removeprefix('gs://') + '/'
  found = {path.removeprefix(root) for path in files.find(root)}
  expected = {str(path.relative_to(local)) for path in local.rglob('*') if path.is_file()}
  small = lambda names: {name for name in names if not name.startswith(('checkpoints/', 'data/', 'tensorboard/'))}  # noqa: E731
  assert small(found) == small(expected)
  assert {'config.json', 'janus_config.json', 'metrics.jsonl', 'revision.txt', 'tokenizer.json'} < found
  assert not any(name.startswith('data/') for name in found)
  assert len([name for name in found if name.startswith('tensorboard/')]) == 2
  steps = {name.split('/')[1] for name in found if name.startswith('checkpoints/')}
  assert steps == {path.name for path in (local / 'checkpoints').iterdir()}
  assert json.loads(files.cat_file(f'{resumed}/config.json')) == json.loads((local / 'config.json').read_text())


def test_commands_open_it(resumed, local, start, tmp_path):
  output, page = tmp_path / 'converted', tmp_path / 'report.html'
  commands = [
    ['janus_jax.convert', f'--input={resumed}', f'--output={output}', '--format=deepseek'],
    ['janus_jax.report', f'--workdir={resumed}', f'--out={page}'],
  ]
  processes = [popen(start, command, tmp_path / command[0]) for command in commands]
  for process, command in zip(processes, commands):
    assert process.wait(PATIENCE) == 0, (tmp_path / command[0]).read_text()
  assert f'{resumed}/checkpoints' in page.read_text()
  janus = janus_jax.load(str(output))
  config, params = janus.config, janus.params
  assert config == janus_jax.load(str(local)).config
  for path, leaf in leaves(janus_jax.load(str(local)).params).items():
    np.testing.assert_array_equal(leaves(params)[path], leaf, err_msg=path)
  assert load_tokenizer(resumed)[0].special == load_tokenizer(str(local))[0].special


def test_processes_without_a_common_disk(bucket, start, local, tmp_path):
  port, processes = free_port(), []
  for index in range(2):
    (tmp_path / str(index)).mkdir()
    flags = ['--distributed=flags', f'--coordinator_address=127.0.0.1:{port}', '--num_processes=2']
    flags += [f'--process_id={index}', '--dead_after=30']
    log = tmp_path / f'log{index}'
    processes.append(train(start, f'{bucket}/two', log, *flags, TMPDIR=str(tmp_path / str(index))))
  for index, process in enumerate(processes):
    assert process.wait(PATIENCE) == 0, (tmp_path / f'log{index}').read_text()
  assert 'codes of' not in (tmp_path / 'log1').read_text()
  found = metrics(fsspec.filesystem('gs').cat_file(f'{bucket}/two/metrics.jsonl').decode())
  expected = metrics((local / 'metrics.jsonl').read_text())
  assert [line[:2] for line in found] == [line[:2] for line in expected]
  losses = [[line[2:4] for line in lines if line[2]] for lines in (found, expected)]
  np.testing.assert_allclose(*losses, rtol=2e-4)
  assert all(found[-1][4:]), 'on other batches: each process packs its own'
  assert janus_jax.load(f'{bucket}/two').config == janus_jax.load(str(local)).config


class Forbidding(http.server.BaseHTTPRequestHandler):
  """What the emulator has no notion of."""

  def do_GET(self) -> None:
    body = json.dumps({'error': {'code': 403, 'message': 'no storage.objects.list access'}}).encode()
    self.send_response(403)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  do_POST = do_GET  # noqa: N815, the base class looks it up

  def log_message(self, *_: object) -> None:
    pass


@pytest.fixture
def forbidden():
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Forbidding) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield environment(server.server_address[1])
    server.shutdown()


def assert_one_line(process: Process | subprocess.Popen, log: pathlib.Path, *parts: str) -> None:
  assert process.wait(PATIENCE) == 1, log.read_text()
  (line,) = log.read_text().splitlines()
  for part in ('error: ', *parts):
    assert part in line


def test_faults_are_one_line(bucket, start, forbidden, tmp_path):
  (tmp_path / 'blocked').mkdir()
  (tmp_path / 'blocked' / 'gcsfs.py').write_text('raise ImportError("not here")\n')
  blocked = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(tmp_path / 'blocked')}
  command = [sys.executable, '-m', 'janus_jax.train', f'--config={start / "config.py"}', f'--workdir={bucket}/new']
  with (tmp_path / 'driver').open('w') as log:
    driver = subprocess.Popen(command, cwd=ROOT, env=blocked, stdout=log, stderr=subprocess.STDOUT)
  denied = train(start, f'{bucket}/new', tmp_path / 'denied', **forbidden)
  assert_one_line(driver, tmp_path / 'driver', f'{bucket}/new: ', 'pip install gcsfs')
  assert_one_line(denied, tmp_path / 'denied', f'{bucket}/new: ', 'no storage.objects.list access')
  assert not fsspec.filesystem('gs', use_listings_cache=False).exists(f'{bucket}/new')


@pytest.mark.parametrize(
  ('workdir', 'message'),
  [
    ('gs://no-such-bucket/run', 'gs://no-such-bucket/run: no such bucket: expected no-such-bucket to exist'),
    ('s3://bucket/run', 's3://bucket/run: expected a local directory or gs://BUCKET/'),
  ],
)
def test_other_workdirs(workdir, message, bucket):
  with pytest.raises(InputError, match=f'^{message}'):
    setup.train(parse_config(recipe('nowhere', '')), workdir)


def test_no_such_checkpoint(bucket):
  with pytest.raises(InputError, match=f'^{bucket}/nothing: no such directory'):
    janus_jax.load(f'{bucket}/nothing')
