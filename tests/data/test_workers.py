"""Processes that read records: what they read, and what becomes of a run when one dies, and of them when it dies."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import grain
import numpy as np
import pytest
from data.numbered_streams import contents, make_sources, make_spec, record_of, same, start, state_of

from janus_jax.data import pipeline
from janus_jax.data.skipping import SkipLimit, describe_skipped
from janus_jax.data.workers import AHEAD, TASK

PATIENCE = 240  # Seconds, for a machine that does much else.
READ = """
import multiprocessing, sys
from janus_jax.data.workers import Reading, Workers
workers = Workers(Reading({}, None, 0, 0.0), 2)
workers.submit(()).result()
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  return make_spec(tmp_path_factory.mktemp('tokenizer'))


def is_alive(process: int) -> bool:
  """Not dead, nor dead and not yet buried by whoever has to."""
  stat = pathlib.Path(f'/proc/{process}/stat')
  try:
    return stat.read_text().rpartition(')')[2].split()[0] != 'Z'
  except (FileNotFoundError, ProcessLookupError):
    return False


def test_workers_of_a_process_that_is_killed_end_and_leave_nothing(tmp_path):
  environment = os.environ | {'TMPDIR': str(tmp_path)}
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
  reader = subprocess.Popen(
    [sys.executable, '-c', READ], env=environment, cwd=pathlib.Path(__file__).parents[2], **pipes
  )
  workers = [int(word) for word in reader.stdout.readline().split()]
  assert len(workers) == 2
  assert list(tmp_path.glob('janus_jax-*'))
  for worker in workers:  # Ctrl-C and a lost terminal are sent to all, and are the reader's to take.
    os.kill(worker, signal.SIGINT)
    os.kill(worker, signal.SIGHUP)
  time.sleep(0.5)
  assert all(map(is_alive, workers))
  reader.kill()
  reader.wait()
  end = time.monotonic() + PATIENCE
  while any(map(is_alive, workers)) or list(tmp_path.glob('janus_jax-*')):
    assert time.monotonic() < end
    time.sleep(0.05)


def test_the_stream_does_not_depend_on_workers_or_on_where_it_was_stopped(spec):
  bad = {('generation/real', i) for i in range(0, 23, 5)} | {('text/c', 3)}
  options = {'sources': make_sources(bad), 'skip_limit': SkipLimit(fraction=0.5)}
  alone = start(spec, **options)
  expected = [next(alone) for _ in range(12)]
  state = None
  for count, stop in ((2, 5), (1, 8), (0, 10), (3, 12)):
    stream = start(spec, **options, workers=count, state=state, prefetch=2)
    for _ in range(stop - (12 - len(expected))):
      same(next(stream), expected.pop(0))
    state = state_of(stream)
    stream.close()
  assert not expected
  assert state == state_of(alone)
  assert state['skipped']['generation/real']['wrong type'] > 2


def test_what_is_requested_is_what_will_be_wanted(spec, monkeypatch):
  """Of sources without bad records nothing is read for nothing, and nothing is read only when it is wanted."""
  requested, wanted = [], []

  class Spy(pipeline.Reader):
    def request(self, source, position):
      requested.append((source, position))
      self._tasks[source, position] = None

    def get(self, source, position):
      del self._tasks[source, position]
      wanted.append((source, position))
      return self._workers.reading.examples(source, position)

  monkeypatch.setattr(pipeline, 'Reader', Spy)
  stream = start(spec, workers=2)
  for _ in range(5):
    next(stream)
  assert requested[: len(wanted)] == wanted
  assert len(requested) - len(wanted) == 2 * AHEAD * TASK - 1


class Deadly:
  """Records of text, one of which ends the process that reads it."""

  def __init__(self, path):
    self.path = path

  def __len__(self):
    return 20

  def __getitem__(self, index):
    if index == 7:
      with open(self.path, 'a') as file:
        file.write('.')
      os._exit(1)
    return record_of('text', index)


def test_a_record_that_kills_its_worker_is_skipped_and_no_other(spec, tmp_path):
  source = grain.MapDataset.source(Deadly(str(tmp_path / 'deaths')))
  stream = start(spec, (0, 1, 0), sources={'text': {'c': source}}, skip_limit=SkipLimit(fraction=0.5), workers=2)
  seen = []
  while state_of(stream)['examples']['text/c'] < 19:
    seen += [number for _, number in contents(next(stream), spec)]
  state = state_of(stream)
  stream.close()
  assert set(seen) == set(range(20)) - {7}
  assert state['skipped']['text/c'].keys() == {'crash'}
  assert describe_skipped([state]) == f'text/c: crash {state["skipped"]["text/c"]["crash"]}'


def test_a_worker_that_is_killed_costs_no_record(spec):
  others = multiprocessing.active_children()
  alone, stream = start(spec), start(spec, workers=2)
  for number in range(8):
    np.testing.assert_equal(next(stream), next(alone))
    if number == 2:
      next(child for child in multiprocessing.active_children() if child not in others).kill()
  assert state_of(stream) == state_of(alone)
  stream.close()


class Unreadable:
  """Records that no other process can be given."""

  def __len__(self):
    return 20

  def __getitem__(self, index):
    return record_of('text', index)

  def __setstate__(self, state):
    os._exit(1)

  def __getstate__(self):
    return {'a': 1}


def test_workers_that_cannot_be_started_end_the_run(spec):
  stream = start(spec, (0, 1, 0), sources={'text': {'c': grain.MapDataset.source(Unreadable())}}, workers=2)
  with pytest.raises(RuntimeError, match='ended before it read one'):
    next(stream)
