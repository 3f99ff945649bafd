"""The convert command as a person runs it: exit codes, one-line errors, progress, nothing half-written."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip('torch')
pytest.importorskip('transformers')

from conversion.checkpoints import assert_same_bits, huggingface_directory, state_dict
from e2e import forks

ROOT = pathlib.Path(__file__).parents[2]


def command(*arguments: str) -> list[str]:
  return [sys.executable, '-m', 'janus_jax.convert', *arguments]


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
  return forks.run(command(*arguments), cwd=ROOT, **options)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return huggingface_directory(tmp_path_factory.mktemp('e2e') / 'source')


def test_there_and_back(source, tmp_path):
  there = run(f'--input={source}', f'--output={tmp_path}/orbax', '--format=orbax')
  assert there.returncode == 0, there.stderr
  assert 'converting: 100%' in there.stderr
  assert there.stdout == ''
  back = run(f'--input={tmp_path}/orbax', f'--output={tmp_path}/back', '--format=huggingface')
  assert back.returncode == 0, back.stderr
  assert_same_bits(state_dict(source), state_dict(f'{tmp_path}/back'))
  assert sorted(os.listdir(tmp_path)) == ['back', 'orbax']


@pytest.mark.parametrize(
  ('arguments', 'code', 'message'),
  [
    (['--input=/no/such/place', '--format=orbax'], 1, r'^error: /no/such/place: no such directory$'),
    (['--input=SOURCE', '--format=onnx'], 2, r'onnx'),
    (['--format=orbax'], 2, r'expected --input, or --vision_encoder, --vq and --language_model'),
    (['--format=orbax', '--vq=a.pt'], 2, r'--vision_encoder is missing'),
    (['--input=SOURCE', '--format=orbax', '--no_such_flag=1'], 2, r'no_such_flag'),
    (['--input=SOURCE', '--format=orbax', 'stray'], 2, r"unexpected argument 'stray'"),
  ],
)
def test_wrong_input_is_one_line_and_an_exit_code(source, tmp_path, arguments, code, message):
  arguments = [argument.replace('SOURCE', source) for argument in arguments]
  result = run(*arguments, f'--output={tmp_path}/out')
  assert result.returncode == code
  assert re.search(message, result.stderr.strip())
  assert len(result.stderr.strip().splitlines()) == 1
  assert os.listdir(tmp_path) == []


def test_a_read_only_place_is_named(source):
  # Writable for nobody, root included.
  result = run(f'--input={source}', '--output=/proc/janus', '--format=orbax')
  assert result.returncode == 1
  assert re.fullmatch(r'error: /proc: cannot be written to \(.+\)', result.stderr.strip())


def test_a_file_system_that_refuses_is_one_line(source, tmp_path):
  """A limit on file size stands in for a full disk: the kernel refuses a write half-way."""
  convert = command(f'--input={source}', f'--output={tmp_path}/out', '--format=huggingface')
  limited = ['bash', '-c', 'ulimit -f 1000; exec "$@"', 'bash', *convert]  # In blocks of 1024 bytes.
  result = subprocess.run(limited, capture_output=True, text=True, cwd=ROOT)
  assert result.returncode == 1
  assert result.stderr.strip().splitlines()[-1].endswith('File too large')
  assert 'Traceback' not in result.stderr
  assert os.listdir(tmp_path) == []


def test_a_killed_conversion_leaves_nothing_under_the_final_name(source, tmp_path):
  child = subprocess.Popen(
    command(f'--input={source}', f'--output={tmp_path}/out', '--format=orbax'), cwd=ROOT, stderr=subprocess.DEVNULL
  )
  while child.poll() is None and not os.listdir(tmp_path):
    time.sleep(0.001)
  child.send_signal(signal.SIGKILL)
  child.wait()
  assert not (tmp_path / 'out').exists()
