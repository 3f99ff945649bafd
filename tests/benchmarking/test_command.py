"""The command in its own process: beside the peer, and its answers to mistakes. The rest is in test_running.py."""

import json
import pathlib
import subprocess
import sys

import pytest
from e2e import forks

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def recipe(tmp_path_factory) -> str:
  """The recipe of configs/benchmarks with a model that is done in seconds."""
  text = (ROOT / 'configs/benchmarks/cpu.py').read_text()
  path = tmp_path_factory.mktemp('recipe') / 'small.py'
  path.write_text(text.replace("'benchmark'", "'test_tiny'").replace('sequence_length = 640', 'sequence_length = 96'))
  return str(path)


def run(*arguments: str) -> subprocess.CompletedProcess:
  command = [sys.executable, '-m', 'janus_jax.benchmark', *arguments]
  return forks.run(command, cwd=ROOT, timeout=300)


def test_beside_the_peer(recipe, tmp_path):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  arguments = ('--mode=understand', '--prompt_tokens=8', '--answer_tokens=4', '--repeats=2', f'--out={tmp_path}')
  result = run(f'--config={recipe}', '--peer=transformers', '--json', *arguments)
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout)
  assert (found['mode'], found['compute_dtype'], found['greedy_agreement']) == ('understand', 'float32', 1.0)
  assert found['peer'].startswith('transformers ')
  assert found['answers'][0]['times_the_peer_by_seconds_of_answer']['median'] > 0
  assert {'date', 'revision', 'device', 'jax', 'peak_bytes_of_process'} <= set(found)
  assert json.loads((tmp_path / 'results.json').read_text()) == found
  assert '| answers.batch=1.seconds_of_answer | ' in (tmp_path / 'table.md').read_text()


def test_mistakes_are_one_line(recipe):
  result = run(f'--config={recipe}', '--mode=train', '--config.mesh.data=3')
  assert result.returncode == 1
  assert result.stderr.startswith('error: mesh sizes')
  assert len(result.stderr.splitlines()) == 1
