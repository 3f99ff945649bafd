"""Parts that work, fail, are killed, hang or do not fit: the table is right, and figures are kept."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from e2e import forks

from janus_jax.benchmarking.machine import Machine
from janus_jax.benchmarking.measured_table import table_to_markdown, table_to_text
from janus_jax.benchmarking.measuring import measure
from janus_jax.benchmarking.parts import Part, parts_for
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS
from janus_jax.runs.recipes import read_recipe
from janus_jax.sharding.accelerators import GIB

ROOT = pathlib.Path(__file__).parents[2]
MACHINE = Machine('cpu', 'cpu', 1, 8 * GIB, 'jax 1.2.3', '')
H100 = Machine('gpu', 'NVIDIA H100 80GB HBM3', 1, 80 * GIB, 'driver 575, jax 1.2.3', '')
ANSWERS = {
  'mode': 'understand',
  'answers': [{'batch': 1, 'seconds_to_first_token': {'median': 0.25}, 'tokens_per_second_after_first': 123.4}],
}
SAYS = f'print({json.dumps(ANSWERS)!r})'


@pytest.fixture(autouse=True)
def idle(monkeypatch) -> None:
  monkeypatch.setattr(os, 'getloadavg', lambda: (0.0, 0.0, 0.0))


def python(code: str) -> tuple[str, ...]:
  return sys.executable, '-c', code


def part(*codes: str, name: str = 'answers', **fields) -> Part:
  return Part(
    **{'name': name, 'title': name, 'commands': tuple(map(python, codes)), 'seconds': 0.1, 'limit': 60} | fields
  )


def table(out: pathlib.Path) -> str:
  return table_to_text(json.loads((out / 'figures.json').read_text()))


def test_whatever_fails_says_why_and_the_rest_goes_on(tmp_path):
  full = 'import sys; sys.exit("error: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")'
  parts = [
    part('import sys; print("error: no transformers", file=sys.stderr); sys.exit(1)', name='peer'),
    part('import os; os.kill(os.getpid(), 9)', name='killed'),
    part('import time; time.sleep(60)', name='hangs', limit=1),
    part('print("no figures")', name='silent'),
    part(full, full, name='full'),
    part(full, SAYS, name='smaller'),
    part(SAYS, name='large', memory=9 * GIB),
    part(SAYS, name='long', seconds=1e6),
    part(SAYS, name='fine'),
  ]
  results = measure(parts, MACHINE, 5, tmp_path)
  assert {result.part: (result.status, result.error) for result in results} == {
    'peer': ('failed', 'no transformers'),
    'killed': ('failed', 'killed by signal 9 (SIGKILL)'),
    'hangs': ('failed', 'ended after 1 s'),
    'silent': ('failed', 'printed no figures'),
    'full': ('failed', 'RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes'),
    'smaller': ('measured', ''),
    'large': ('left out', 'needs 9 GiB of memory: there are 8'),
    'long': ('left out', results[-2].error),
    'fine': ('measured', ''),
  }
  assert results[-2].error.startswith('takes about 1000000 s: 29')
  assert [result.figures for result in results if result.status == 'measured'] == [ANSWERS, ANSWERS]
  lines = table(tmp_path).splitlines()
  assert lines[0].startswith('cpu, 8 GiB, jax 1.2.3, 20')
  assert '  peer                  failed: no transformers' in lines
  assert '  fine, 1 at a time     first token after 0.25 s, then 123.4 tokens/s' in lines
  markdown = (tmp_path / 'table.md').read_text()
  assert '| killed | failed: killed by signal 9 (SIGKILL) |' in markdown
  assert markdown.count('\npython -c ') == len(parts)
  assert str(ROOT) not in markdown
  assert sys.executable not in markdown


def test_parts_measured_earlier_on_this_machine_are_kept(tmp_path):
  measure([part(SAYS, name='first'), part('1/0', name='second')], MACHINE, 5, tmp_path)
  measure([part(SAYS, name='second')], MACHINE, 5, tmp_path)
  assert 'failed' not in table(tmp_path)
  assert [line.split(',')[0].strip() for line in table(tmp_path).splitlines()[1:]] == [
    'first',
    'second',
  ]
  measure([part(SAYS, name='second')], H100, 5, tmp_path)
  assert [line.split(',')[0].strip() for line in table(tmp_path).splitlines()[1:]] == ['second']


def test_what_cannot_be_kept_is_not_measured(tmp_path):
  (tmp_path / 'file').write_text('')
  ran = tmp_path / 'ran'
  touching = part(f'open({str(ran)!r}, "w"); {SAYS}')
  with pytest.raises(FileExistsError):
    measure([touching], MACHINE, 5, tmp_path / 'file')
  with pytest.raises(FileNotFoundError):
    measure([touching], MACHINE, 5, pathlib.Path('/proc/measured'))
  (tmp_path / 'figures.json').write_text('[')
  with pytest.raises(InputError, match=r'figures\.json: expected what an earlier call has written'):
    measure([touching], MACHINE, 5, tmp_path)
  assert not ran.exists()


def test_ctrl_c_keeps_figures_and_ends_what_runs(tmp_path):
  pid = tmp_path / 'pid'
  waiting = f'import os, time; open({str(pid)!r}, "w").write(str(os.getpid())); time.sleep(300)'
  code = f"""
import pathlib, sys
sys.path[:0] = [{str(ROOT / 'tests')!r}, {str(ROOT)!r}]
from benchmarking.test_measuring import MACHINE, SAYS, part
from janus_jax.benchmarking.measuring import measure
parts = [part(SAYS, name='first'), part({waiting!r}, name='second')]
measure(parts, MACHINE, 5, pathlib.Path({str(tmp_path / 'out')!r}))
"""
  process = subprocess.Popen(python(code), stderr=subprocess.DEVNULL)
  end = time.monotonic() + 120
  while not pid.exists() or not pid.read_text():
    assert process.poll() is None
    assert time.monotonic() < end
    time.sleep(0.05)
  process.send_signal(signal.SIGINT)
  assert process.wait(60) != 0
  with pytest.raises(ProcessLookupError):
    os.kill(int(pid.read_text()), 0)
  assert table(tmp_path / 'out').splitlines()[1].startswith('  first')


def test_real_commands_give_a_table(tmp_path):
  """The smallest shapes, through benchmark's own processes."""
  recipe = tmp_path / 'small.py'
  text = (ROOT / 'configs/benchmarks/cpu.py').read_text()
  recipe.write_text(text.replace("'benchmark'", "'test_tiny'").replace('sequence_length = 640', 'sequence_length = 96'))

  def command(mode: str, *flags: str) -> tuple[str, ...]:
    return 'bash', 'launch/run.sh', 'cpu', 'benchmark', f'--config={recipe}', f'--mode={mode}', '--json', *flags

  training = command('train', '--stage=stage3', '--steps=1', '--repeats=1', f'--profile={tmp_path}/profiles/train')
  images = command('generate', '--batch=1,2', '--repeats=1', '--prompt_tokens=8')
  parts = [
    Part('train', 'Train', (training,), 1, 240),
    Part('images', 'Images', (images,), 1, 240),
    Part('wrong', 'Wrong', (command('generate', '--batch=x'),), 1, 240),
  ]
  os.environ['PYTHON'] = sys.executable
  try:
    results = measure(parts, MACHINE, 10, tmp_path / 'out')
  finally:
    del os.environ['PYTHON']
  assert [result.status for result in results] == ['measured', 'measured', 'failed'], results
  assert results[2].error == '--batch=x: expected positive integers, as in --batch=1,16'
  train, images = results[0].figures, results[1].figures
  lines = table(tmp_path / 'out').splitlines()
  step = f'{train["step_seconds"]["median"]:.3g} s a step, {train["tokens_per_second"]:,.0f} tokens/s'
  assert any(line.startswith('  Train  ') and step in line for line in lines)
  assert not any('MFU' in line for line in lines)  # The peak of a CPU is not known.
  pair = images['images'][1]
  assert any('2 at a time' in line and f'{2 * pair["seconds_per_image"]:.3g} s' in line for line in lines)
  markdown = (tmp_path / 'out' / 'table.md').read_text()
  longest = train['longest_operations']
  assert len(longest) == 10
  assert f'| {longest[0]["operation"]} | {longest[0]["seconds"]:.4g} | {longest[0]["calls"]} |' in markdown


def test_times_of_a_busy_cpu_are_marked(tmp_path, monkeypatch):
  for load in (0.1, 2.25):
    monkeypatch.setattr(os, 'getloadavg', lambda load=load: (load, 0, 0))
    measure([part(SAYS)], MACHINE, 5, tmp_path)
    assert ('answers, busy machine  load average 2.2 before: not to be compared' in table(tmp_path)) == (load > 1)


def test_what_a_check_found_wrong_stands_in_the_table():
  checks = [
    {'check': 'attention cudnn, images, dq', 'difference': 0.004, 'tolerance': 0.02, 'ok': True},
    {'check': 'attention cudnn, images, dk', 'difference': 0.3, 'tolerance': 0.02, 'ok': False},
    {'check': 'greedy codes', 'difference': None, 'tolerance': 0.0, 'ok': False, 'error': 'ValueError: no'},
  ]
  result = {
    'part': 'check',
    'title': 'Correct here',
    'command': 'x',
    'load': 3.0,
    'figures': {'mode': 'check', 'checks': checks},
  }
  machine = {'platform': 'gpu', 'kind': 'H', 'devices': 2, 'memory': GIB, 'versions': 'v', 'note': 'a card is not seen'}
  found = {
    'date': 'today',
    'machine': machine,
    'parts': [result | {'status': 'failed', 'error': 'wrong on this device'}],
  }
  assert table_to_text(found).splitlines() == [
    '2 x H, 1 GiB, v, today',
    'a card is not seen',
    '  Correct here                               failed: wrong on this device',
    '  Correct here                               1 of 3 as they should be',
    '  Correct here, attention cudnn              off by 30.00% at most (2% allowed)',
    '  Correct here, attention cudnn, images, dk  wrong: off by 0.3, 0.02 allowed',
    '  Correct here, greedy codes                 wrong: ValueError: no',
  ]
  assert '| Correct here, greedy codes | wrong: ValueError: no |' in table_to_markdown(found)


def test_whoever_starts_the_parts_leaves_the_device_to_them(tmp_path):
  """On an H100 it once held 59 of 80 GB. Here jax would fail on a platform that is not there."""
  code = """
from benchmarking.test_measuring import H100
from janus_jax import cli, measure
measure.read_machine = lambda: H100
cli.run(measure.main)
"""
  environment = os.environ | {'JAX_PLATFORMS': 'cuda', 'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests"}'}
  command = [*python(code), '--minutes=0.001', f'--out={tmp_path}']
  result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  assert result.stdout.count('left out: ') == len(parts_for(H100, ''))


@pytest.mark.parametrize('machine', [MACHINE, H100, Machine('tpu', 'TPU v5 lite', 8, 16 * GIB, 'v', '')])
def test_commands_of_parts_name_files_stages_and_fields_that_exist(machine):
  parts = parts_for(machine, 'out/profiles')
  assert len({part.name for part in parts}) == len(parts)
  assert all(part.seconds <= part.limit for part in parts)
  for command in (command for part in parts for command in part.commands):
    assert command[:4] == ('bash', 'launch/run.sh', machine.flags, 'benchmark')
    flags = dict(word.removeprefix('--').split('=', 1) for word in command[4:] if '=' in word)
    config = read_recipe(str(ROOT / flags['config']))
    assert 'stage' not in flags or flags['stage'] in config.stages
    fields = {name: value for name, value in flags.items() if name.startswith('config.')}
    for name in fields:
      functools.reduce(getattr, name.split('.')[1:], config)  # Raises for one that is not there.
    assert fields.get('config.pretraining.model', 'toy') in PRESETS
    rows = [int(value) for name, value in flags.items() if name.endswith('batch_size')]
    assert all(count % machine.devices == 0 for count in rows)
  assert any('--peer=transformers' in command for part in parts for command in part.commands) == (machine.devices == 1)


def test_the_script_says_what_is_wrong(tmp_path):
  def run(*flags: str, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {'PYTHON': sys.executable} | variables
    return subprocess.run(['bash', ROOT / 'launch/measure.sh', *flags], capture_output=True, text=True, env=environment)

  out = f'--out={tmp_path}/out'
  for flags, message in (
    (['--minutes=0', out], 'error: minutes is 0.0: expected a number above 0'),
    (['--parts=trian', out], "error: --parts names 'trian': expected some of check, train_stage2, "),
    (['--out=/proc/measured'], 'error: /proc/measured: No such file or directory'),
  ):
    result = forks.run([sys.executable, '-m', 'janus_jax.measure', *flags], cwd=ROOT)
    assert (result.returncode, result.stdout) == (1, '')
    assert result.stderr.splitlines()[-1].startswith(message)
  assert not (tmp_path / 'out').exists()
  assert 'nowhere has no jax: expected .venv' in run(out, PYTHON='nowhere').stderr
  card = tmp_path / 'bin' / 'nvidia-smi'  # A card whose driver is too old for jax, or of which jax has no plugin.
  card.parent.mkdir()
  card.write_text('#!/bin/sh\necho 390.1\n')
  card.chmod(0o755)
  result = run('--minutes=0.01', out, PATH=f'{card.parent}:{os.environ["PATH"]}')
  assert result.returncode == 0, result.stderr
  assert '390.1 (driver 390.1) is here, but jax does not see it: no CUDA plugin of jax is installed' in result.stderr
  assert result.stdout.count('left out: takes about') == len(parts_for(MACHINE, '')) == 8
