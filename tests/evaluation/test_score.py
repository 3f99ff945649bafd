"""`python -m janus_jax.score`: files in, scores out, and what it says of wrong files."""

import json
import sys

import pytest
from e2e import forks

from janus_jax.errors import InputError
from janus_jax.evaluation.rows import as_vlmevalkit_reads, join, read_rows

ROWS = [
  {'index': i, 'question': f'Is there a {i}?', 'answer': answer, 'category': 'random', 'prediction': text}
  for i, (answer, text) in enumerate([('Yes', 'Yes'), ('No', 'No.'), ('Yes', 'yes, there is'), ('No', 'yes')])
]


def write(path, rows):
  if path.suffix == '.jsonl':
    path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
    return path
  frame = pytest.importorskip('pandas').DataFrame(rows)
  if path.suffix == '.tsv':
    frame.to_csv(path, sep='\t', index=False)
  else:
    frame.to_excel(path, index=False)
  return path


def score(*arguments):
  command = [sys.executable, '-m', 'janus_jax.score', *map(str, arguments)]
  return forks.run(command)


@pytest.mark.parametrize('suffix', ['.jsonl', '.tsv', '.xlsx'])
def test_rows_are_the_same_from_every_format(suffix, tmp_path):
  rows = [{**row, 'prediction': 'None' if row['index'] == 3 else row['prediction']} for row in ROWS]
  found = read_rows(str(write(tmp_path / f'rows{suffix}', rows)))
  assert [{**row, 'index': int(row['index'])} for row in found] == rows


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
