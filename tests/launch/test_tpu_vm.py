"""launch/tpu_vm.sh: what it asks of gcloud, and what it leaves running on a worker."""

import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time

import pytest
from launch.commands import ROOT, dry_run, fake, launch

WHERE = ('--name=janus', '--zone=us-west4-a')
QUEUED = ['gcloud', 'compute', 'tpus', 'queued-resources']
TRAIN = ('train', '--config=configs/janus_pro_7b.py', '--workdir=gs://bucket/run', "--config.run=('stage2', 'stage3')")


def remote(words: list[str]) -> str:
  """The shell command that is sent to the workers."""
  (command,) = [word for word in words if word.startswith('--command=')]
  return command.removeprefix('--command=')


def test_up_asks_waits_copies_and_installs():
  asked, described, packed, copied, installed = dry_run('tpu_vm.sh', 'up', *WHERE, '--type=v5litepod-16')
  place = '--zone=us-west4-a'
  kind = ['--accelerator-type=v5litepod-16', '--node-id=janus', '--runtime-version=v2-alpha-tpuv5-lite']
  assert asked == [*QUEUED, 'create', 'janus', place, *kind]
  assert described == [*QUEUED, 'describe', 'janus', place, '--format=value(state.state)']
  archive = next(word for word in packed if word.startswith('--file=')).removeprefix('--file=')
  assert packed[0] == 'tar'
  assert copied == [*QUEUED, 'scp', archive, 'janus:janus_jax.tgz', place, '--node=all', '--worker=all']
  assert installed[:-1] == [*QUEUED, 'ssh', 'janus', place, '--node=all', '--worker=all']
  assert remote(installed).endswith('bash janus_jax/launch/install.sh tpu,gcs')


@pytest.mark.parametrize(
  ('kind', 'runtime', 'flags'),
  [
    ('v5litepod-8', 'v2-alpha-tpuv5-lite', 'v5e'),
    ('v5p-128', 'v2-alpha-tpuv5', 'v5p'),
    ('v6e-256', 'v2-alpha-tpuv6e', 'v6e'),
  ],
)
def test_the_type_decides_runtime_and_flags(kind, runtime, flags):
  assert f'--runtime-version={runtime}' in dry_run('tpu_vm.sh', 'up', *WHERE, f'--type={kind}')[0]
  (started,) = dry_run('tpu_vm.sh', 'run', *WHERE, f'--type={kind}', 'train')
  assert f'launch/run.sh {flags} train' in remote(started)


def test_slices_and_other_options_go_to_the_request():
  asked, *others = dry_run('tpu_vm.sh', 'up', *WHERE, '--type=v6e-256', '--slices=2', '--spot', '--project=p')
  assert {'--node-count=2', '--node-prefix=janus', '--spot', '--project=p'} <= set(asked)
  assert not [word for word in asked if word.startswith('--node-id')]
  for words in others:
    assert '--spot' not in words
    assert ('--project=p' in words) == (words[0] == 'gcloud')


def test_run_starts_the_same_command_on_every_worker():
  (started,) = dry_run('tpu_vm.sh', 'run', *WHERE, '--type=v5p-128', *TRAIN)
  assert started[:-1] == [*QUEUED, 'ssh', 'janus', '--zone=us-west4-a', '--node=all', '--worker=all']
  line = remote(started).split('nohup ')[1].split(' >>')[0]
  assert shlex.split(line) == ['bash', 'launch/run.sh', 'v5p', *TRAIN, '--distributed=auto']


def test_only_training_is_told_to_join_the_other_hosts():
  (started,) = dry_run('tpu_vm.sh', 'run', *WHERE, '--type=v5p-8', 'generate', '--checkpoint=c')
  assert '--distributed' not in remote(started)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (WHERE, "action is '': expected up, install, run, log, stop or down"),
    (('start', *WHERE), "action is 'start'"),
    (('log', '--zone=z'), 'expected --name=NAME and --zone=ZONE'),
    (('up', *WHERE), "type is '': expected v5e-N (v5litepod-N), v5p-N or v6e-N"),
    (('run', *WHERE, '--type=h100', 'train'), "type is 'h100'"),
    (('run', *WHERE, '--type=v5p-8'), 'expected VERB'),
    (('log', *WHERE, '--spot'), 'log has no option --spot'),
    (('down', *WHERE, 'train'), 'down has no argument train'),
    *[
      (('up', *WHERE, f'--type={kind}'), f'type is {kind}: expected {kind.split("-")[0]}-N, N being one of {sizes}')
      for kind, sizes in {
        **{
          f'v5litepod-{size}': '1 4 8 16 32 64 128 256' for size in ('13', '0', '', '512', '16-8', '04', '16 ', '1 4')
        },
        'v6e-2': '1 4 8 16 32 64 128 256',
        **{f'v5p-{size}': '8 16 32 64, or a multiple of 128 up to 12288' for size in ('4', '96', '130', '12416')},
      }.items()
    ],
    (('up', *WHERE, '--type=v4-16'), "type is 'v4-16': expected v5e-N (v5litepod-N), v5p-N or v6e-N"),
    *[
      (('up', *WHERE, '--type=v5p-8', f'--slices={slices}'), f"slices is '{slices}': expected 1 or more")
      for slices in ('0', '-1', 'two', '', '1.5')
    ],
  ],
)
def test_wrong_usage_is_one_line_and_status_2_for_dry_runs_too(tmp_path, arguments, message):
  path = fake(tmp_path, 'gcloud', f'touch {tmp_path}/begun; exit 1')
  for flag in ((), ('--dry_run',), ('--dry-run',)):
    result = launch('tpu_vm.sh', *flag, *arguments, PATH=path)
    assert result.returncode == 2
    assert result.stderr.startswith(f'tpu_vm.sh: {message}')
    assert len(result.stderr.splitlines()) == 1
  assert not (tmp_path / 'begun').exists()


@pytest.mark.parametrize('arguments', [('trian', '--config=x'), ('train', '--dry_run'), ('errors',)])
def test_what_the_workers_would_refuse_is_refused_here(tmp_path, arguments):
  path = fake(tmp_path, 'gcloud', f'touch {tmp_path}/begun; exit 1')
  for flag in ((), ('--dry_run',)):
    result = launch('tpu_vm.sh', *flag, 'run', *WHERE, '--type=v5p-8', *arguments, PATH=path)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
  assert not (tmp_path / 'begun').exists()


@pytest.mark.parametrize('kind', ['v5litepod-1', 'v5litepod-256', 'v5p-32', 'v5p-384', 'v5p-12288', 'v6e-4'])
def test_sizes_that_are_sold_are_asked_for(kind):
  assert f'--accelerator-type={kind}' in dry_run('tpu_vm.sh', 'up', *WHERE, f'--type={kind}')[0]


def test_without_arguments_it_says_how_it_is_used():
  result = launch('tpu_vm.sh')
  assert (result.returncode, result.stdout) == (2, '')
  assert result.stderr.startswith('Trains on Cloud TPU VMs')
  assert '\n  bash launch/tpu_vm.sh up ' in result.stderr
  asked = launch('tpu_vm.sh', '--help')
  assert (asked.returncode, asked.stdout) == (0, result.stderr)


def test_how_hosts_find_each_other_may_be_said():
  (started,) = dry_run('tpu_vm.sh', 'run', *WHERE, '--type=v5p-8', 'train', '--distributed=none')
  assert '--distributed=none' in remote(started)
  assert 'auto' not in remote(started)


ACTIONS = {
  'up': ('--type=v5litepod-16', '--spot', '--slices=2'),
  'install': (),
  'run': ('--type=v5litepod-16', *TRAIN),
  'log': (),
  'stop': (),
  'down': (),
}


@pytest.mark.parametrize('action', sorted(ACTIONS))
def test_a_dry_run_prints_exactly_what_is_run(tmp_path, action):
  record = f"""printf '%q ' "${{0##*/}}" "$@" >>{tmp_path}/record; echo >>{tmp_path}/record"""
  fake(tmp_path, 'gcloud', f'{record}\n[ "$4" != describe ] || echo ACTIVE')
  path = fake(tmp_path, 'tar', record)
  arguments = (action, *WHERE, *ACTIONS[action])
  result = launch('tpu_vm.sh', *arguments, PATH=path)
  assert result.returncode == 0, result.stderr
  # Bash reads back what it has quoted.
  code = f'while IFS= read -r line; do eval "printf \'%s\\0\' $line"; echo; done <{tmp_path}/record'
  lines = subprocess.run(['bash', '-c', code], capture_output=True, text=True, check=True).stdout.split('\0\n')
  done = [line.split('\0') for line in lines if line]
  (tmp_path / 'record').unlink()
  assert dry_run('tpu_vm.sh', *arguments, PATH=path) == done
  assert not (tmp_path / 'record').exists()


def test_up_ends_where_the_request_has_failed(tmp_path):
  path = fake(tmp_path, 'gcloud', '[ "$4" != describe ] || echo FAILED')
  result = launch('tpu_vm.sh', 'up', *WHERE, '--type=v5p-8', PATH=path)
  assert (result.returncode, result.stderr) == (1, 'tpu_vm.sh: janus is FAILED: expected ACTIVE\n')


@pytest.mark.parametrize('refused', ['create', 'describe', 'scp', 'ssh'])
def test_up_stops_at_the_first_command_that_fails(tmp_path, refused):
  body = f"""echo "$4" >>{tmp_path}/record
[ "$4" != {refused} ] || exit 3
[ "$4" != describe ] || echo ACTIVE"""
  fake(tmp_path, 'tar', '')
  path = fake(tmp_path, 'gcloud', body)
  assert launch('tpu_vm.sh', 'up', *WHERE, '--type=v5p-8', PATH=path).returncode == 3
  assert (tmp_path / 'record').read_text().split()[-1] == refused


def wait_for(condition) -> None:
  end = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.05)


def on_worker(home: pathlib.Path, words: list[str]) -> subprocess.CompletedProcess[str]:
  """Runs what a worker is sent, with another launch/run.sh, in a home directory of its own."""
  command = remote(words).replace('nohup bash', f'HOME={home} nohup bash')
  return subprocess.run(['bash', '-c', command], cwd=home, capture_output=True, text=True, timeout=30)


@pytest.fixture
def worker(tmp_path):
  """The home directory of a worker on which the source tree has been installed."""
  (tmp_path / 'janus_jax' / 'launch').mkdir(parents=True)
  body = 'trap "echo saved; exit 143" TERM; echo "$@"; for ((i = 0; i < 600; i++)); do sleep 0.05; done'
  (tmp_path / 'janus_jax' / 'launch' / 'run.sh').write_text(body)
  yield tmp_path
  pid = tmp_path / 'janus_jax' / 'janus.pid'
  if pid.exists():
    with contextlib.suppress(ProcessLookupError):
      os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_worker_runs_one_program_at_a_time_until_it_is_stopped(worker):
  (start,) = dry_run('tpu_vm.sh', 'run', *WHERE, '--type=v5p-8', *TRAIN)
  (stop,) = dry_run('tpu_vm.sh', 'stop', *WHERE)
  log = worker / 'janus_jax' / 'janus.log'
  assert on_worker(worker, start).returncode == 0
  wait_for(lambda: log.exists() and log.read_text().startswith(f'v5p {" ".join(TRAIN)} --distributed=auto'))

  again = on_worker(worker, start)
  assert (again.returncode, again.stderr) == (1, 'running already: stop it first\n')

  assert on_worker(worker, stop).returncode == 0
  wait_for(lambda: log.read_text().endswith('saved\n'))
  wait_for(lambda: on_worker(worker, start).returncode == 0)
  assert on_worker(worker, stop).returncode == 0


def test_nothing_starts_where_nothing_is_installed(tmp_path):
  (start,) = dry_run('tpu_vm.sh', 'run', *WHERE, '--type=v5p-8', 'train')
  assert on_worker(tmp_path, start).returncode == 1
  assert not list(tmp_path.iterdir())


def test_weights_are_not_copied_to_every_host(tmp_path):
  shutil.copytree(ROOT / 'launch', tmp_path / 'launch')
  (tmp_path / 'parts').mkdir()
  (tmp_path / 'parts' / 'model').touch()
  command = ['bash', tmp_path / 'launch' / 'tpu_vm.sh', '--dry_run', 'install', *WHERE]
  assert subprocess.run(command, capture_output=True).returncode == 0
  os.truncate(tmp_path / 'parts' / 'model', 300 << 20)  # Sparse.
  result = subprocess.run(command, capture_output=True, text=True)
  assert (result.returncode, result.stdout) == (2, '')
  assert 'parts and the rest of this folder, which goes to every host, have 30' in result.stderr


def test_what_is_copied_can_be_run(tmp_path):
  packed = next(words for words in dry_run('tpu_vm.sh', 'install', *WHERE) if words[0] == 'tar')
  archive = tmp_path / 'tree.tgz'
  command = [f'--file={archive}' if word.startswith('--file=') else word for word in packed]
  # 1: a file changed meanwhile, as those of other tests do.
  assert subprocess.run(['tar', '--exclude=./.git', *command[1:]], cwd=ROOT, timeout=60).returncode in (0, 1)
  names = subprocess.run(['tar', '-tzf', archive], capture_output=True, text=True, check=True).stdout.split()
  assert {'./setup.py', './README.md', './launch/run.sh', './janus_jax/train.py', './configs/tiny.py'} <= set(names)
  assert not [name for name in names if name.startswith('./.venv/') or '__pycache__' in name]
