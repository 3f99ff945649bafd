"""`python -m janus_jax.score`: files in, scores out, and what it says of wrong files."""

import io
import json
import math
import sys

import pytest
from e2e import forks

from janus_jax.errors import InputError
from janus_jax.evaluation.benchmarks import BENCHMARKS
from janus_jax.evaluation.rows import as_vlmevalkit_reads, join, read_appended, read_rows
from janus_jax.evaluation.scoreboard import read_about, read_scores
from janus_jax.evaluation.scores import score_rows

ROWS = [
  {'index': i, 'question': f'Is there a {i}?', 'answer': answer, 'category': 'random', 'prediction': text}
  for i, (answer, text) in enumerate([('Yes', 'Yes'), ('No', 'No.'), ('Yes', 'yes, there is'), ('No', 'yes')])
]


def write(path, rows):
  if path.suffix == '.jsonl':
    path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
    return path
  if path.suffix == '.json':
    path.write_text(json.dumps(rows))
    return path
  frame = pytest.importorskip('pandas').DataFrame(rows)
  if path.suffix in ('.tsv', '.csv'):
    frame.to_csv(path, sep='\t' if path.suffix == '.tsv' else ',', index=False)
  else:
    frame.to_excel(path, index=False)
  return path


def score(*arguments):
  command = [sys.executable, '-m', 'janus_jax.score', *map(str, arguments)]
  return forks.run(command)


@pytest.mark.parametrize('suffix', ['.jsonl', '.json', '.tsv', '.csv', '.xlsx'])
def test_rows_are_the_same_from_every_format(suffix, tmp_path):
  rows = [{**row, 'prediction': 'None' if row['index'] == 3 else row['prediction']} for row in ROWS]
  found = read_rows(str(write(tmp_path / f'rows{suffix}', rows)))
  assert [{**row, 'index': int(row['index'])} for row in found] == rows


def test_questions_of_gqa_are_named_by_their_id(tmp_path):
  path = tmp_path / 'questions.JSON'
  path.write_text('{"7": {"answer": "red"}}')
  assert read_rows(str(path)) == [{'questionId': '7', 'answer': 'red'}]


@pytest.mark.parametrize(
  ('name', 'text'), [('q.json', '{"7": "red"}'), ('q.json', '[1]'), ('q.json', '3'), ('q.txt', '[]')]
)
def test_what_is_no_table_is_refused(name, text, tmp_path):
  (tmp_path / name).write_text(text)
  with pytest.raises(InputError, match=r'expected a (list of objects|file that ends with one of \.jsonl, )'):
    read_rows(str(tmp_path / name))


@pytest.mark.parametrize('key', ['index', 'id', 'question_id', 'questionId'])
def test_columns_have_the_names_of_other_datasets_too(key):
  theirs = {'text': 'q', 'label': 'Yes', 'capability': 'rec', 'L2-category': 'l', 'choice_a': 'x', 'choice_d': 'y'}
  ours = {'question': 'q', 'answer': 'Yes', 'category': 'rec', 'l2-category': 'l', 'A': 'x', 'D': 'y'}
  assert join([{'prediction': None, **theirs}], None) == ([{'index': 0, 'prediction': '', **ours}], 0)
  data = [{key: number, **theirs} for number in (7, 8)]
  found, _ = join([{key: '8', 'prediction': 'b'}, {key: 7, 'prediction': 'a', 'judge_replies': ['1']}], data)
  number = 7 if key == 'index' else 0
  assert found[0] == {'index': number, key: 7, 'prediction': 'a', 'judge_replies': ['1'], **ours}
  assert found[1]['prediction'] == 'b'


def test_lines_that_are_cut_off_and_files_that_are_not_there_are_no_answers(tmp_path):
  path = tmp_path / 'answers.jsonl'
  assert read_appended(str(path)) == []
  path.write_text('{"index": 1}\n\n{"index": 2}\n{"ind')
  assert read_appended(str(path)) == [{'index': 1}, {'index': 2}]
  assert path.read_text().endswith('2}\n')


def test_rows_without_data_have_an_index_of_their_own_or_that_of_their_place():
  rows = [{'judge_replies': []}, {'prediction': 'x', 'index': 5}, {'prediction': 'y', 'index': 5}]
  assert [row['index'] for row in join(rows, None)[0]] == [0, 5, 5]
  with pytest.raises(InputError, match='index 5 stands in the predictions more than once'):
    join(rows[1:], None)
  with pytest.raises(InputError, match='row 2 of the predictions has no column index'):
    join([rows[1], {'prediction': 'x'}], [{'index': 5}, {'index': 6}])
  with pytest.raises(InputError, match='row 2 of the predictions has no column prediction: index'):
    join([rows[1], {'index': 3}], None)


def test_megabytes_in_a_field_are_read(tmp_path):
  path = write(tmp_path / 'rows.tsv', [{**ROWS[0], 'image': 'A' * 3_000_000}])
  assert len(read_rows(str(path))[0]['image']) == 3_000_000


def test_vlmevalkit_reads_back_no_none():
  rows = [{'prediction': text, 'index': i} for i, text in enumerate(['None', 'N/A', 'nan', '', 'none', 'No'])]
  assert [str(row['prediction']) for row in as_vlmevalkit_reads(rows)] == ['nan'] * 4 + ['none', 'No']


def test_answers_by_index_take_all_else_from_the_data():
  predictions = [{'index': str(row['index']), 'prediction': row['prediction'], 'answer': 'wrong'} for row in ROWS[::-1]]
  rows, missing = join(predictions, [{**row, 'index': row['index']} for row in ROWS])
  assert (rows, missing) == (ROWS, 0)


@pytest.mark.parametrize(
  ('predictions', 'message'),
  [
    (ROWS[:3], r'index 3 \(1 of 4 rows\) has no prediction'),
    ([*ROWS, ROWS[0]], 'index 0 stands in the predictions more than once'),
    ([*ROWS, {'index': 9, 'prediction': 'x'}], r'index 9 \(1 in all\) is not in the data'),
    ([{'prediction': 'x'}], 'no column in common'),
    ([{'index': 0}], 'row 1 of the predictions has no column prediction: index'),
    ([], 'no predictions'),
  ],
)
def test_answers_that_do_not_fit_the_data_are_refused(predictions, message):
  with pytest.raises(InputError, match=message):
    join(predictions, ROWS)


def test_partial_answers_are_counted():
  rows, missing = join(ROWS[:3], ROWS, allow_partial=True)
  assert (len(rows), missing) == (3, 1)


def test_all_rules_side_by_side(tmp_path):
  found = score(
    '--benchmark=pope', f'--predictions={write(tmp_path / "p.jsonl", ROWS)}', '--rule=all', f'--out={tmp_path}'
  )
  assert found.returncode == 0, found.stderr
  assert found.stdout.split('\n')[0].split() == ['vlmevalkit-2026', 'vlmevalkit-2025', 'lmms-eval', 'official']
  lines = [json.loads(line) for line in (tmp_path / 'rows.jsonl').read_text().splitlines()]
  assert lines[2]['official'] == {'read': 'yes', 'score': 1.0, 'is_random': False}
  assert lines[2]['lmms-eval']['score'] == 0
  assert {scores['rule'] for scores in json.loads((tmp_path / 'scores.json').read_text())} == set(lines[0]) - {'index'}


def test_of_all_rules_those_that_cannot_read_the_rows_are_left_out(tmp_path):
  rows = [{'question_id': 1, 'text': 'Is it?', 'label': 'yes', 'prediction': 'Yes'}]
  path = write(tmp_path / 'p.jsonl', rows)
  found = score('--benchmark=pope', f'--predictions={path}', '--rule=all', f'--out={tmp_path}')
  assert found.stdout.split('\n')[0].split() == ['lmms-eval', 'official'], found.stderr
  assert 'left out: vlmevalkit-2026: row 1 has no column category' in found.stderr
  alone = score('--benchmark=pope', f'--predictions={path}', '--rule=vlmevalkit-2026', f'--out={tmp_path}')
  assert alone.returncode == 1


def test_json_is_one_object_with_unrounded_numbers(tmp_path):
  found = score(
    '--benchmark=pope', f'--predictions={write(tmp_path / "p.jsonl", ROWS[:3])}', f'--out={tmp_path}', '--json'
  )
  scores = json.loads(found.stdout)
  assert (scores['benchmark'], scores['rule'], scores['rows'], scores['random_fallbacks']) == (
    'pope',
    'vlmevalkit-2026',
    3,
    0,
  )
  assert scores['metrics']['Overall']['acc'] == 100
  written = json.loads((tmp_path / 'scores.json').read_text())
  assert written | scores == written
  assert written['headline'] == 100


@pytest.mark.parametrize(
  ('arguments', 'content', 'message', 'code'),
  [
    (['--benchmark=pope', '--rule=mine'], b'{"prediction": "x"}', "rule is 'mine': expected all or one of", 1),
    (['--benchmark=pope'], b'{"prediction": "x"}', 'row 1 has no column answer', 1),
    (['--benchmark=pope'], b'\xff\xfe\x00', 'invalid start byte', 1),
    (['--benchmark=pope'], b'[1]', 'line 1: expected a JSON object', 1),
    (['--benchmark=pope'], b'{"prediction": "x", "answer": "maybe", "category": "a"}', 'expected Yes or No', 1),
    (['--benchmark=geneval'], b'{"prediction": "x"}', 'row 1 has no metadata', 1),
    (['--benchmark=dpg'], b'{"file": "x"}', 'expected --data=dpg_bench.csv', 1),
    (['--benchmark=poppe'], b'', 'poppe', 2),
    (['--benchmark=pope', '--images=x'], b'', 'pope has no images: expected no --images', 2),
    ([], b'', '--benchmark is missing: expected --benchmark, --predictions or --images, --out; or --table alone', 2),
  ],
)
def test_wrong_input_is_one_line(arguments, content, message, code, tmp_path):
  path = tmp_path / 'p.jsonl'
  path.write_bytes(content)
  found = score(*arguments, f'--predictions={path}', f'--out={tmp_path / "out"}')
  assert (found.returncode, found.stdout) == (code, ''), found.stderr
  assert message in found.stderr
  assert len(found.stderr.strip().splitlines()) == 1
  assert not (tmp_path / 'out').exists()


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
  for name, text in (('a.jsonl', '{"index": 0}'), ('a.json', '[{"index": 0}]'), ('a.tsv', 'index\n0\n')):
    (tmp_path / name).write_text(text, encoding='utf-8-sig')
    assert [list(row) for row in read_rows(str(tmp_path / name))] == [['index']]


def spreadsheet():
  buffer = io.BytesIO()
  pytest.importorskip('pandas').DataFrame(ROWS).to_excel(buffer, index=False)
  return buffer.getvalue()


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('a.xlsx', b'no zip', 'File is not a zip file: expected a .xlsx file$'),
    ('a.xlsx', lambda: spreadsheet()[:2000], 'not a zip file'),
    ('a.xlsx', lambda: spreadsheet()[:300] + b'\xff' * 200 + spreadsheet()[500:], 'cannot be read'),
    ('a.json', b'[' * 100_000, 'recursion depth exceeded.*: expected a .json file in UTF-8$'),
    ('a.jsonl', b'{"a": 1}\n' + b'[' * 100_000, 'line 2: maximum recursion depth'),
    ('a.jsonl', b'{"prediction": "\\ud800"}', 'line 1: .*surrogates not allowed'),
    ('a.json', b'[{"prediction": "\\ud800"}]', 'surrogates not allowed'),
    ('a.jsonl', b'', 'a.jsonl has no rows: expected some'),
    ('a.tsv', b'index\tprediction\n', 'a.tsv has no rows'),
    ('a.tsv', 'index\n\u00e9\n'.encode('latin1'), "can't decode.*: expected a .tsv file in UTF-8$"),
  ],
)
def test_files_that_cannot_be_read_are_refused(name, content, message, tmp_path):
  (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content())
  with pytest.raises(InputError, match=message):
    read_rows(str(tmp_path / name))


BOXES = {'cat': [[0, 0, 5, 5, 0.95]], 'dog': [[9, 9, 12, 12, 0.95]]}
PROMPT = {'tag': 'x', 'prompt': 'p', 'include': [{'class': 'cat', 'count': 1}, {'class': 'dog', 'count': 1}]}
DPG = {'item_id': 'a', 'proposition_id': '1', 'dependency': '0', 'tuple': 'e (a)', 'question_natural_language': 'q?'}
SEEN = {'file': 'a.png', 'crop': [0, 0, 8, 8], 'question': 'q?', 'answer': 'yes'}
OPTIONS = {'index': 0, 'answer': 'A', 'A': 'a', 'B': 'b', 'prediction': 'A', 'category': 'c'}


def images(**columns):
  return [{'filename': 'f', 'metadata': PROMPT, 'detections': BOXES, **columns}]


def second(**fields):
  return images(metadata={**PROMPT, 'include': [PROMPT['include'][0], {**PROMPT['include'][1], **fields}]})


@pytest.mark.parametrize(
  ('benchmark', 'rows', 'data', 'message'),
  [
    *(('geneval', images(detections=boxes), None, 'f: boxes of .* are .*: expected .x0, y0, x1, y1, score. each')
      for boxes in (None, [1], 'x', {'cat': None}, {'cat': [[0, 0, 5, 5]]}, {'cat': [0, 0, 5, 5, 0.9]},
                    {'cat': [[0, 0, 5, 5, 'x']]}, {'cat': [[0, 0, 5, 5, 0.9], [1]]},
                    {'cat': [[math.nan, 0, 5, 5, 1]]})),
    *(('geneval', images(metadata={**PROMPT, 'tag': tag}), None, 'metadata has tag .*: expected a name')
      for tag in (None, ['a'], '', '../../a')),
    *(('geneval', images(metadata={**PROMPT, name: clauses}), None, f'{name} .*: expected a list of .*count')
      for name in ('include', 'exclude') for clauses in (None, ['cat'], {'class': 'cat'}, [{'class': 'cat'}],
                                                         [{'class': 'cat', 'count': '2'}])),
    *(('geneval', second(position=position), None, 'position .*: expected one of left of, .*, and an earlier clause')
      for position in (None, 3, ['near', 0], ['left of'], ['left of', 1], ['left of', 'a'])),
    ('geneval', images(metadata={**PROMPT, 'prompt': ['p']}), None, "prompt .'p'.: expected text"),
    ('geneval', images(colors_of_detections=None), None, 'colors_of_detections are None: expected lists by class'),
    ('geneval', [{'metadata': PROMPT, 'correct': 'yes'}], None, 'expected boxes by class, or true or false'),
    ('geneval', images(), [{'tag': 'x'}], 'row 1 has no column prompt'),
    ('counting', [{'prompt': 'p', 'asked': 2, 'seen': math.inf}], None, 'seen is inf: expected a whole number'),
    *(('dpg', [{**SEEN, 'crop': crop}], [DPG], 'row 1: crop is .*: expected .x0, y0, x1, y1.')
      for crop in (None, 3, 'ab', [], [0, 0, 8, 'x'], [[0], 1, 2, 3])),
    *(('dpg', [{**SEEN, name: value}], [DPG], f'row 1: {name} is .*: expected text')
      for name in ('file', 'question', 'answer') for value in (None, ['a'])),
    *(('dpg', [SEEN], [{**DPG, name: value}], f'row 1 of the data: {name} is .*: expected a whole number')
      for name in ('proposition_id', 'dependency') for value in ('', 'x')),
    *(('bias', [{'prompt': 'p', 'attribute': 'a', 'value': 'v', name: ['x']}], None, f'{name} is .*: expected text')
      for name in ('prompt', 'attribute', 'filename')),
    *(('pope', [{**ROWS[0], name: ['x']}], None, f'row 1 of the predictions: {name} is .*: expected text or a number')
      for name in ('index', 'category')),
    ('mmbench', [{**OPTIONS, 'index': None}], None, 'an index is no integer'),
    ('mmmu', [{**OPTIONS, 'id': 'm', 'options': 3}], None, 'm: options are 3: expected a list'),
  ],
)  # fmt: skip
def test_rows_of_another_form_are_refused_by_every_rule(benchmark, rows, data, message):
  for rule in BENCHMARKS[benchmark].rules:
    with pytest.raises(InputError, match=message):
      score_rows(benchmark, BENCHMARKS[benchmark].prepare(rows, data, False)[0], rule)


SCORE = {'benchmark': 'pope', 'rule': 'r', 'rows': 1, 'headline': 1.0, 'interval': [1, 2], 'metrics': {}}


@pytest.mark.parametrize(
  'changed',
  [
    {'headline': 'x'},
    {'interval': [1]},
    {'interval': 'ab'},
    {'missing_rows': 'x'},
    {'prompt': 3},
    {'benchmark': 'geneval', 'metrics': {'Task breakdown': {'a': None}}},
    {'benchmark': 'geneval', 'metrics': [1]},
  ],
)
def test_damaged_scores_are_named(changed, tmp_path):
  path = tmp_path / 'pope' / 'scores.json'
  path.parent.mkdir()
  path.write_text(json.dumps(SCORE))
  assert read_scores(str(tmp_path)) == [SCORE]
  path.write_text(json.dumps(SCORE | changed))
  with pytest.raises(InputError, match=r'pope/scores.json: .*: expected scores as janus_jax.score writes them'):
    read_scores(str(tmp_path))


@pytest.mark.parametrize('content', ['{', '[1]', '"a"', '{"model": 3}', '{"rows": "a"}'])
def test_a_damaged_file_about_answers_is_named(content, tmp_path):
  (tmp_path / 'about.json').write_text(content)
  with pytest.raises(InputError, match=r'about.json: .*: expected'):
    read_about(str(tmp_path))
