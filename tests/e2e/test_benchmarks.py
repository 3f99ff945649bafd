"""`python -m janus_jax.evaluate --benchmarks`: a small checkpoint through all nine, from made-up files."""

import base64
import io
import json
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest
import small_checkpoint
from e2e import forks
from PIL import Image

from janus_jax.errors import InputError
from janus_jax.evaluation.questions import MME_TASKS, read_questions
from janus_jax.evaluation.runner import (
  CHUNK,
  Asked,
  Shard,
  answer_benchmark,
  ask_questions,
  chunks,
  read_answers,
  read_dpg_prompts,
  read_geneval_prompts,
  shard_of,
)
from janus_jax.inference import answering
from janus_jax.inference.requests import AnswerSettings, decoder_for
from janus_jax.runs.evaluating import check_questions
from janus_jax.runs.loading import load

ROOT = pathlib.Path(__file__).parents[2]
UNDERSTANDING = ('pope', 'mme', 'mmbench', 'seedbench', 'gqa', 'mmmu', 'mmvet')
pandas = pytest.importorskip('pandas')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  return small_checkpoint.write(tmp_path_factory.mktemp('benchmarks') / 'tiny')


def image(seed):
  buffer = io.BytesIO()
  Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, 'PNG')
  return base64.b64encode(buffer.getvalue()).decode()


def rows(count, **columns):
  """Two questions about each image."""
  found = []
  for i in range(count):
    row = {'index': i, 'image': image(i // 2) if i % 2 == 0 else str(i - 1), 'question': f'Is there a {i}?'}
    found.append({**row, **{name: value(i) if callable(value) else value for name, value in columns.items()}})
  return found


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  directory = tmp_path_factory.mktemp('data')
  yes_no = {'answer': lambda i: ('Yes', 'No')[i % 2]}
  options = {**{letter: f'option {letter}' for letter in 'ABCD'}, 'answer': 'B', 'category': 'c'}
  files = {
    'POPE': rows(6, **yes_no, category='random,popular'),
    'MME': rows(28, **yes_no, category=lambda i: MME_TASKS[i // 2], image_path=lambda i: f'{i // 2}.png'),
    'MMBench_DEV_EN': rows(4, **options, hint='', split='dev', **{'l2-category': 'logic_reasoning'}),
    'SEEDBench_IMG': rows(4, **options),
    'GQA_TestDev_Balanced': rows(4, answer='red'),
    'MMMU_DEV_VAL': rows(4, **options, id=lambda i: f'validation_Art_{i}', split='validation'),
    'MMVet': rows(2, answer='x<OR>y', category='rec,ocr'),
  }
  for name, found in files.items():
    pandas.DataFrame(found).to_csv(directory / f'{name}.tsv', sep='\t', index=False)
  prompts = [{'tag': 'counting', 'include': [{'class': 'cat', 'count': 2}], 'prompt': 'two cats'}]
  (directory / 'evaluation_metadata.jsonl').write_text(''.join(json.dumps(prompt) + '\n' for prompt in prompts * 2))
  (directory / 'prompts').mkdir()
  (directory / 'prompts' / 'a1.txt').write_text('A red cube.')
  return directory


def evaluate(checkpoint, data, out, *arguments):
  command = [sys.executable, '-m', 'janus_jax.evaluate', f'--checkpoint={checkpoint}', f'--data={data}', f'--out={out}']
  command += ['--dtype=float32', '--max_new_tokens=3', '--num_images=2', *arguments]
  return forks.run(command, cwd=ROOT)


def score(benchmark, predictions, out, *arguments):
  command = [sys.executable, '-m', 'janus_jax.score', f'--benchmark={benchmark}', f'--predictions={predictions}']
  found = forks.run([*command, f'--out={out}', *arguments], cwd=ROOT)
  assert found.returncode == 0, found.stderr


@pytest.fixture(scope='module')
def whole(checkpoint, data, tmp_path_factory):
  out = tmp_path_factory.mktemp('whole')
  found = evaluate(checkpoint, data, out, f'--benchmarks={",".join((*UNDERSTANDING, "geneval", "dpg"))}')
  assert found.returncode == 0, found.stderr
  return out, found


def predictions(out, name):
  return [
    (row['index'], row['prediction'])
    for path in sorted((out / name).glob('answers-*.jsonl'))
    for row in map(json.loads, path.read_text().splitlines())
  ]


def test_all_nine_end_in_files_and_a_table(whole):
  out, found = whole
  scored = [name for name in UNDERSTANDING if name != 'mmvet']
  lines = found.stdout.splitlines()
  for name in scored:
    assert sum(line.startswith(f'| {name} (') for line in lines) == 1
    assert {score['rule'] for score in json.loads((out / name / 'scores.json').read_text())} > {'lmms-eval'}
  assert '| Janus-Pro-7B | 87.4 | 1567.1 | 79.2 | 72.1 | 62.0 | 41.0 |' in lines
  assert found.stdout == (out / 'scores.md').read_text()
  assert not re.search(r'[0-9a-f]{32}', found.stdout)  # Of an MD5 the table has the beginning.
  frame = pandas.read_excel(out / 'pope' / 'tiny_POPE.xlsx')
  assert list(frame.columns) == ['index', 'question', 'answer', 'category', 'prediction']
  assert len((out / 'mme' / 'submission' / 'Your_Results' / 'OCR.txt').read_text().splitlines()) == 2
  assert len((out / 'mmvet' / 'submission' / 'judge_requests.jsonl').read_text().splitlines()) == 2


def test_generated_images_are_trees_that_the_official_scorers_take(whole):
  out, _ = whole
  samples = sorted(path.relative_to(out).as_posix() for path in (out / 'geneval').rglob('*.png'))
  assert samples == [f'geneval/images/{p:05}/samples/{i:05}.png' for p in range(2) for i in range(2)]
  assert json.loads((out / 'geneval' / 'images' / '00001' / 'metadata.jsonl').read_text())['tag'] == 'counting'
  size = small_checkpoint.CONFIG.vq.image_size
  assert Image.open(out / 'dpg' / 'images' / 'a1.png').size == (2 * size, 2 * size)


def test_what_a_judge_said_joins_the_table_with_prompt_and_sampling(whole, tmp_path):
  out = tmp_path / 'results'
  shutil.copytree(whole[0], out)
  requests = (out / 'mmvet' / 'submission' / 'judge_requests.jsonl').read_text().splitlines()
  replies = [{**json.loads(line), 'judge_replies': ['0.5']} for line in requests]
  (tmp_path / 'replies.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in replies))
  detections = []
  for path in sorted((out / 'geneval').rglob('*.png')):
    metadata = json.loads((path.parents[1] / 'metadata.jsonl').read_text())
    boxes = {'cat': [[0, 0, 5, 5, 0.95], [9, 9, 19, 19, 0.95]]}
    detections.append({'filename': str(path), 'metadata': metadata, 'detections': boxes})
  (out / 'geneval' / 'detections.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in detections))
  score('mmvet', tmp_path / 'replies.jsonl', out / 'mmvet')
  score('geneval', out / 'geneval' / 'detections.jsonl', out / 'geneval', f'--images={out}/geneval/images')
  score('counting', out / 'geneval' / 'detections.jsonl', out / 'counting', f'--table={out}')
  before, lines = ((root / 'scores.md').read_text().splitlines() for root in (whole[0], out))
  assert [line for line in before[4:] if line.startswith('| mme (')] == [
    line for line in lines if line.startswith('| mme (')
  ]
  (mmvet,) = (line for line in lines if line.startswith('| mmvet ('))
  assert '| 50.0 | - | vlmevalkit-2026 | trained | greedy, float32 | MMVet.tsv (other: md5 ' in mmvet
  for name, figure in (('geneval', '1.00'), ('counting', '100.0')):
    (line,) = (line for line in lines if line.startswith(f'| {name} ('))
    assert f'| {figure} | - | ' in line
    assert "| the benchmark's | guidance 5, temperature 1, seed 0, float32 | - | 4 |" in line
  assert lines[0] == '# tiny'
  assert 'counting: 4 of 4 images right' in (out / 'geneval' / 'sheets' / 'counting.html').read_text()


def test_two_shards_and_a_cut_give_the_same_answers(checkpoint, data, whole, tmp_path):
  benchmarks = '--benchmarks=pope,mmbench'
  first = evaluate(checkpoint, data, tmp_path, benchmarks, '--shard=0/2')
  assert first.returncode == 0, first.stderr
  assert 'answers are there' in first.stderr
  assert not (tmp_path / 'scores.md').exists()
  path = tmp_path / 'pope' / 'answers-00000-of-00002.jsonl'
  content = path.read_bytes()
  path.write_bytes(content[: len(content) - 9])  # As if it had been killed while it wrote.
  assert evaluate(checkpoint, data, tmp_path, benchmarks, '--shard=1/2').returncode == 0
  last = evaluate(checkpoint, data, tmp_path, benchmarks, '--shard=0/2')
  assert last.returncode == 0, last.stderr
  for name in ('pope', 'mmbench'):
    assert sorted(predictions(tmp_path, name)) == sorted(predictions(whole[0], name))
    assert (tmp_path / name / 'rows.jsonl').read_text() == (whole[0] / name / 'rows.jsonl').read_text()


def test_answers_are_those_of_understand(checkpoint, data, whole):
  janus = load(checkpoint, 'float32')
  asked = ask_questions('pope', read_questions('pope', str(data)), 'trained', janus)
  images = [[Image.open(io.BytesIO(i.read())).convert('RGB') for i in item.question.images] for item in asked]
  found = answering.answer(janus, images, [item.prompt.text for item in asked], max_new_tokens=3)
  expected = {item.question.index: answer.text for item, answer in zip(asked, found)}
  assert dict(predictions(whole[0], 'pope')) == expected


def test_a_harness_names_the_speakers_its_way(checkpoint, data):
  janus = load(checkpoint, 'float32')
  questions = read_questions('mmvet', str(data))
  trained, other = (ask_questions('mmvet', questions, style, janus)[0].prompt for style in ('trained', 'vlmevalkit'))
  assert trained.text == other.text
  assert trained.system.startswith('You are a helpful language and vision assistant')
  assert other.system.startswith('You are a helpful assistant. Please answer truthfully')


def test_questions_about_one_image_stay_in_one_chunk_and_one_shard(data, checkpoint):
  asked = ask_questions('mme', read_questions('mme', str(data)), 'trained', load(checkpoint, 'float32'))
  many = [Asked(item.question, item.prompt, item.length + i) for i in range(7) for item in asked]
  for chunk in chunks(many):
    images = {item.question.images[0].name for item in chunk}
    assert sum(item.question.images[0].name in images for item in many) == len(chunk)
  assert all(len(chunk) >= CHUNK for chunk in list(chunks(many))[:-1])
  shards = [shard_of(asked, Shard(index, 3)) for index in range(3)]
  assert sorted(item.question.index for shard in shards for item in shard) == sorted(i.question.index for i in asked)
  assert all(len({item.question.images[0].name for item in shard}) * 2 == len(shard) for shard in shards)


def test_nothing_is_asked_twice(checkpoint, data, tmp_path):
  janus = load(checkpoint, 'float32')
  asked, path = (
    ask_questions('pope', read_questions('pope', str(data)), 'trained', janus),
    str(tmp_path / 'answers.jsonl'),
  )
  settings = AnswerSettings(max_new_tokens=2)
  answer_benchmark(asked[:2], 'trained', janus, decoder_for(janus), settings, path)
  before = read_answers(path)
  answer_benchmark(asked, 'trained', janus, decoder_for(janus), settings, path)
  lines = pathlib.Path(path).read_text().splitlines()
  assert len(lines) == len(asked) == len(read_answers(path))
  assert [json.loads(line) for line in lines[:2]] == list(before.values())


POPE = {'answer': 'Yes', 'category': 'random'}


@pytest.mark.parametrize(
  ('benchmark', 'columns', 'message'),
  [
    ('pope', {'answer': 'Yes'}, "pope: a question has no column 'category': it has index, question, answer"),
    ('pope', {**POPE, 'answer': 'maybe'}, "pope: row 1: the answer is 'maybe': expected Yes or No"),
    ('pope', {**POPE, 'image': ''}, r'pope: question 0 \(1 in all\) has no image: expected one or more'),
    ('gqa', {'category': 'c'}, 'gqa: row 1 has no column answer'),
  ],
)
def test_questions_whose_answers_cannot_be_scored_are_not_asked(benchmark, columns, message, tmp_path):
  name = {'pope': 'POPE', 'gqa': 'GQA_TestDev_Balanced'}[benchmark]
  pandas.DataFrame([{**row, **columns} for row in rows(1)]).to_csv(tmp_path / f'{name}.tsv', sep='\t', index=False)
  with pytest.raises(InputError, match=message):
    check_questions(benchmark, read_questions(benchmark, str(tmp_path)))


@pytest.mark.parametrize(
  ('columns', 'message'),
  [
    ({'answer': ['Yes']}, "x.parquet: .* KeyError 'id': expected a parquet file of lmms-eval's dataset"),
    ({'id': ['1'], 'image': ['x']}, 'x.parquet: .* TypeError .*: expected a parquet file'),
    ({'question': ['?'], 'image': [None]}, r'question 0 \(1 in all\) has no image'),
  ],
)
def test_parquet_files_of_something_else_are_named(columns, message, tmp_path):
  path = tmp_path / 'pope' / 'x.parquet'
  path.parent.mkdir()
  pandas.DataFrame(columns).to_parquet(path)
  with pytest.raises(InputError, match=message):
    check_questions('pope', read_questions('pope', str(tmp_path)))


@pytest.mark.parametrize(
  ('read', 'name', 'content', 'message'),
  [
    *((read_answers, 'a.jsonl', content, 'a.jsonl: a line has no index and prediction')
      for content in (b'{"a": 1}\n', b'{"index": "0"}\n', b'{"index": "0", "prediction": [1]}\n')),
    (read_answers, 'a.jsonl', b'\xff\n', 'a.jsonl: .*: expected JSON lines in UTF-8'),
    (read_geneval_prompts, 'a.jsonl', b'{"tag": "x"}\n', 'row 1 has no column prompt'),
    (read_geneval_prompts, 'a.jsonl', b'{"prompt": 3}\n', 'row 1 of .*a.jsonl: prompt is 3: expected text'),
    (read_dpg_prompts, 'a.txt', b'\xff', 'a.txt: .*: expected a prompt in UTF-8'),
  ],
)  # fmt: skip
def test_damaged_answers_and_prompts_are_named(read, name, content, message, tmp_path):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError, match=message):
    read(str(tmp_path if read is read_dpg_prompts else tmp_path / name))


@pytest.mark.parametrize(
  ('arguments', 'message', 'code'),
  [
    (['--benchmarks=pope', '--data=nowhere'], "nowhere: no such directory: expected the benchmarks' files below it", 1),
    (['--benchmarks=poppe'], "benchmark 'poppe' is unknown: expected any of pope, mme", 1),
    (['--benchmarks=pope', '--out='], '--benchmarks needs --data and --out', 2),
  ],
)
def test_wrong_arguments_are_one_line(arguments, message, code, checkpoint, data, tmp_path):
  found = evaluate(checkpoint, data, tmp_path / 'out', *arguments)
  assert (found.returncode, found.stdout) == (code, ''), found.stderr
  assert message in found.stderr
  assert len(found.stderr.strip().splitlines()) == 1
