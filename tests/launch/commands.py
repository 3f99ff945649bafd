"""Runs the scripts of launch/ and takes their dry runs apart."""

import os
import pathlib
import shlex
import subprocess

ROOT = pathlib.Path(__file__).parent.parent.parent
# Own settings of these would go into what launch/run.sh prints.
OWN = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'JAX_PLATFORMS', 'JAX_COMPILATION_CACHE_DIR', 'PYTHON', 'SHARDS')


def inherited() -> dict[str, str]:
  """The environment without settings that would change what the scripts do."""
  return {name: value for name, value in os.environ.items() if name not in OWN and not name.startswith('SLURM_')}


def launch(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
  """`bash launch/SCRIPT ARGUMENTS...` at the root; its status, output and errors."""
  return subprocess.run(
    ['bash', f'launch/{script}', *arguments],
    cwd=ROOT,
    env={**inherited(), **environment},
    capture_output=True,
    text=True,
    timeout=60,
  )


def dry_run(script: str, *arguments: str, **environment: str) -> list[list[str]]:
  """The commands of a dry run, one a line, each as its words."""
  result = launch(script, '--dry_run', *arguments, **environment)
  assert result.returncode == 0, result.stderr
  return [shlex.split(line) for line in result.stdout.splitlines()]


def program(words: list[str]) -> tuple[str, list[str]]:
  """The module of janus_jax that a command with launch/run.sh in it ends up running, and its flags."""
  (command,) = dry_run('run.sh', *words[words.index('launch/run.sh') + 1 :])
  module = command.index('-m') + 1
  return command[module], command[module + 1 :]


def fake(directory: pathlib.Path, name: str, body: str) -> str:
  """Puts a program `name` into a directory, which then belongs in front of PATH. Returns that PATH."""
  path = directory / name
  path.write_text(f'#!/usr/bin/env bash\n{body}\n')
  path.chmod(0o755)
  return f'{directory}:{os.environ["PATH"]}'
