"""launch/slurm.sbatch with other programs in the place of Slurm's; tests/launch/run_slurm.sh runs it in a real one."""

import pytest
from launch.commands import ROOT, dry_run, fake, launch

TRAIN = ('h100', 'train', '--config=configs/janus_pro_7b.py', '--workdir=/shared/run')


def test_dry_run_prints_the_job_step():
  (words,) = dry_run('slurm.sbatch', *TRAIN, SLURM_CPUS_PER_TASK='8', SLURM_NTASKS='32', SLURM_JOB_NUM_NODES='4')
  step = ['srun', '--cpus-per-task=8', '--wait=300']
  assert words == [*step, 'bash', 'launch/run.sh', *TRAIN, '--distributed=auto']


def test_a_task_alone_on_its_node_gets_all_of_its_devices():
  alone = {'SLURM_NTASKS': '4', 'SLURM_JOB_NUM_NODES': '4', 'SLURM_GPUS_ON_NODE': '8'}
  (words,) = dry_run('slurm.sbatch', *TRAIN, **alone)
  assert words[words.index('env') + 1] == 'JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7'
  assert 'env' not in dry_run('slurm.sbatch', *TRAIN, **{**alone, 'SLURM_NTASKS': '32'})[0]


def test_an_element_of_an_array_takes_its_share():
  array = {'SLURM_ARRAY_TASK_ID': '3', 'SLURM_ARRAY_TASK_MIN': '1', 'SLURM_ARRAY_TASK_COUNT': '8'}
  (words,) = dry_run('slurm.sbatch', 'h100', 'tokenize', '--input=x', **array)
  assert words[-2:] == ['--input=x', '--shard=2/8']
  (words,) = dry_run('slurm.sbatch', *TRAIN, **array)
  assert not [word for word in words if word.startswith('--shard')]


@pytest.mark.parametrize('arguments', [(), ('h100',)])
def test_wrong_usage_is_one_line_and_status_2(arguments):
  result = launch('slurm.sbatch', *arguments)
  assert result.returncode == 2
  assert result.stderr.startswith('slurm.sbatch: expected ACCELERATOR VERB')
  assert len(result.stderr.splitlines()) == 1


def test_submitted_from_elsewhere_it_says_so(tmp_path):
  result = launch('slurm.sbatch', *TRAIN, SLURM_SUBMIT_DIR=str(tmp_path))
  assert result.returncode == 2
  assert 'in the root of the repository' in result.stderr


@pytest.mark.parametrize(
  ('status', 'state', 'requeued'),
  [
    (0, 'RUNNING', False),  # Finished.
    (1, 'RUNNING', False),  # Failed: the same again would fail again.
    (143, 'RUNNING', True),  # The time limit is near, or a more urgent job wants the nodes.
    (143, 'CANCELLED', False),  # scancel.
  ],
)
def test_only_what_was_stopped_and_not_cancelled_goes_back_into_the_queue(tmp_path, status, state, requeued):
  fake(tmp_path, 'srun', f'exit {status}')
  fake(tmp_path, 'squeue', f'echo {state}')
  path = fake(tmp_path, 'scontrol', f'echo "$@" >{tmp_path}/requeued')
  result = launch('slurm.sbatch', *TRAIN, PATH=path, SLURM_JOB_ID='17')
  assert result.returncode == status
  assert (tmp_path / 'requeued').exists() == requeued
  if requeued:
    assert (tmp_path / 'requeued').read_text() == 'requeue 17\n'


def test_the_job_step_is_what_the_dry_run_prints(tmp_path):
  path = fake(tmp_path, 'srun', f'for word in srun "$@"; do echo "$word"; done >{tmp_path}/step')
  assert launch('slurm.sbatch', *TRAIN, PATH=path).returncode == 0
  assert [(tmp_path / 'step').read_text().splitlines()] == dry_run('slurm.sbatch', *TRAIN)


def test_the_signal_goes_to_the_tasks_and_the_job_can_be_put_back():
  lines = (ROOT / 'launch' / 'slurm.sbatch').read_text().splitlines()
  options = [line.removeprefix('#SBATCH ') for line in lines if line.startswith('#SBATCH')]
  # Not --signal=B:..., which would go to the script alone; a log that is not begun anew.
  assert {'--signal=TERM@300', '--requeue', '--open-mode=append'} <= set(options)
