"""Pages of judged images, and the one table of many results."""

import base64
import io
import json
import pathlib
import re

import numpy as np
import pytest
from html_pages import parse
from PIL import Image

from janus_jax.errors import InputError
from janus_jax.evaluation.benchmarks import BENCHMARKS
from janus_jax.evaluation.scoreboard import (
  claim,
  read_about,
  read_scores,
  scoreboard_to_markdown,
  table_rows,
  write_table,
)
from janus_jax.evaluation.scores import score_rows, write_rule_scores
from janus_jax.evaluation.sheets import SIDE, find_image, write_sheets


def save(path, size=(64, 64), colour=(255, 255, 255)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', size, colour).save(path)


def shown_images(text):
  """The images of a page, float arrays, in order."""
  sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
  return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source))), np.float32) for source in sources]


def geneval_rows():
  """A prompt whose first image is right and whose second lacks the colour, and a counting prompt with no box."""
  prompt = 'a photo of a blue <cat>'
  metadata = {'tag': 'colors', 'include': [{'class': 'cat', 'count': 1, 'color': 'blue'}], 'prompt': prompt}
  counting = {'tag': 'counting', 'include': [{'class': 'dog', 'count': 2}], 'exclude': [], 'prompt': 'two dogs'}
  box = {'cat': [[16, 16, 48, 48, 0.95], [0, 0, 9, 9, 0.2]], 'car': [[52, 2, 62, 20, 0.9]]}
  colours = {'cat': ['blue', 'red'], 'car': ['red']}
  row = {'metadata': metadata, 'detections': box, 'colors_of_detections': colours}
  return [
    {**row, 'filename': '/elsewhere/images/00000/samples/00000.png'},
    {**row, 'filename': '00000/samples/00001.png', 'colors_of_detections': {**colours, 'cat': ['red', 'red']}},
    {'metadata': counting, 'filename': '00001/samples/00000.png', 'detections': {'dog': [[0, 0, 9, 9, 0.85]]}},
  ]


def readings_of(benchmark, rows):
  lines, scores = score_rows(benchmark, rows)
  return [line[scores[0]['rule']] for line in lines]


def test_a_page_per_skill_shows_the_boxes_that_the_judge_counted(tmp_path):
  for name in ('00000/samples/00000', '00000/samples/00001', '00001/samples/00000'):
    save(tmp_path / 'images' / f'{name}.png')
  rows, _ = BENCHMARKS['geneval'].prepare(geneval_rows(), None, False)
  paths = write_sheets('geneval', str(tmp_path / 'images'), rows, readings_of('geneval', rows), str(tmp_path / 'out'))
  assert [path.rpartition('/')[2] for path in paths] == ['colors.html', 'counting.html']
  text = (tmp_path / 'out' / 'sheets' / 'colors.html').read_text()
  parse(text)
  assert 'colors: 1 of 2 images right' in text
  assert '<cat>' not in text
  assert text.count('found: cat 1, car 1') == 2  # The box at 0.2 is none.
  assert re.findall(r'<img class="(\w+)"', text) == ['right', 'wrong']
  assert 'expected blue cat&gt;=1, found 0 blue; and 1 red' in text
  first, _ = shown_images(text)
  assert first.shape == (SIDE, SIDE, 3)
  scale = SIDE / 64
  edge, middle, car = (first[int(y * scale), int(x * scale)] for y, x in ((48, 32), (40, 32), (12, 52)))
  assert edge.min() < 100  # The box of the cat, which was asked for, and none of the car.
  assert min(middle.min(), car.min()) > 230
  assert 'found: nothing' in (tmp_path / 'out' / 'sheets' / 'counting.html').read_text()


def test_an_image_that_is_not_there_is_named_before_anything_is_written(tmp_path):
  save(tmp_path / 'images' / '00000' / 'samples' / '00000.png')
  rows, _ = BENCHMARKS['geneval'].prepare(geneval_rows(), None, False)
  with pytest.raises(InputError, match=r'no 00000/samples/00001\.png: expected the images that were judged'):
    write_sheets('geneval', str(tmp_path / 'images'), rows, readings_of('geneval', rows), str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


def test_no_file_outside_of_the_directory_is_shown(tmp_path):
  save(tmp_path / 'secret.png')
  (tmp_path / 'images').mkdir()
  for name in ('../secret.png', str(tmp_path / 'secret.png')):
    with pytest.raises(InputError):
      find_image(str(tmp_path / 'images'), name)


def test_dpg_shows_the_worst_image_first_with_the_questions_that_failed(tmp_path):
  questions = [
    ('1', '0', 'entity - whole (cat)', 'Is there a cat?'),
    ('2', '1', 'attribute - color (cat)', 'Is it red?'),
  ]
  data = [{'item_id': 'skipped', 'proposition_id': 1, 'dependency': 0, 'tuple': 'x', 'question_natural_language': 'x'}]
  for item in ('good', 'bad'):
    save(tmp_path / f'{item}.png', (128, 128))
    names = ('proposition_id', 'dependency', 'tuple', 'question_natural_language')
    data += [{'item_id': item, 'text': f'a {item} cat', **dict(zip(names, values))} for values in questions]
  crops = [[0, 0, 64, 64], [64, 0, 128, 64], [0, 64, 64, 128], [64, 64, 128, 128]]
  predictions = [
    {
      'file': f'{item}.png',
      'crop': crop,
      'question': text,
      'answer': 'no' if item == 'bad' and crop[0] and i else 'yes',
    }
    for item in ('good', 'bad')
    for crop in crops
    for i, (*_, text) in enumerate(questions)
  ]
  rows, _ = BENCHMARKS['dpg'].prepare(predictions, data, True)
  (path,) = write_sheets('dpg', str(tmp_path), rows, readings_of('dpg', rows), str(tmp_path / 'out'))
  text = pathlib.Path(path).read_text()
  parse(text)
  assert text.index('bad: 75.0') < text.index('good: 100.0')
  assert 'Is it red? (2, 4)' in text
  assert 'Is there a cat?' not in text
  assert 'a bad cat' in text


def write_score(root, name, benchmark, rows, **about):
  lines, scores = score_rows(benchmark, rows, 'all', **about)
  write_rule_scores(str(root / name), lines, scores)


def test_results_of_several_commands_stand_in_one_table(tmp_path):
  counts = [{'prompt': str(number), 'asked': 2, 'seen': 2 + number % 2} for number in range(40)]
  write_score(tmp_path, 'mine', 'counting', counts)
  write_score(tmp_path, 'geneval', 'geneval', geneval_rows(), model='Janus', sampling='guidance 5', prompt='own')
  answers = [{'index': i, 'answer': 'red', 'prediction': 'red'} for i in range(3)]
  write_score(tmp_path, 'gqa', 'gqa', answers, model='Janus', sampling='greedy', prompt='trained')
  (tmp_path / 'toy').mkdir()
  (tmp_path / 'toy' / 'scores.json').write_text('{"target_scores": []}')
  found = write_table(str(tmp_path))
  assert [score['benchmark'] for score in found] == ['gqa', 'geneval', 'counting']
  lines = (tmp_path / 'scores.md').read_text().splitlines()
  assert lines[0] == '# Janus'
  cells = [line.strip('| ').split(' | ') for line in lines[4:9]]
  assert [[*line[:2], *line[3:6], *line[7:]] for line in cells] == [
    ['gqa (GQA, Table 3)', '100.0', 'vlmevalkit-2026', 'trained', 'greedy', '3', '59.3', '62.0'],
    ['geneval (Overall, Table 4)', '0.25', 'official', 'own', 'guidance 5', '3', '0.73', '0.80'],
    ['geneval: colors', '0.50', 'official', 'own', 'guidance 5', '-', '0.89', '0.90'],
    ['geneval: counting', '0.00', 'official', 'own', 'guidance 5', '-', '0.51', '0.59'],
    ['counting (accuracy in %)', '50.0', 'janus_jax', '-', '-', '40', '-', '-'],
  ]
  assert re.fullmatch(r'[\d.]+ to [\d.]+', cells[4][2])
  assert 'counting' not in '\n'.join(lines[9:])  # The report has no such column.
  parse((tmp_path / 'scores.html').read_text())


def test_skills_have_intervals_on_the_scale_of_the_report():
  score = {'benchmark': 'geneval', 'rule': 'official', 'headline': 0.5, 'rows': 8}
  part = {
    'metrics': {'Task breakdown': {'counting': 50.0}},
    'intervals': {'Task breakdown': {'counting': (40.0, 103.0)}},
  }
  assert table_rows([score | part])[1][:3] == ['geneval: counting', '0.50', '0.40 to 1.00']
  dpg = {**score, 'benchmark': 'dpg', 'metrics': {'L1 category scores': {'entity': 88.0, 'new': 1.0}}}
  assert [line[-2:] for line in table_rows([dpg])] == [['82.63', '84.19'], ['88.63', '88.90'], ['-', '-']]


def test_where_the_report_has_no_such_benchmark_none_of_its_rows_follow():
  score = {'benchmark': 'counting', 'rule': 'janus_jax', 'headline': 50.0, 'rows': 8}
  assert 'report' not in scoreboard_to_markdown('x', [score])


def test_a_table_of_two_models_names_them(tmp_path):
  answers = [{'index': i, 'answer': 'red', 'prediction': 'red'} for i in range(3)]
  for name in ('before', 'after'):
    write_score(tmp_path, name, 'gqa', answers, model=name)
  write_table(str(tmp_path))
  text = (tmp_path / 'scores.md').read_text()
  assert text.startswith('# after, before\n')
  assert '| before: gqa (GQA, Table 3) |' in text


def test_what_is_no_score_is_said(tmp_path):
  with pytest.raises(InputError, match=r'no \*/scores.json of a benchmark'):
    read_scores(str(tmp_path))
  (tmp_path / 'x').mkdir()
  (tmp_path / 'x' / 'scores.json').write_text('{')
  with pytest.raises(InputError, match=r'x/scores\.json: .* expected scores as janus_jax.score writes them'):
    read_scores(str(tmp_path))


def test_what_evaluate_knows_of_images_comes_back(tmp_path):
  assert read_about(str(tmp_path)) == {}
  claim(str(tmp_path), {'model': 'x'})
  assert read_about(str(tmp_path)) == {'model': 'x'}
  (tmp_path / 'about.json').write_text('{')
  with pytest.raises(InputError, match=r'about\.json: .*: expected what janus_jax.evaluate wrote'):
    read_about(str(tmp_path))


def test_intervals_of_a_file_are_those_of_its_metrics(tmp_path):
  counts = [{'prompt': str(number), 'asked': 2, 'seen': 2 + number % 2} for number in range(41)]
  write_score(tmp_path, 'counting', 'counting', counts)
  score = json.loads((tmp_path / 'counting' / 'scores.json').read_text())
  assert score['interval'] == score['intervals']['Accuracy']
  low, high = score['intervals']['By number']['2']['Bias']
  assert low < score['metrics']['By number']['2']['Bias'] < high


def test_answers_of_one_model_are_not_gone_on_with_by_another(tmp_path):
  about = {'model': 'one', 'prompt': 'trained', 'sampling': 'greedy, float32'}
  claim(str(tmp_path), about)
  claim(str(tmp_path), about)
  with pytest.raises(
    InputError, match=r'what is there has model one, sampling greedy, float32: expected another --out'
  ):
    claim(str(tmp_path), {**about, 'model': 'two', 'sampling': 'greedy, bfloat16'})
  assert read_about(str(tmp_path)) == about
