"""What processes have to agree on, with two real ones; and flags that do not go together."""

import json
import os
import socket
import subprocess
import sys

import pytest

from janus_jax.errors import InputError
from janus_jax.training import hosts

AGREE = """
import json, sys
import numpy as np
from janus_jax.errors import InputError
from janus_jax.training import hosts
index, port = map(int, sys.argv[1:])
hosts.start('flags', f'127.0.0.1:{port}', 2, index, 30)
own = np.array([[2**31 + 7, -(2**40), -1, 5], [2**62, 3, -1, -(2**33)]][index])
found = {'sums': [*map(int, hosts.summed(own)), *map(int, hosts.summed(np.array([True, not index])))]}

def reason(block):
  try:
    block()
  except InputError as error:
    return str(error)

def failing(which, error=InputError('a reason')):
  with hosts.together():
    if index == which:
      raise error

def alone(which):
  with hosts.first_alone():
    failing_here = index == which
    if failing_here:
      raise InputError('a reason')

config = {'seed': 0, 'stages': {'stage1': {'learning_rate': [0.001, 0.002][index], 'steps': 3 + index}}}
found['same'] = reason(lambda: hosts.check_same('another config', {'a': [1, 2], 'b': {}}))
found['config'] = reason(lambda: hosts.check_same('another config', config))
found['missing'] = reason(lambda: hosts.check_same('other code', {'a': 1} if index else {'a': 1, 'b': 'x' * index}))
found['together'] = [reason(lambda: failing(which)) for which in (0, 1, None)]
found['first_alone'] = [reason(lambda: alone(which)) for which in (0, 1, None)]
print(json.dumps(found))
"""


def test_two_processes_agree_and_fail_together():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  processes = [
    subprocess.Popen([sys.executable, '-c', AGREE, str(index), str(port)], stdout=subprocess.PIPE, env=environment)
    for index in range(2)
  ]
  for index, process in enumerate(processes):
    found = json.loads(process.communicate(timeout=240)[0].splitlines()[-1])
    assert found == {
      'sums': [2**62 + 2**31 + 7, 3 - 2**40, -2, 5 - 2**33, 2, 1],
      'same': None,
      'config': 'process 1 has another config: stages.stage1.learning_rate is 0.002: expected 0.001 as on process 0',
      'missing': 'process 1 has other code: b is not there: expected "" as on process 0',
      **dict.fromkeys(
        ('together', 'first_alone'),
        ['a reason' if index == which else f'process {which}: a reason' for which in (0, 1)] + [None],
      ),
    }


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('flags', None, 2, 0), r"distributed is 'flags': expected coordinator_address too"),
    (
      ('none', None, None, 1),
      r"distributed is 'none': expected none of coordinator_address, num_processes, process_id",
    ),
    (('flags', '127.0.0.1:1', 2, 2), r'process_id is 2: expected 0 to 1'),
    (('flags', '127.0.0.1:1', 2, -1), r'process_id is -1: expected 0 to 1'),
    (('flags', '127.0.0.1:1', 0, 0), r'num_processes is 0: expected 1 or more'),
    (('flags', 'localhost', 2, 0), r"coordinator_address is 'localhost': expected HOST:PORT of process 0"),
  ],
)
def test_flags_that_do_not_go_together(flags, message):
  with pytest.raises(InputError, match=f'^{message}'):
    hosts.start(*flags, dead_after=100)


def test_at_home_there_is_no_cluster():
  """In a process of its own: jax wants to be asked before anything is computed."""
  code = "from janus_jax.training import hosts; hosts.start('auto', None, None, None, dead_after=100)"
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=240)
  assert result.returncode == 1
  message = "janus_jax.errors.InputError: distributed is 'auto' and no cluster was recognised"
  assert result.stderr.splitlines()[-1].startswith(message)


@pytest.mark.parametrize('name', ['dead_after', 'patience'])
def test_waiting_takes_time(name):
  with pytest.raises(InputError, match=r'^(dead_after|wait_for_processes) is 0: expected seconds, 1 or more'):
    hosts.start('none', None, None, None, **{'dead_after': 100, 'patience': 1, name: 0})
