"""What processes have to agree on, with two real ones."""

import os
import socket
import subprocess
import sys

SUM = """
import sys
import numpy as np
from janus_jax.training import hosts
index, port = map(int, sys.argv[1:])
hosts.start('flags', f'127.0.0.1:{port}', 2, index, 30)
own = np.array([[2**31 + 7, -(2**40), -1, 5], [2**62, 3, -1, -(2**33)]][index])
print(*hosts.summed(own), *hosts.summed(np.array([True, not index])))
"""


def test_sums_over_processes_have_64_bits():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  processes = [
    subprocess.Popen([sys.executable, '-c', SUM, str(index), str(port)], stdout=subprocess.PIPE, env=environment)
    for index in range(2)
  ]
  expected = [b'%d' % total for total in (2**62 + 2**31 + 7, 3 - 2**40, -2, 5 - 2**33, 2, 1)]
  for process in processes:
    assert process.communicate(timeout=240)[0].splitlines()[-1].split() == expected
