"""What all commands do with Ctrl-C."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
INTERRUPTED = """
import gc, signal, sys, time
from janus_jax import cli

def main():
  {how}
  time.sleep(60)

cli.run(main)
"""
SEND = 'signal.raise_signal(signal.SIGINT)'
# jax has such a callback: what is raised in one is printed and forgotten.
IN_A_CALLBACK = f'gc.callbacks.append(lambda *_: gc.callbacks.clear() or {SEND}); gc.collect()'


@pytest.mark.parametrize('how', [SEND, IN_A_CALLBACK])
def test_ctrl_c_ends_with_one_line(how):
  command = [sys.executable, '-c', INTERRUPTED.format(how=how)]
  result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=50)
  assert (result.returncode, result.stderr) == (130, 'interrupted\n')


LOADING = f"""
import sys, types
sys.modules['__main__'].__spec__ = types.SimpleNamespace(name='janus_jax.train')
from janus_jax import cli
import signal
try:
  {SEND}
except BaseException:
  print('lost')
"""


def test_ctrl_c_ends_a_command_whose_modules_still_load():
  """What is raised in a module that others import may be lost there, too."""
  result = subprocess.run([sys.executable, '-c', LOADING], capture_output=True, text=True, cwd=ROOT, timeout=50)
  assert (result.returncode, result.stdout, result.stderr) == (130, '', 'interrupted\n')
