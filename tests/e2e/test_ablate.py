"""A sweep of three variants and two seeds: what is trained, what is shared, what a kill costs, what the report says."""

import dataclasses
import json
import pathlib
import shutil
import signal
import sys

import numpy as np
import pytest

pytest.importorskip('sklearn')

from e2e import forks
from e2e.small_run import ROOT, STEPS, leaves, losses, recipe, write_start

import janus_jax
from janus_jax.ablation import compute, measuring, preparing, settings, sweep, tables
from janus_jax.ablation.preparing import SweepPaths
from janus_jax.ablation.settings import Ablation
from janus_jax.ablation.variants import PlannedRun, in_order
from janus_jax.conversion.orbax_files import read_orbax
from janus_jax.errors import InputError
from janus_jax.runs import setup
from janus_jax.runs.config import replaced
from janus_jax.training import loop

VARIANTS = {
  'base': {},
  'ratio': {'stages.stage3.ratio': (7, 3, 10)},
  # Room for an image, as is checked before, but for no prompt: that shows when records are read.
  'broken': {'sequence_length': 37},
}
BROKEN = 'source generation/'
# What differs from one time to the next.
CLOCKED = tables.CLOCKED


class KilledError(BaseException):
  """Not an Exception: nothing may catch it, as nothing catches kill -9."""


@pytest.fixture(scope='module')
def start(tmp_path_factory) -> str:
  return write_start(tmp_path_factory.mktemp('start'))


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> str:
  return str(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def ablation(start, data) -> Ablation:
  base = recipe(start, data)
  base.save_every = 1000  # At the ends of the stages alone.
  # Whole on each device: saving pieces of them would be a third of the time.
  base.mesh.data, base.mesh.fsdp = 8, 1
  base.optimizer.ema_decay = 0.5
  config = settings.ablation_config(base, VARIANTS, 'base')
  config.seeds = (0, 1)
  config.metrics = ('questions/all', 'generations/all', 'held_out/*')
  config.evaluation.update(questions_per_kind=1, images_per_group=1, held_out_batches=1)
  return settings.read_ablation(config)


def planned(ablation: Ablation) -> dict[tuple[str, int], PlannedRun]:
  runs = sweep.all_runs(ablation, ablation.configs)
  return {(run.variant, run.seed): run for run in runs}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
  """Gets an element for each step that is trained."""
  steps, jit = [], loop.jit_train_step

  def counting(mode):
    step = jit(mode)
    return lambda *arguments, **options: steps.append(1) or step(*arguments, **options)

  monkeypatch.setattr(loop, 'jit_train_step', counting)
  return steps


def results(workdir: pathlib.Path) -> dict[tuple[str, int], dict]:
  found = [json.loads(path.read_text()) for path in (workdir / 'results').iterdir()]
  return {(result['variant'], result['seed']): result for result in found}


@dataclasses.dataclass
class OneSeed:
  """What a sweep of seed 0 alone left: steps that were trained, when each result was written, the numbers."""

  steps: int
  written: dict[pathlib.Path, int]
  numbers: dict
  table: list[str]


@pytest.fixture(scope='module')
def sweeps(ablation, tmp_path_factory) -> tuple[pathlib.Path, int, OneSeed]:
  """Of one seed, then of both: the directory, how many steps were trained in all, what there was in between."""
  workdir = tmp_path_factory.mktemp('swept')
  with pytest.MonkeyPatch.context() as patch:
    steps = counted(patch)
    assert sweep.ablate(dataclasses.replace(ablation, seeds=(0,)), str(workdir))
    written = {path: path.stat().st_mtime_ns for path in (workdir / 'results').iterdir()}
    first = OneSeed(len(steps), written, comparable(workdir), table(workdir))
    assert sweep.ablate(ablation, str(workdir))
  return workdir, len(steps), first


@pytest.fixture(scope='module')
def swept(sweeps) -> tuple[pathlib.Path, int]:
  """The directory, and how many steps were trained."""
  return sweeps[:2]


def test_what_variants_share_is_trained_once(swept, ablation):
  workdir, steps = swept
  # Per seed three stages and the third one of the other variant. The broken one does not get to train.
  assert steps == 2 * (3 * STEPS + STEPS)
  found, runs = results(workdir), planned(ablation)
  for seed in (0, 1):
    assert found['base', seed]['forked'] is None
    assert found['ratio', seed]['forked'] == {'run': runs['base', seed].name, 'step': 2 * STEPS}
  # Pictures are rendered and encoded once per seed's world; no stage generates digits.
  assert len(list((workdir / 'codes').rglob('*.npy'))) == 4


def test_a_forked_run_is_the_run_trained_whole(swept, ablation, tmp_path):
  run = planned(ablation)['ratio', 1]
  forked = swept[0] / 'runs' / run.name
  params = leaves(setup.train(preparing.runnable(SweepPaths(str(swept[0])), run), str(tmp_path)))
  assert losses(forked) == losses(tmp_path)
  for path, leaf in leaves(janus_jax.load(str(forked)).params).items():
    np.testing.assert_array_equal(leaf, params[path], err_msg=path)
  for step in (STEPS, 2 * STEPS, 3 * STEPS):
    ours, whole = (directory / 'checkpoints' / str(step) for directory in (forked, tmp_path))
    # Moments, and where the data stands.
    arrays = read_orbax(str(whole / 'train'))
    assert len(arrays) > 20
    for path, leaf in read_orbax(str(ours / 'train')).items():
      np.testing.assert_array_equal(leaf[...], arrays[path][...], err_msg=f'{step} {path}')
    for file in (whole / 'data').glob('process_*.json'):
      assert json.loads((ours / 'data' / file.name).read_text()) == json.loads(file.read_text())


def test_a_variant_that_fails_is_shown_as_failed(swept):
  workdir, _ = swept
  record = results(workdir)['broken', 0]
  assert record['status'] == 'failed'
  assert record['reason'].startswith(BROKEN)
  table = (workdir / 'table.md').read_text().splitlines()
  assert table[0] == '| | base (baseline) | ratio | broken |'
  assert all(line.endswith('| failed |') for line in table[2:] if line.startswith('|'))
  assert any(line.startswith(f'- broken: failed: seed 0: {BROKEN}') for line in table)
  assert 'class="failed">failed</td>' in (workdir / 'report.html').read_text()


def test_numbers_are_those_of_the_runs(swept):
  workdir, _ = swept
  found = results(workdir)
  line = next(line for line in (workdir / 'results.csv').read_text().splitlines() if 'ratio,done,held_out/text' in line)
  *_, first, second = line.split(',')
  assert [float(first), float(second)] == [found['ratio', seed]['metrics']['held_out/text'] for seed in (0, 1)]
  scores = json.loads((workdir / 'scores' / planned_name(workdir, 'base', 0) / 'scores.json').read_text())
  right = [sum(score[part] for score in scores['questions']) for part in ('right', 'total')]
  assert found['base', 0]['metrics']['questions/all'] == 100 * right[0] / right[1]
  assert len(found['base', 0]['stages']) == 3
  # What they share was measured alike.
  for stage in (0, 1):
    assert found['base', 0]['stages'][stage]['held_out'] == found['ratio', 0]['stages'][stage]['held_out']
    assert found['base', 0]['stages'][stage]['tokens'] == found['ratio', 0]['stages'][stage]['tokens']


def test_the_price_of_a_step_is_what_it_is_measured_to_cost(swept, ablation, monkeypatch):
  workdir, run = swept[0], planned(ablation)['base', 0]
  stages = results(workdir)['base', 0]['stages']
  # The very batches of Stage I; later stages begin with other ones.
  monkeypatch.setattr(compute, 'BATCHES', STEPS)
  prices = compute.step_prices(preparing.runnable(SweepPaths(str(workdir)), run), str(workdir / 'data'))
  assert STEPS * prices['stage1'] == pytest.approx(stages[0]['flops'])
  for name, stage in zip(('stage2', 'stage3'), stages[1:]):
    assert STEPS * prices[name] == pytest.approx(stage['flops'], rel=0.2)


def test_of_a_run_that_averages_the_averages_are_measured(swept, ablation, monkeypatch):
  workdir, run = swept[0], planned(ablation)['base', 0]
  scores = json.loads((workdir / 'scores' / run.name / 'scores.json').read_text())
  assert scores['checkpoint'] == f'{workdir / "runs" / run.name}@ema'
  runnable = preparing.runnable(SweepPaths(str(workdir)), run)
  measure = lambda: measuring._held_out_losses(str(workdir / 'runs' / run.name), run, runnable, 1)  # noqa: E731
  found = measure()
  assert found == [stage['held_out'] for stage in results(workdir)['base', 0]['stages']]
  monkeypatch.setattr(measuring, '_is_averaged', lambda run: False)
  for averaged, plain in zip(found, measure(), strict=True):
    assert averaged != pytest.approx(plain, rel=1e-4)


def planned_name(workdir: pathlib.Path, variant: str, seed: int) -> str:
  return next(path.name for path in (workdir / 'runs').iterdir() if path.name.startswith(f'{variant}-seed{seed}-'))


def test_the_report_stands_alone(swept):
  workdir, _ = swept
  page = (workdir / 'report.html').read_text()
  assert '//' not in page.split('<style>')[0]
  for word in ('http:', 'https:', '<script', '<link', '@import', 'url('):
    assert word not in page
  assert page.count('data:image/svg+xml') == len(list((workdir / 'plots').glob('*.png'))) - 1  # generations.png
  assert 'stages.stage3.ratio: [5, 1, 4] -&gt; [7, 3, 10]' in page


def comparable(workdir: pathlib.Path) -> dict:
  found = {}
  for key, result in results(workdir).items():
    metrics = {name: value for name, value in result.get('metrics', {}).items() if name not in CLOCKED}
    found[key] = result['status'], result.get('reason'), metrics
  return found


def table(workdir: pathlib.Path) -> list[str]:
  lines = (workdir / 'table.md').read_text().splitlines()
  return [line for line in lines if not line.startswith(tuple(f'| {name} ' for name in CLOCKED))]


def take_codes(source: pathlib.Path, target: pathlib.Path) -> None:
  """Encoding compiles for as long as all of a run takes."""
  shutil.copytree(source / 'codes', target / 'codes')


def test_a_sweep_that_is_killed_again_and_again_gives_the_same_table(sweeps, ablation, tmp_path, monkeypatch):
  """In Stage I, while forking, in a fork's Stage III, and after training, before the result is written."""
  swept, _, uninterrupted = sweeps
  take_codes(swept, tmp_path)
  configs = {name: replaced(config, {'save_every': 2}) for name, config in ablation.configs.items()}
  ablation = dataclasses.replace(ablation, seeds=(0,), configs=configs)

  def killed_after(calls: int, module: object, name: str) -> None:
    function, seen = getattr(module, name), []

    def dying(*arguments, **options):
      seen.append(1)
      if len(seen) > calls:
        raise KilledError
      return function(*arguments, **options)

    with monkeypatch.context() as patch:
      patch.setattr(module, name, dying)
      with pytest.raises(KilledError):
        sweep.ablate(ablation, str(tmp_path))

  killed_after(2, loop.Progress, 'update')
  assert list(results(tmp_path)) == [('base', 0)]
  # Of the copies that forks make: the checkpoints of stages I and II, the codes.
  killed_after(1, preparing.shutil, 'copytree')
  assert not [path for path in (tmp_path / 'runs').iterdir() if path.name.startswith('ratio')]
  killed_after(1, loop.Progress, 'update')
  assert results(tmp_path)['ratio', 0]['status'] == 'started'
  killed_after(0, sweep.measuring, 'measure_run')
  assert sweep.ablate(ablation, str(tmp_path))
  assert comparable(tmp_path) == uninterrupted.numbers
  assert table(tmp_path) == uninterrupted.table
  assert not list((tmp_path / 'runs').glob('.*'))


def test_sigterm_ends_the_sweep(swept, ablation, tmp_path, monkeypatch):
  take_codes(swept[0], tmp_path)
  with monkeypatch.context() as patch:
    update = loop.Progress.update

    def signalled(self, *arguments) -> None:
      signal.raise_signal(signal.SIGTERM)
      update(self, *arguments)

    patch.setattr(loop.Progress, 'update', signalled)
    assert not sweep.ablate(ablation, str(tmp_path))
  assert [(key, result['status']) for key, result in results(tmp_path).items()] == [(('base', 0), 'started')]
  assert 'not run yet' in (tmp_path / 'table.md').read_text()


def test_another_seed_runs_that_seed_alone_and_another_variant_that_variant(sweeps, ablation, tmp_path, monkeypatch):
  swept, trained, first = sweeps
  assert first.steps == trained - first.steps == 3 * STEPS + STEPS
  assert {path: path.stat().st_mtime_ns for path in first.written} == first.written
  assert {seed for _, seed in first.numbers} == {0}
  assert 'seed 1' in (swept / 'results.csv').read_text().splitlines()[0]
  workdir = tmp_path / 'copy'
  shutil.copytree(swept, workdir)
  before = {path: path.stat().st_mtime_ns for path in (workdir / 'results').iterdir()}
  steps = counted(monkeypatch)
  # Drawn otherwise, trained alike.
  overrides = {'sampling.cfg_weight': 1.0}
  variants = {**VARIANTS, 'unguided': overrides}
  configs = {**ablation.configs, 'unguided': replaced(ablation.base, overrides)}
  assert sweep.ablate(dataclasses.replace(ablation, seeds=(0,), variants=variants, configs=configs), str(workdir))
  assert len(steps) == 0
  assert results(workdir)['unguided', 0]['forked']['step'] == 3 * STEPS
  assert ('unguided', 1) not in results(workdir)
  header, *_ = (workdir / 'results.csv').read_text().splitlines()
  assert header.endswith(',seed 0')  # Of what the directory holds, what was asked for.
  assert {path: path.stat().st_mtime_ns for path in before} == before


def test_shards_share_the_runs(ablation):
  runs = in_order(planned(ablation).values())
  parts = [sweep.of_shard(runs, (index, 4)) for index in range(4)]
  assert [run for part in parts for run in part] == runs


def test_a_wrong_variant_is_refused(start, data):
  config = settings.ablation_config(recipe(start, data), {'base': {}, 'b': {'stages.stage1.stepz': 1}}, 'base')
  with pytest.raises(InputError, match=r'^variant b: stages\.stage1\.stepz is unknown: did you mean steps\?$'):
    settings.read_ablation(config)


def test_one_line_for_a_wrong_command(tmp_path):
  path = ROOT / 'configs' / 'ablations' / 'stage3_ratio.py'
  command = [sys.executable, '-m', 'janus_jax.ablate', f'--config={path}:0.1', f'--workdir={tmp_path}', '--shard=3/2']
  result = forks.run(command, cwd=ROOT, timeout=120)
  assert result.returncode == 1, result.stderr
  assert result.stderr == "error: shard is '3/2': expected i/n, the hosts being 0/n to n-1/n\n"
