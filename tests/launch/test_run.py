"""launch/run.sh: the flags of an accelerator in front of a program, wrong usage, and the status after SIGTERM."""

import os
import re
import signal
import subprocess

import pytest
from launch.commands import ROOT, dry_run, fake, launch


def settings(words: list[str]) -> dict[str, str]:
  """NAME=value words of `env NAME=value ... PROGRAM ...`."""
  assert words[0] == 'env'
  return dict(word.split('=', 1) for word in words[1 : words.index('-m') - 1])


def test_dry_run_prints_the_whole_command():
  (words,) = dry_run('run.sh', 'cpu', 'train', '--config=a b.py', "--config.note=it's $HOME")
  python = ['.venv/bin/python', '-m', 'janus_jax.train', '--config=a b.py', "--config.note=it's $HOME"]
  assert words == ['env', 'JAX_PLATFORMS=cpu', *python]


def test_flags_of_a_file_are_joined_in_its_order():
  (words,) = dry_run('run.sh', 'h100', 'train')
  flags = settings(words)['XLA_FLAGS'].split(' ')
  lines = (ROOT / 'launch/flags/h100.env').read_text().splitlines()
  assert flags == [line.removeprefix('XLA_FLAGS=') for line in lines if line.startswith('XLA_FLAGS=')]
  assert settings(words)['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '0.9'
  assert 'LIBTPU_INIT_ARGS' not in settings(words)


@pytest.mark.parametrize(('accelerator', 'variable'), [('h100', 'XLA_FLAGS'), ('v6e', 'LIBTPU_INIT_ARGS')])
def test_own_flags_come_last(accelerator, variable):
  (words,) = dry_run('run.sh', accelerator, 'train')
  (more,) = dry_run('run.sh', accelerator, 'train', **{variable: '--mine=1'})
  assert settings(more)[variable] == f'{settings(words)[variable]} --mine=1'
  # XLA takes a value that does not begin with -- for the name of a file.
  assert settings(words)[variable].startswith('--')


def test_what_the_caller_has_set_stands():
  (words,) = dry_run('run.sh', 'v6e', 'train', JAX_PLATFORMS='tpu', PYTHON='python3.13')
  assert settings(words)['JAX_PLATFORMS'] == 'tpu'
  assert words[words.index('-m') - 1] == 'python3.13'


@pytest.mark.parametrize(
  ('variables', 'expected'),
  [
    ({'HOME': '/home/me'}, '/home/me/.cache/janus_jax'),
    ({'HOME': '/home/me', 'XDG_CACHE_HOME': '/scratch'}, '/scratch/janus_jax'),
    ({'JAX_COMPILATION_CACHE_DIR': 'gs://bucket/cache'}, 'gs://bucket/cache'),
    ({'JAX_COMPILATION_CACHE_DIR': ''}, ''),
  ],
)
def test_compiled_programs_are_kept(variables, expected, monkeypatch):
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  (words,) = dry_run('run.sh', 'h100', 'train', **variables)
  assert settings(words)['JAX_COMPILATION_CACHE_DIR'] == expected


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('v5e',), 'expected ACCELERATOR VERB'),
    (('v9', 'train'), 'accelerator is v9: expected one of a100 b200 cpu h100 v5e v5p v6e'),
    (('v5e', 'errors'), 'verb is errors: expected one of '),
    (('v5e', 'tra.n'), 'verb is tra.n: expected one of '),
    (('--dry-run', 'v5e', 'errors'), 'verb is errors: expected one of '),
    # It would have been a flag of the program, and this no dry run.
    (('v5e', 'train', '--dry_run'), '--dry_run is among the flags of the verb: expected it first'),
    (('v5e', 'train', '--dry-run'), '--dry_run is among the flags of the verb: expected it first'),
  ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments, message):
  result = launch('run.sh', *arguments)
  assert result.returncode == 2
  assert result.stderr.startswith(f'run.sh: {message}')
  assert len(result.stderr.splitlines()) == 1


def test_dry_run_may_be_spelt_with_a_hyphen():
  underscore, hyphen = (launch('run.sh', flag, 'cpu', 'train').stdout for flag in ('--dry_run', '--dry-run'))
  assert underscore == hyphen
  assert underscore.endswith('-m janus_jax.train\n')


def test_without_arguments_it_says_what_it_can_do():
  result = launch('run.sh')
  assert (result.returncode, result.stdout) == (2, '')
  assert 'bash launch/run.sh [--dry_run] ACCELERATOR VERB' in result.stderr
  assert 'accelerators: a100 b200 cpu h100 v5e v5p v6e\n' in result.stderr
  said = dict(re.findall(r'^  (\w+) +(\S.*)$', result.stderr.split('\nverbs ')[1], re.M))
  programs = [path for path in (ROOT / 'janus_jax').glob('*.py') if '\nif __name__' in path.read_text()]
  assert said == {path.stem: path.read_text().splitlines()[0].removeprefix('"""') for path in programs}
  asked = launch('run.sh', '--help')
  assert (asked.returncode, asked.stdout) == (0, result.stderr)


def run(tmp_path, body: str) -> subprocess.Popen[str]:
  fake(tmp_path, 'python', body)
  return subprocess.Popen(
    ['bash', 'launch/run.sh', 'cpu', 'train', '--workdir=x'],
    cwd=ROOT,
    env={**os.environ, 'PYTHON': str(tmp_path / 'python')},
    stdout=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize(('status', 'expected'), [(0, 0), (1, 1), (2, 2)])
def test_the_status_of_the_program_is_passed_on(tmp_path, status, expected):
  process = run(tmp_path, f'echo "$@"; exit {status}')
  assert process.communicate(timeout=30)[0] == '-m janus_jax.train --workdir=x\n'
  assert process.returncode == expected


@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(('status', 'expected'), [(0, 143), (1, 1)])
def test_a_stopped_program_saves_and_is_not_taken_for_a_finished_one(tmp_path, sent, status, expected):
  body = f"trap 'sleep 0.3; echo saved; exit {status}' TERM; echo started; while true; do sleep 0.05; done"
  process = run(tmp_path, body)
  assert process.stdout.readline() == 'started\n'
  process.send_signal(sent)
  assert process.communicate(timeout=30)[0] == 'saved\n'
  assert process.returncode == expected


def test_a_second_signal_does_not_cut_the_saving_short(tmp_path):
  body = f"""trap 'trap "" TERM; echo saving; sleep 1; touch {tmp_path}/saved; exit 0' TERM
    echo started; while true; do sleep 0.05; done"""
  process = run(tmp_path, body)
  assert process.stdout.readline() == 'started\n'
  process.terminate()
  assert process.stdout.readline() == 'saving\n'
  process.terminate()
  assert process.wait(timeout=30) == 143
  assert (tmp_path / 'saved').exists()
