"""A whole run through three stages: what it leaves, and that a run cut short and taken up again is the same run."""

import base64
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('sklearn')

from e2e import forks, small_run
from e2e.small_run import ROOT, STEPS, leaves, losses
from ml_collections import ConfigDict

import janus_jax
from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.conversion.workdir import read_params
from janus_jax.errors import InputError
from janus_jax.inference.requests import ImageSettings
from janus_jax.runs import datasets, setup, workdirs
from janus_jax.runs.callbacks import HeldOutLoss, Sampler
from janus_jax.runs.config import parse_config
from janus_jax.runs.loading import load_tokenizer
from janus_jax.toy import dataset
from janus_jax.training import loop
from janus_jax.training.metrics import MetricWriter
from janus_jax.training.optimizer import learning_rates
from janus_jax.training.ownership import owned
from janus_jax.training.step import jit_train_step


def recipe(start: str, data: str) -> ConfigDict:
  config = small_run.recipe(start, data, ('shapes', 'digits'))
  config.save_every = STEPS
  # No conversation is as long as a prompt with its image: of rows equally full, any may be packed.
  config.data.toy_questions = 1
  return config


@pytest.fixture(scope='module')
def uninterrupted(start, data, tmp_path_factory) -> tuple[pathlib.Path, dict]:
  workdir = tmp_path_factory.mktemp('uninterrupted')
  return workdir, leaves(setup.train(parse_config(recipe(start, data)), str(workdir)))


def take_codes(source: pathlib.Path, target: pathlib.Path) -> None:
  """Of the same images: encoding them anew would be a quarter of a run."""
  shutil.copytree(source / 'codes', target / 'codes')


def test_a_run_goes_through_its_stages(uninterrupted, start):
  workdir, params = uninterrupted
  assert [line[:2] for line in losses(workdir)] == [(s + 1, f'stage{s // STEPS + 1}') for s in range(3 * STEPS)]
  before = leaves(janus_jax.load(start).params)
  changed = {path.split('/')[0] for path in params if (params[path] != before[path]).any()}
  assert changed == {'vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head', 'language_model', 'vision_encoder'}
  held_out = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines() if 'held_out' in line]
  assert [line['step'] for line in held_out] == [STEPS, 2 * STEPS, 3 * STEPS]


def test_rates_follow_each_stage_and_sources_go_on_over_boundaries(uninterrupted, start, data):
  lines = map(json.loads, (uninterrupted[0] / 'metrics.jsonl').read_text().splitlines())
  lines = [line for line in lines if 'loss' in line]
  rates = [
    learning_rates(stage.schedule, stage.learning_rate, stage.warmup_steps, stage.steps, stage.final_fraction)
    for stage in parse_config(recipe(start, data)).run_stages
  ]
  np.testing.assert_allclose([line['learning_rate'] for line in lines], np.concatenate(rates), rtol=1e-6)
  # Examples of each source over the whole run: a stage that began anew would show earlier ones again.
  for source in ('understanding/shapes', 'generation/digits'):
    counts = [line[f'examples/{source}'] for line in lines]
    assert all(later >= earlier for earlier, later in itertools.pairwise(counts)), (source, counts)
    assert len(set(counts)) > len(counts) / 2, (source, counts)


@pytest.fixture(scope='module')
def from_pixels(start, data, tmp_path_factory) -> pathlib.Path:
  """Stage I, whose step encodes images to generate, scored on a benchmark along the way."""
  workdir, config = tmp_path_factory.mktemp('from_pixels'), recipe(start, data)
  config.data.precompute_codes, config.run, config.held_out_batches = False, ('stage1',), 0
  # As many as a row holds: codes need no room, which decides what is packed.
  config.stages.stage1.generation_images_per_row = 3
  write_pope(workdir / 'benchmarks.d')
  config.evaluation.update({'benchmarks': ('pope',), 'data': str(workdir / 'benchmarks.d'), 'every': 2, 'rows': 5})
  config.evaluation.max_new_tokens = 4
  setup.train(parse_config(config), str(workdir))
  return workdir


def write_pope(directory: pathlib.Path) -> None:
  """Ten questions about five images, in VLMEvalKit's format."""
  directory.mkdir()
  lines = ['index\timage\tquestion\tanswer\tcategory\timage_path']
  for i in range(10):
    buffer = io.BytesIO()
    Image.new('RGB', (24, 24), (50 * (i // 2), 0, 0)).save(buffer, 'PNG')
    encoded = base64.b64encode(buffer.getvalue()).decode()
    lines.append(f'{i}\t{encoded}\tIs there a square?\t{("Yes", "No")[i % 2]}\trandom\t{i // 2}.png')
  (directory / 'POPE.tsv').write_text('\n'.join(lines))


def test_benchmarks_are_scored_along_the_way(from_pixels):
  lines = map(json.loads, (from_pixels / 'metrics.jsonl').read_text().splitlines())
  figures = [(line['step'], line['benchmarks/pope']) for line in lines if 'benchmarks/pope' in line]
  assert [step for step, _ in figures] == [2, STEPS]  # Every second one, and the last of the stage.
  directory = from_pixels / 'benchmarks' / f'{STEPS:08}'
  rows = list(map(json.loads, (directory / 'pope' / 'rows.jsonl').read_text().splitlines()))
  assert [row['index'] for row in rows] == ['0', '1', '4', '5']  # Whole images, from all over it.
  scores = json.loads((directory / 'pope' / 'scores.json').read_text())
  assert (scores['rows'], scores['missing_rows'], scores['headline']) == (4, 6, figures[-1][1])
  assert re.search(r'\(partial\).*POPE\.tsv \(other', (directory / 'scores.md').read_text())
  # Answers are those of the weights that were saved after the last step.
  janus = janus_jax.load(str(from_pixels))
  images = [[Image.new('RGB', (24, 24), (50 * (int(row['index']) // 2), 0, 0))] for row in rows]
  asked = ['Is there a square?\nAnswer the question using a single word or phrase.'] * len(rows)
  found = janus_jax.answer(janus, images, asked, max_new_tokens=4)
  assert [row['prediction'] for row in rows] == [answer.text.strip() for answer in found]


def test_pixels_train_as_their_codes_do(uninterrupted, from_pixels, start, data):
  """The recipe computes codes before the first step; here the step does."""
  config = recipe(start, data)
  world = dataset.name_of(datasets.read_world(parse_config(config), janus_jax.load(start).config))
  # Then the version of the images, and a digest of the VQ.
  stored = sorted(path.name.rsplit('-', 2)[0] for path in (uninterrupted[0] / 'codes').iterdir())
  pairs = ('digits', 'test'), ('digits', 'train'), ('shapes', 'drawn'), ('shapes', 'test')
  assert stored == [f'{name}-{split}-{world}' for name, split in pairs]
  assert not (from_pixels / 'codes').exists()
  np.testing.assert_allclose(
    [line[2:] for line in losses(from_pixels)], [line[2:] for line in losses(uninterrupted[0])[:STEPS]], rtol=1e-5
  )


def test_metrics_are_read_after_the_next_step_is_dispatched(uninterrupted, start, data, tmp_path, monkeypatch):
  take_codes(uninterrupted[0], tmp_path)
  config = recipe(start, data)
  config.run, config.save_every, config.held_out_batches = ('stage1',), 1000, 0
  config.stages.stage1.batch_size, config.stages.stage1.accumulation = 16, 2
  events, microbatches = [], set()

  def dispatched(mode):
    step = jit_train_step(mode)

    def take_step(*arguments, **options):
      events.append('dispatch')
      microbatches.add(options['config'].accumulation)
      return step(*arguments, **options)

    return take_step

  line = loop.Window.line
  monkeypatch.setattr(loop, 'jit_train_step', dispatched)
  monkeypatch.setattr(loop.Window, 'line', lambda *arguments: events.append('read') or line(*arguments))
  setup.train(parse_config(config), str(tmp_path))
  assert events == ['dispatch', 'dispatch', 'read', 'dispatch', 'read', 'read']
  assert [line[0] for line in losses(tmp_path)] == [1, 2, 3]
  assert microbatches == {2}  # The stage's own; the run has one.


def test_pictures_and_answers_are_sampled(uninterrupted, start, data, tmp_path):
  """The parameters of a run through the callback itself; the runs above do without, it compiles for long."""
  janus = janus_jax.load(str(uninterrupted[0]))
  config, params = janus.config, janus.params
  take_codes(uninterrupted[0], tmp_path)
  data = datasets.open_data(parse_config(recipe(start, data)), config, str(tmp_path), lambda: open_checkpoint(start), 2)
  settings = ImageSettings(cfg_weight=1.5, temperature=0.8, top_k=3)
  with MetricWriter(str(tmp_path)) as writer:
    Sampler(janus, data.samples, settings)(7, 'stage1', params, writer)
  samples = tmp_path / 'samples' / '00000007'
  names = sorted(path.name for path in samples.iterdir())
  assert names[0] == 'answers.txt'
  for index, (name, prompt) in enumerate(zip(names[1:], data.samples.prompts, strict=True)):
    assert re.fullmatch(rf'generated_{index}_(\w+)\.png', name)[1].split('_') == re.findall(r'\w+', prompt)
    assert Image.open(samples / name).size == (24, 24)
  assert len((samples / 'answers.txt').read_text().splitlines()) == 2


def test_the_workdir_is_a_checkpoint(uninterrupted):
  workdir, params = uninterrupted
  janus = janus_jax.load(str(workdir))
  config, loaded = janus.config, janus.params
  assert config.vq.codebook_size == 16
  for path, leaf in leaves(loaded).items():
    np.testing.assert_array_equal(leaf, params[path])


def test_averages_are_evaluated_and_exported(uninterrupted, start, data, tmp_path, monkeypatch):
  """WORKDIR@ema against an average in numpy of what each step left."""
  decay, kept = 0.75, {}
  config = recipe(start, data)
  config.run, config.optimizer.ema_decay, config.eval_every = ('stage1',), decay, 1
  monkeypatch.setattr(
    HeldOutLoss, '__call__', lambda self, step, stage, params, writer: kept.update({step: leaves(params)})
  )
  rests, rest = [], loop.Watchdog.rest
  monkeypatch.setattr(loop.Watchdog, 'rest', lambda self: rests.append(len(kept)) or rest(self))
  config.save_every = config.keep_every = 1
  workdir = tmp_path / 'run'
  take_codes(uninterrupted[0], workdir)
  setup.train(parse_config(config), str(workdir))
  # Before each evaluation, which is no step: it was reported as one that hangs.
  assert rests == [0, 0, *range(STEPS)]
  first = leaves(janus_jax.load(start).params)
  average = first
  for step in range(1, STEPS + 1):
    stepped = {path: leaf[...] for path, leaf in read_params(str(workdir / 'checkpoints' / str(step))).items()}
    average = {path: decay * mean + (1 - decay) * stepped[path] for path, mean in average.items()}
    for path, leaf in average.items():
      np.testing.assert_allclose(kept[step][path], leaf, rtol=1e-5, atol=1e-7, err_msg=path)
  # The adaptors alone train, so the rest is as it was; and the average is far from where the run ended.
  changed = {path.split('/')[0] for path in first if (kept[STEPS][path] != first[path]).any()}
  assert changed == {'vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head'}
  assert max(np.abs(average[path] - stepped[path]).max() for path in average) > 1e-3
  flags = [f'--input={workdir}@ema', f'--output={tmp_path / "average"}', '--format=orbax']
  command = [sys.executable, '-m', 'janus_jax.convert', *flags]
  result = forks.run(command, cwd=ROOT, timeout=120)
  assert result.returncode == 0, result.stderr
  # Whatever else takes a checkpoint takes this one.
  assert load_tokenizer(f'{workdir}@ema')[0].special == load_tokenizer(start)[0].special
  assert workdirs.read_sampling(f'{workdir}@ema')['cfg_weight'] == config.sampling.cfg_weight
  config.init_from = f'{workdir}@ema'
  assert setup.open_start(parse_config(config)).params.keys() == first.keys()
  exported = leaves(janus_jax.load(str(tmp_path / 'average')).params)
  for path, leaf in leaves(janus_jax.load(f'{workdir}@ema').params).items():
    np.testing.assert_array_equal(leaf, kept[STEPS][path], err_msg=path)
    np.testing.assert_array_equal(exported[path], leaf, err_msg=path)


def test_a_refused_force_leaves_the_workdir_as_it_was(uninterrupted, start, data):
  workdir = uninterrupted[0]
  before = {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}
  config = recipe(start, data)
  for run, steps, reason in (
    (('stage1',), STEPS, r'of stage 3 of another schedule'),
    (('stage1', 'stage2', 'stage3'), STEPS - 1, r'of step 9 in stage 3, and stage3 has steps 7 to 8 here'),
  ):
    config.run, config.stages.stage3.steps = run, steps
    with pytest.raises(InputError, match=rf'{reason}: expected .*--config\.init_from={workdir} --workdir=NEW$'):
      setup.train(parse_config(config), str(workdir), force=True)
    assert {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()} == before


def test_a_workdir_in_use_is_left_alone(start, data, tmp_path):
  """Not even what looks like the remains of a save that was cut short is removed: it may be under way."""
  saving = tmp_path / 'checkpoints' / '7.orbax-checkpoint-tmp-1'
  saving.mkdir(parents=True)
  with owned(str(tmp_path)), pytest.raises(InputError, match=rf'^{tmp_path}: in use by pid {os.getpid()} on host'):
    setup.train(parse_config(recipe(start, data)), str(tmp_path))
  assert saving.exists()


class KilledError(Exception):
  pass


def test_a_run_cut_short_and_taken_up_again_and_again_is_bit_identical(
  uninterrupted, start, data, tmp_path, monkeypatch, caplog, capsys
):
  """Killed at a boundary and within a stage, ended by Ctrl-C in the third stage, and taken up after each."""
  workdir, expected = uninterrupted
  take_codes(workdir, tmp_path)
  config, written = recipe(start, data), losses(workdir)
  config.save_every = 2

  def dies_after(steps: int) -> None:
    calls = []

    def cut_short(self, label: str, steps_done: int = 1) -> None:
      calls.append(label)
      if len(calls) > steps:
        raise KilledError

    with monkeypatch.context() as patch:
      patch.setattr(loop.Progress, 'update', cut_short)
      with pytest.raises(KilledError):
        setup.train(parse_config(config), str(tmp_path))

  def saved() -> int:
    return max(int(path.name) for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdecimal())

  dies_after(STEPS)
  assert saved() == STEPS  # The last one of Stage I.
  dies_after(2)
  assert saved() == STEPS + 1  # The step after it is lost.

  interrupted = []

  def interrupt(self, label: str, steps: int = 1) -> None:
    interrupted.append(label)
    if label == 'stage3':
      signal.raise_signal(signal.SIGINT)

  with monkeypatch.context() as patch:
    patch.setattr(loop.Progress, 'update', interrupt)
    setup.train(parse_config(config), str(tmp_path))
  assert interrupted == ['stage2', 'stage2', 'stage3']
  assert saved() == 2 * STEPS + 1  # By the signal.
  assert losses(tmp_path) == written[: 2 * STEPS + 1]
  params = leaves(setup.train(parse_config(config), str(tmp_path)))
  assert losses(tmp_path) == written
  for path, leaf in expected.items():
    np.testing.assert_array_equal(params[path], leaf, err_msg=path)
  caplog.clear()
  caplog.set_level('INFO')
  setup.train(parse_config(config), str(tmp_path))
  assert f'already complete: all {3 * STEPS} steps are in {tmp_path}' in capsys.readouterr().err
  assert f'complete: {3 * STEPS} steps in {tmp_path}' in caplog.messages[-1]
  assert losses(tmp_path) == written


def test_another_mesh_takes_a_run_up(uninterrupted, start, data, tmp_path):
  shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
  for path in (tmp_path / 'checkpoints').iterdir():
    if path.name != str(STEPS):
      shutil.rmtree(path)
  config = recipe(start, data)
  config.run = ('stage1', 'stage2')
  config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, 2, 1
  with pytest.raises(InputError, match=r'mesh sizes .* need 2 devices: there are 8'):
    setup.train(parse_config(config), str(tmp_path), force=True)
  config.mesh.data, config.mesh.fsdp = 8, 1
  setup.train(parse_config(config), str(tmp_path), force=True)
  expected = losses(uninterrupted[0])
  assert losses(tmp_path)[:STEPS] == expected[:STEPS]
  assert losses(tmp_path)[STEPS:] != expected[STEPS : 2 * STEPS]  # Trained here, where sums are of another order.
  for ours, theirs in zip(losses(tmp_path), expected[: 2 * STEPS], strict=True):
    assert ours[:2] == theirs[:2]
    np.testing.assert_allclose(ours[2:], theirs[2:], rtol=1e-3)
