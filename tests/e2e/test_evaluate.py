"""The evaluate and report commands as a person runs them, and the script that runs everything."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from e2e import forks

from janus_jax.conversion.checkpoint import Checkpoint, write_checkpoint
from janus_jax.conversion.lazy import from_numpy
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.inference.answering import Answer
from janus_jax.inference.generation import GeneratedImage
from janus_jax.inference.requests import LoadedJanus
from janus_jax.models.config import PRESETS
from janus_jax.models.initialization import initial_params
from janus_jax.reporting.image_grid import RIGHT, WRONG
from janus_jax.runs import workdirs
from janus_jax.runs.config import DataConfig
from janus_jax.toy import captions, dataset, digits, scenes, scoring, shapes, test_set, tokenizer_training
from janus_jax.toy.captions import Description
from janus_jax.toy.digit_judge import DigitJudge
from janus_jax.toy.shapes import Scene, World
from janus_jax.training.state import flatten

pytest.importorskip('sklearn')

ROOT = pathlib.Path(__file__).parents[2]
BASE = PRESETS['toy']
# The sizes that matter to the world, at the least depth.
CONFIG = dataclasses.replace(
  BASE,
  vision_encoder=dataclasses.replace(BASE.vision_encoder, width=16, mlp_dim=16, depth=1, num_heads=2),
  vq=dataclasses.replace(BASE.vq, base_channels=32),
  language_model=dataclasses.replace(
    BASE.language_model, width=32, mlp_dim=32, depth=1, num_heads=2, num_kv_heads=2, head_dim=16
  ),
)
WORLD = World()


def run(verb: str, *arguments: str) -> subprocess.CompletedProcess:
  command = [sys.executable, '-m', f'janus_jax.{verb}', *arguments]
  return forks.run(command, cwd=ROOT)


def write_random(directory: pathlib.Path, config=CONFIG) -> str:
  """An Orbax checkpoint of random weights, with a tokenizer of the toy world."""
  directory.mkdir()
  path = directory / 'tokenizer.json'
  tokenizer_training.train_tokenizer(
    tokenizer_training.toy_texts(WORLD, num_scenes=300), path, config.language_model.vocab_size
  )
  config = dataclasses.replace(config, image_token_id=Tokenizer(path).special.image_placeholder)
  params = flatten(jax.device_get(initial_params(config, 0)))
  arrays = {name: from_numpy(np.asarray(leaf), name) for name, leaf in params.items()}
  tokenizer_files = {'tokenizer.json': path.read_bytes()}
  write_checkpoint(Checkpoint(config, arrays, tokenizer_files, {}, ()), str(directory), 'orbax', lambda _: None)
  return str(directory)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  return write_random(tmp_path_factory.mktemp('evaluate') / 'checkpoint')


@pytest.fixture(scope='module')
def evaluated(checkpoint, tmp_path_factory):
  """The directory written and the process."""
  out = tmp_path_factory.mktemp('scores') / 'out'
  arguments = (f'--checkpoint={checkpoint}', f'--out={out}', '--questions_per_kind=2', '--images_per_group=1')
  return out, run('evaluate', *arguments, '--seed=5', '--json')


def test_what_the_command_writes(checkpoint, evaluated):
  out, process = evaluated
  assert process.returncode == 0, process.stderr
  found = json.loads((out / 'scores.json').read_text())
  printed = json.loads(process.stdout)
  assert printed == {key: value for key, value in found.items() if not key.endswith('_cases')}
  assert found['checkpoint'] == checkpoint
  settings = {
    'questions_per_kind': 2,
    'images_per_group': 1,
    'cfg_weight': 1.5,
    'temperature': 0.8,
    'top_k': 0,
    'seed': 5,
    'weights': 'full',
    'cache_dtype': 'float32',
  }
  assert found['settings'] == settings
  assert found['target_scores'][0]['total'] == 6
  cases = test_set.build_questions(WORLD, 2, seed=5)
  assert [(case['question'], tuple(case['expected'])) for case in found['question_cases']] == [
    (case.question, case.expected) for case in cases
  ]
  prompts = [case.prompt for case in test_set.build_prompts(WORLD, 1, seed=5)]
  assert [case['prompt'] for case in found['generation_cases']] == prompts
  for name, key in (('questions', 'question_cases'), ('generations', 'generation_cases')):
    assert sum(score['total'] for score in found[name]) == len(found[key])
    assert sum(score['right'] for score in found[name]) == sum(case['right'] for case in found[key])
  # Questions about one object: three about each of two images.
  # Ten prompts are for objects that are alike; two of them name a shape alone and leave three attributes open.
  assert (found['counting']['rows'], found['open_attributes']['rows']) == (10, 6)
  score = found['target_scores'][0]
  assert (score['total'], score['units']) == (6, 2)
  assert 0 <= score['interval'][0] <= score['percent'] <= score['interval'][1] <= 100
  text = (out / 'scores.txt').read_text()
  assert all(
    words in text
    for words in ('target scores', '[0, ', 'mean absolute error', "scored against another item's question or prompt")
  )


def test_images_belong_to_their_cases(evaluated):
  out, _ = evaluated
  found = json.loads((out / 'scores.json').read_text())
  with np.load(out / 'images.npz') as images:
    generated, asked = images['generations'], images['questions']
  cases = test_set.build_questions(WORLD, 2, seed=5)
  for written, case in zip(found['question_cases'], cases, strict=True):
    np.testing.assert_array_equal(asked[written['image']], case.image)
  verdicts = test_set.judge_images(WORLD, DigitJudge.fit(24), test_set.build_prompts(WORLD, 1, seed=5), generated)
  assert [(case['right'], case['reason']) for case in found['generation_cases']] == [
    (verdict.right, verdict.reason) for verdict in verdicts
  ]


def image_of(expected: Description | int, rng: np.random.Generator) -> np.ndarray:
  """An image that a perfect model generates."""
  if isinstance(expected, int):
    images, labels = digits.load_digits(24, 'train')
    return images[rng.choice(np.flatnonzero(labels == expected))]
  first = expected.parts[0]
  while True:
    layout = 'two' if len(expected.parts) == 2 else 'alike' if first.count > 1 else 'one'
    objects = scenes.sample_scene(WORLD, rng, layout).objects
    parts = expected.parts if layout == 'two' else [first] * len(objects)
    triple = objects[0].colour, objects[0].size
    changed = [
      dataclasses.replace(o, shape=p.shape, colour=p.colour or triple[0], size=p.size or triple[1])
      for o, p in zip(objects, parts)
    ]
    if expected in captions.scene_descriptions(Scene(tuple(changed))):
      return shapes.render_scene(WORLD, [Scene(tuple(changed))])[0]


@pytest.fixture(scope='module')
def perfect():
  """The scores of a model that is always right, one wrong answer and one wrong image excepted."""
  rng = np.random.default_rng(0)
  questions, prompts = test_set.build_questions(WORLD, 6), test_set.build_prompts(WORLD, 6)
  wrong_answer = next(i for i, case in enumerate(questions) if case.key == ('one', 'shape', 'new_scene'))
  wrong_image = next(i for i, case in enumerate(prompts) if case.key == ('colours', 'new_phrasing'))
  settings = []

  def answer(janus, images, asked, **options):
    assert asked == [case.question for case in questions]
    assert [np.asarray(image).tolist() for (image,) in images] == [case.image.tolist() for case in questions]
    texts = [f' {case.expected[-1].capitalize()}.' for case in questions]
    return [Answer('blob' if i == wrong_answer else text, []) for i, text in enumerate(texts)]

  def generate(janus, texts, how):
    settings.append((how.cfg_weight, how.temperature, how.top_k, how.seed, how.num_images))
    assert texts == [case.prompt for case in prompts]
    images = [image_of(case.expected, rng) for case in prompts]
    images[wrong_image][:] = shapes.GROUND
    return [[GeneratedImage(i, 0, np.zeros(36, np.int32), image)] for i, image in enumerate(images)]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(scoring, 'answer', answer)
    patch.setattr(scoring, 'generate_images', generate)
    options = {'questions_per_kind': 6, 'images_per_group': 6, 'cfg_weight': 2.0, 'temperature': 0.5, 'top_k': 7}
    found = scoring.score(LoadedJanus(CONFIG, {}), dataset.world_for(CONFIG, 0), **options)
  assert settings == [(2.0, 0.5, 7, 0, 1)]
  return found


def test_a_perfect_model_is_right_and_its_control_is_not(perfect):
  questions = {(*score.name, score.group): score for score in perfect.question_scores}
  generations = {(*score.name, score.group): score for score in perfect.generation_scores}
  missed = {('one', 'shape', 'new_scene'), ('colours', 'new_phrasing')}
  for key, score in {**questions, **generations}.items():
    # The judge of digits misreads about one scan in a hundred.
    assert score.right == 6 - (key in missed) or key[0] == 'digit', key
    assert score.total == 6
  assert sum(score.control for score in generations.values()) < 0.2 * len(perfect.prompts)
  counted = perfect.statistics['counting']['metrics']
  assert {number: found['Accuracy'] for number, found in counted['By number'].items() if number != '1'} == {
    '2': 100,
    '3': 100,
    '4': 100,
  }
  assert counted['By number']['1']['Bias'] == -1 / counted['By number']['1']['Images']  # The wrong image shows nothing.
  # Everything has one object here, whoever is asked: the control shows that the question is worth nothing.
  assert questions['one', 'count', 'new_scene'].control == 6
  assert questions['two', 'beside', 'new_scene'].control <= 2


def test_the_sheet_shows_right_images_in_green_beside_wrong_ones_in_red(perfect):
  sheet = scoring.generation_sheet(perfect)
  side = 24 * 3 + 2 * 3 + 4
  keys = list(dict.fromkeys(case.key for case in perfect.prompts))
  wrong = 260 + 6 * side + 2 * 4  # At most six are right and one is wrong.
  assert sheet.shape == (30 + len(keys) * side, wrong + side, 3)
  row = 30 + keys.index(('colours', 'new_phrasing')) * side
  frames = [tuple(sheet[row, left]) for left in (*(260 + column * side for column in range(6)), wrong)]
  assert frames == [*[RIGHT] * 5, (255, 255, 255), WRONG]
  first = keys.index(('colours', 'new_phrasing')) * 6  # This one is wrong.
  for left, number in ((260, first + 1), (wrong, first)):
    np.testing.assert_array_equal(sheet[row + 3 : row + 75 : 3, left + 3 : left + 75 : 3], perfect.images[number])


def test_the_config_of_a_run_decides_how_images_are_generated_and_what_the_world_is(tmp_path):
  data = {'toy_grid': 8, 'toy_sizes': 3, 'toy_mixture': [1.0, 0.0, 2.0]}  # From JSON, which has lists only.
  stored = {'sampling': {'cfg_weight': 3.0}, 'data': data, 'optimizer': {'b1': 0.5}}
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  # transformers calls its model config the same.
  assert workdirs.read_config(str(tmp_path)) == {}
  assert workdirs.read_sampling(str(tmp_path), scoring.SAMPLING) == scoring.SAMPLING
  (tmp_path / 'janus_config.json').touch()
  assert workdirs.read_config(f'{tmp_path}@ema') == stored
  assert workdirs.read_sampling(str(tmp_path), scoring.SAMPLING) == scoring.SAMPLING | {'cfg_weight': 3.0}
  world = dataset.world_for(CONFIG, 0, **DataConfig(**data).toy)
  assert world == World(grid=8, num_sizes=3, small=0.45, large=0.9, mixture=(1.0, 0.0, 2.0))
  assert len(test_set.build_prompts(world, 1)) == len(test_set.build_prompts(WORLD, 1))
  assert dataset.world_for(CONFIG, 0, **DataConfig().toy) == World()


@pytest.mark.parametrize(
  ('arguments', 'code', 'message'),
  [
    (['--checkpoint=/no/such/place'], 1, 'error: /no/such/place: no such directory'),
    (['--checkpoint=SOURCE', '--questions_per_kind=0'], 1, 'error: questions_per_kind is 0: expected 1 or more'),
    (['--checkpoint=SOURCE', '--out=/proc/janus'], 1, 'error: /proc/janus: No such file or directory'),
    (['--checkpoint=SOURCE', '--cfg_weight=-1'], 1, 'error: cfg_weight is -1.0: expected a number, 0 or more'),
  ],
)
def test_wrong_input_is_one_line_and_an_exit_code(checkpoint, arguments, code, message):
  result = run('evaluate', *(argument.replace('SOURCE', checkpoint) for argument in arguments))
  assert result.returncode == code
  assert result.stderr.startswith(message)
  assert len(result.stderr.splitlines()) == 1


def test_a_page_of_a_run(evaluated, tmp_path):
  out, _ = evaluated
  lines = [{'step': step, 'stage': 'stage1', 'time': 0.0, 'loss/text': 3.0 - step / 9} for step in (5, 10)]
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  (tmp_path / 'config.json').write_text('{"seed": 4321}')
  (tmp_path / 'janus_config.json').write_text('{}')
  page = tmp_path / 'report.html'
  arguments = (f'--workdir={tmp_path}', f'--scores={out}', f'--out={page}', '--path=export=/x', '--seconds=training=12')
  process = run('report', *arguments)
  assert process.returncode == 0, process.stderr
  text = page.read_text()
  assert [
    word
    for word in ('<td>4321</td>', '/x', 'data:image/svg+xml', 'questions about digits', '>12 s<')
    if word not in text
  ] == []
  process = run('report', f'--workdir={out}', f'--out={page}')
  assert (process.returncode, process.stderr.strip()) == (
    1,
    f'error: {out}/metrics.jsonl: no such file: expected a training workdir',
  )


STUB = """#!/bin/bash
echo "$@" >> "$LOG"
verb=${2#janus_jax.}
case $verb in
  pretrain) out=${4#--output=}; mkdir -p "$out"; touch "$out/janus_config.json" ;;
  train)
    [ "$FAIL" != yes ] || exit 1
    # Ctrl-C reaches the script too, and training ends as it does then: well.
    [ "$FAIL" != ctrl-c ] || kill -INT $PPID
    ;;
  evaluate) out=${4#--out=}; mkdir -p "$out"; echo THE TABLE > "$out/scores.txt"; echo printed ;;
esac
"""


def test_the_script_runs_every_part_and_can_be_called_again(tmp_path):
  (tmp_path / 'launch').mkdir()
  for name in ('quickstart.sh', 'usage.sh'):
    shutil.copy(ROOT / 'launch' / name, tmp_path / 'launch' / name)
  (tmp_path / 'launch' / 'venv.sh').write_text('make_venv() { .venv/bin/python -m pip install; }\n')
  python = tmp_path / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text(STUB)
  python.chmod(0o755)
  log = tmp_path / 'log'

  def call(fail: str, *arguments: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    log.write_text('')
    command = ['bash', str(tmp_path / 'launch' / 'quickstart.sh'), 'out put', *arguments]
    environment = {**os.environ, 'LOG': str(log), 'FAIL': fail}
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    return process, [line.split()[1].removeprefix('janus_jax.') for line in log.read_text().splitlines()]

  stopped, verbs = call('yes')
  assert stopped.returncode == 1
  assert verbs == ['pip', 'pretrain', 'train']
  stopped, verbs = call('ctrl-c')
  assert (stopped.returncode, stopped.stderr) == (130, 'quickstart.sh: stopped; the same command goes on\n')
  assert verbs == ['pip', 'train']
  assert not (tmp_path / 'out put' / 'seconds' / 'training').exists()
  finished, verbs = call('')
  assert finished.returncode == 0, finished.stderr
  assert verbs == ['pip', 'train', 'evaluate', 'convert', 'report']
  lines = finished.stdout.splitlines()
  assert 'THE TABLE' in lines
  assert 'printed' not in lines
  assert lines[-6] == f'report       {tmp_path}/out put/report.html'
  small, verbs = call('', '--recipe=small')
  assert (small.returncode, verbs[:3]) == (0, ['pip', 'train', 'evaluate'])
  said = log.read_text()
  assert '--config=configs/small.py' in said
  assert '--questions_per_kind=400 --images_per_group=400' in said
  assert 'tiny' not in said
  on_gpu, _ = call('', '--recipe=small', '--gpu')
  assert on_gpu.returncode == 0
  assert '--config=configs/small.py:gpu' in log.read_text()
  refused, _ = call('', '--gpu')
  assert (refused.returncode, refused.stderr.count('--gpu is for --recipe=small')) == (2, 1)
