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


TOKENIZE = ('h100', 'tokenize', '--input=x')


def element(task: int, ids: list[int]) -> dict[str, str]:
  """What Slurm tells an element of a job array."""
  said = {'ID': task, 'MIN': min(ids), 'MAX': max(ids), 'COUNT': len(ids), 'STEP': 1}
  return {f'SLURM_ARRAY_TASK_{name}': str(value) for name, value in said.items()}


@pytest.mark.parametrize('ids', [[0, 1, 2], [3, 4, 5, 6], [0, 2, 4, 6], [5, 105, 205], [0, 7]])
def test_the_elements_of_an_array_share_the_work(ids):
  shares = [dry_run('slurm.sbatch', *TOKENIZE, **element(task, ids))[0][-1] for task in ids]
  assert shares == [f'--shard={place}/{len(ids)}' for place in range(len(ids))]


@pytest.mark.parametrize(
  ('ids', 'whole', 'shares'),
  [
    ([5], '8', ['5/8']),
    ([0], '1', ['0/1']),
    ([1, 5, 7], '8', ['1/8', '5/8', '7/8']),
    ([1, 8], '1-8', ['0/8', '7/8']),
  ],
)
def test_elements_done_again_take_the_shares_that_they_had(ids, whole, shares):
  again = [dry_run('slurm.sbatch', *TOKENIZE, **element(task, ids), SHARDS=whole)[0][-1] for task in ids]
  assert again == [f'--shard={share}' for share in shares]


@pytest.mark.parametrize(
  ('arguments', 'environment', 'message'),
  [
    (TOKENIZE, element(5, [5]), 'the array has one element, 5'),
    (TOKENIZE, element(5, [1, 5, 7]), "the array's 3 ids from 1 to 7 are not evenly spaced"),
    (TOKENIZE, element(5, [1, 5, 6]), "the array's 3 ids from 1 to 6 are not evenly spaced"),
    (TOKENIZE, {**element(8, [8]), 'SHARDS': '8'}, 'SHARDS is 8 and this is element 8 of the array: expected 0 to 7'),
    (TOKENIZE, {**element(0, [0]), 'SHARDS': '1-8'}, 'SHARDS is 1-8 and this is element 0'),
    (TOKENIZE, {**element(3, [3]), 'SHARDS': '8-1'}, 'SHARDS is 8-1 and this is element 3'),
    (TOKENIZE, {**element(3, [3]), 'SHARDS': 'all'}, 'SHARDS is all: expected'),
    (TOKENIZE, {**element(3, [3]), 'SHARDS': '08'}, 'SHARDS is 08: expected'),
    (TOKENIZE, {**element(3, [3]), 'SHARDS': '0'}, 'SHARDS is 0: expected'),
    (TOKENIZE, {'SHARDS': '8'}, 'SHARDS is 8: expected it with --array only'),
    ((*TOKENIZE, '--shard=0/2'), element(1, [0, 1]), 'all 2 elements of the array would take the same --shard'),
    (
      ('h100', 'understand'),
      element(1, [0, 1]),
      'understand has no --shard: all 2 elements of the array would do the same',
    ),
  ],
)
def test_an_element_whose_share_is_not_known_does_nothing(tmp_path, arguments, environment, message):
  path = fake(tmp_path, 'srun', f'touch {tmp_path}/begun')
  for flag in ((), ('--dry_run',)):
    result = launch('slurm.sbatch', *flag, *arguments, PATH=path, **environment)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert result.stderr.startswith(f'slurm.sbatch: {message}')
  assert not (tmp_path / 'begun').exists()


def test_an_own_share_of_a_single_element_stands():
  (words,) = dry_run('slurm.sbatch', *TOKENIZE, '--shard=5/8', **element(5, [5]))
  assert [word for word in words if 'shard' in word] == ['--shard=5/8']


def test_training_in_an_array_goes_on_in_turn_and_says_so():
  result = launch('slurm.sbatch', '--dry_run', *TRAIN, **element(1, [0, 1]))
  assert 'shard' not in result.stdout
  assert result.stderr == 'slurm.sbatch: train has no --shard: each element of the array runs the same training\n'


@pytest.mark.parametrize('own', [['--distributed=none'], ['--distributed', 'flags'], ['-distributed=none']])
def test_how_hosts_find_each_other_may_be_said(own):
  (words,) = dry_run('slurm.sbatch', *TRAIN, *own)
  assert [*words[-len(own) :]] == own
  assert '--distributed=auto' not in words


@pytest.mark.parametrize('arguments', [('h100', 'trian'), ('h10', 'train'), ('h100', 'train', '--dry_run')])
def test_what_every_host_would_refuse_is_refused_before_one_starts(tmp_path, arguments):
  path = fake(tmp_path, 'srun', f'touch {tmp_path}/begun')
  for flag in ((), ('--dry-run',)):
    result = launch('slurm.sbatch', *flag, *arguments, PATH=path)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
  assert not (tmp_path / 'begun').exists()


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
