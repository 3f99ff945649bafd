"""Questions from files in every layout that people have, made up here; images are those that the question names."""

import base64
import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from janus_jax.data.prompts import SYSTEM_PROMPT
from janus_jax.errors import InputError
from janus_jax.evaluation.prompt_styles import Prompt, lmms_prompt, lmms_text, trained_prompt, vlmevalkit_prompt
from janus_jax.evaluation.questions import MME_TASKS, read_questions
from janus_jax.evaluation.rows import as_vlmevalkit_reads
from janus_jax.evaluation.versions import OFFICIAL, version_of_file


def png(shade):
  buffer = io.BytesIO()
  Image.fromarray(np.full((4, 4, 3), shade, np.uint8)).save(buffer, 'PNG')
  return buffer.getvalue()


def shades(question):
  return [int(np.asarray(Image.open(io.BytesIO(image.read())))[0, 0, 0]) for image in question.images]


def write_tsv(path, rows):
  pandas = pytest.importorskip('pandas')
  pandas.DataFrame(rows).to_csv(path, sep='\t', index=False)


def encoded(shade):
  return base64.b64encode(png(shade)).decode()


def test_rows_of_a_tsv_share_images_and_have_several(tmp_path):
  rows = [
    {'index': 7, 'image': encoded(10), 'question': 'one\ntwo\t"three"', 'answer': 'Yes', 'category': 'random'},
    {'index': 8, 'image': '7', 'question': 'again', 'answer': 'No', 'category': 'random'},
    {'index': 9, 'image': str([encoded(20), encoded(30)]), 'question': 'both', 'answer': 'No', 'category': 'a'},
  ]
  write_tsv(tmp_path / 'POPE.tsv', rows)
  first, second, third = read_questions('pope', str(tmp_path))
  assert first.row == {'index': '7', 'question': 'one\ntwo\t"three"', 'answer': 'Yes', 'category': 'random'}
  assert (shades(first), shades(second), shades(third)) == ([10], [10], [20, 30])
  assert first.images[0].name == second.images[0].name


def test_a_tsv_may_name_files(tmp_path):
  (tmp_path / 'a.png').write_bytes(png(40))
  write_tsv(
    tmp_path / 'MME.tsv', [{'index': 0, 'image_path': 'a.png', 'question': '?', 'answer': 'Yes', 'category': 'OCR'}]
  )
  assert shades(read_questions('mme', str(tmp_path))[0]) == [40]


def test_a_file_of_another_version_is_named(tmp_path, monkeypatch, caplog):
  path = tmp_path / 'POPE.tsv'
  write_tsv(path, [{'index': 7, 'image': encoded(10), 'question': 'a\r\nb?', 'answer': 'Yes', 'category': 'random'}])
  md5 = hashlib.md5(path.read_bytes()).hexdigest()
  (question,) = read_questions('pope', str(tmp_path))
  assert question.dataset == version_of_file(str(path)) == f'POPE.tsv (other: md5 {md5})'
  assert all(word in caplog.messages[0] for word in (str(path), md5, OFFICIAL['POPE.tsv']))
  caplog.clear()
  monkeypatch.setitem(OFFICIAL, 'POPE.tsv', md5)
  (question,) = read_questions('pope', str(tmp_path))
  assert question.dataset == version_of_file(str(path)) == 'POPE.tsv (official)'
  assert version_of_file(str(tmp_path / 'mine.tsv')) == ''
  assert not caplog.messages


def write_parquet(path, rows, **columns):
  path.parent.mkdir(parents=True, exist_ok=True)
  pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=2, **columns)


def stored(shade):
  return {'bytes': png(shade), 'path': f'{shade}.png'}


def test_parquets_of_lmms_eval(tmp_path):
  rows = [
    {'question_id': str(i), 'question': f'{i}?', 'answer': 'yes', 'category': 'random', 'image': stored(i)}
    for i in range(5)
  ]
  write_parquet(tmp_path / 'POPE' / 'data' / 'test-00000-of-00001.parquet', rows)
  questions = read_questions('pope', str(tmp_path))
  assert [shades(question) for question in questions] == [[0], [1], [2], [3], [4]]
  assert questions[3].row == {'question_id': '3', 'question': '3?', 'answer': 'Yes', 'category': 'random', 'index': 3}


def test_images_of_gqa_stand_in_files_of_their_own(tmp_path):
  write_parquet(tmp_path / 'gqa' / 'images.parquet', [{'id': 'n1', 'image': stored(50)}])
  write_parquet(tmp_path / 'gqa' / 'text.parquet', [{'id': '9', 'imageId': 'n1', 'question': '?', 'answer': 'red'}])
  (question,) = read_questions('gqa', str(tmp_path))
  assert (shades(question), question.row['id']) == ([50], '9')


def test_options_of_mmmu_and_of_seed_become_letters(tmp_path):
  mmmu = {
    'id': 'validation_Art_1',
    'question': '<image 2>?',
    'options': "['a', 'b']",
    'answer': 'A',
    'question_type': 'multiple-choice',
  }
  write_parquet(tmp_path / 'MMMU' / 'Art.parquet', [{**mmmu, 'image_1': stored(1), 'image_2': stored(2)}])
  (question,) = read_questions('mmmu', str(tmp_path))
  assert (question.row['A'], question.row['B'], shades(question)) == ('a', 'b', [1, 2])
  seed = {'question': '?', 'answer': 'A', 'data_type': 'image', 'question_id': '1', 'image': [stored(3)]}
  write_parquet(tmp_path / 'SEED-Bench' / 'x.parquet', [{**seed, **{f'choice_{c}': c for c in 'abcd'}}])
  (question,) = read_questions('seedbench', str(tmp_path))
  assert ([question.row[letter] for letter in 'ABCD'], shades(question)) == (list('abcd'), [3])


def test_official_files_of_pope_and_mme(tmp_path):
  (tmp_path / 'val2014').mkdir()
  (tmp_path / 'val2014' / 'COCO_1.jpg').write_bytes(png(60))
  row = {'question_id': 1, 'image': 'COCO_1.jpg', 'text': 'Is there a dog?', 'label': 'no'}
  (tmp_path / 'coco_pope_popular.json').write_text(json.dumps(row) + '\n')
  (question,) = read_questions('pope', str(tmp_path))
  assert (question.row['answer'], question.row['category'], question.row['question']) == (
    'No',
    'popular',
    'Is there a dog?',
  )
  assert shades(question) == [60]
  for task, split in (('existence', False), ('scene', True)):
    folder = tmp_path / 'MME_Benchmark_release_version' / task
    texts, images = (folder / 'questions_answers_YN', folder / 'images') if split else (folder, folder)
    for path in (texts, images):
      path.mkdir(parents=True, exist_ok=True)
    (texts / '1.txt').write_text('One? Please answer yes or no.\tYes\nTwo?\tNo\n')
    (images / '1.jpg').write_bytes(png(70))
  questions = read_questions('mme', str(tmp_path))
  assert [question.row['category'] for question in questions] == ['existence'] * 2 + ['scene'] * 2
  assert questions[2].row['image_path'] == questions[3].row['image_path'] == 'scene/1.jpg'
  assert set(MME_TASKS) > {'existence', 'scene'}


def test_official_files_of_seed_gqa_and_mmvet(tmp_path):
  (tmp_path / 'images').mkdir()
  for name, shade in (('7_1', 1), ('n5', 2), ('v1_0', 3)):
    (tmp_path / 'images' / f'{name}.jpg').write_bytes(png(shade))
  question = {
    'question': '?',
    'answer': 'B',
    'data_id': '7_1',
    'data_type': 'image',
    'question_type_id': 1,
    'question_id': '3',
  }
  content = {'question_type': {'Scene': 1}, 'questions': [{**question, **{f'choice_{c}': c for c in 'abcd'}}]}
  (tmp_path / 'SEED-Bench.json').write_text(json.dumps(content))
  (found,) = read_questions('seedbench', str(tmp_path))
  assert (found.row['category'], found.row['D'], shades(found)) == ('Scene', 'd', [1])
  (tmp_path / 'testdev_balanced_questions.json').write_text(
    json.dumps({'11': {'question': '?', 'answer': 'red', 'imageId': 'n5', 'isBalanced': True}})
  )
  (found,) = read_questions('gqa', str(tmp_path))
  assert (found.row['questionId'], shades(found)) == ('11', [2])
  (tmp_path / 'mm-vet.json').write_text(
    json.dumps({'v1_0': {'imagename': 'v1_0.jpg', 'question': '?', 'answer': 'x', 'capability': ['rec', 'ocr']}})
  )
  (found,) = read_questions('mmvet', str(tmp_path))
  assert (found.index, found.row['category'], shades(found)) == ('v1_0', 'rec,ocr', [3])


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    (None, '', r'no questions of pope: expected POPE.tsv, or a folder pope'),
    ('POPE.tsv', 'index\tanswer\n1\tYes\n', 'has no column question: it has index, answer'),
    ('POPE.tsv', b'index\tquestion\n1\t\xff\n', 'expected a TSV in UTF-8'),
    ('POPE.tsv', 'index\timage\tquestion\n1\t5\t?\n', 'row 1 has the image of row 5, which has none'),
    ('POPE.tsv', 'index\timage\tquestion\n1\t1\t?\n', 'row 1 has the image of row 1, which has none'),
    ('POPE.tsv', 'index\tquestion\n1\t?\n1\t!\n', 'index 1 stands in it more than once'),
    ('POPE.tsv', 'index\tquestion\n\n1\t?\n2\n', 'row 3 has 1 columns: expected 2, as in the first line'),
    ('POPE.tsv', 'index\timage_path\tquestion\n1\t[a\t?\n', r"row 1: '\[a': expected a list"),
    ('POPE.tsv', f'index\timage\tquestion\n1\t["{"a" * 99}\t?\n', 'row 1: .*: expected a list'),
    ('POPE.tsv', '', 'has no column index'),
    ('coco_pope_random.json', '{"image": "a.jpg"}', 'no image a.jpg below it'),
    ('coco_pope_random.json', '{"text": "?"}', "KeyError 'image': expected the files of pope"),
    ('pope/x.parquet', 'nothing', 'expected a parquet file'),
  ],
)
def test_data_that_cannot_be_read_is_named(name, content, message, tmp_path):
  if name:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(InputError, match=message):
    read_questions('pope', str(tmp_path))


# --- what the adapters of the harnesses make of a row, by their own code

WORD = 'Answer the question using a single word or phrase.'
LETTER = "Answer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
  ('benchmark', 'row', 'images', 'text'),
  [
    ('pope', {'question': 'Is it? Please answer yes or no.'}, 1, f'\nIs it?\n{WORD}'),
    ('mme', {'question': 'Is it? Please answer yes or no.'}, 1, f'\nIs it? Please answer yes or no.\n{WORD}'),
    (
      'mmbench',
      {'question': 'What?', 'hint': 'h', 'A': 'x', 'B': 'None', 'C': 'z'},
      1,
      f'\nHint: h\nWhat?\nA. x\nC. z\n\n{LETTER}',
    ),
    ('mmmu', {'question': '<image 1> How?', 'A': '', 'B': ''}, 1, '\n<image 1> How?\nAnswer the question directly.'),
    ('gqa', {'question': 'Where?'}, 1, f'Where?\n{WORD}'),
  ],
)
def test_prompts_of_vlmevalkit(benchmark, row, images, text):
  (read,) = as_vlmevalkit_reads([row])
  assert vlmevalkit_prompt(benchmark, read, images).text == '<image_placeholder>' * images + text


@pytest.mark.parametrize(
  ('benchmark', 'row', 'text'),
  [
    ('pope', {'question': ' Is it? '}, f'Is it?\n{WORD}'),
    ('mme', {'question': 'Is it? Please answer yes or no.'}, f'Is it?\n{WORD}'),
    (
      'mmbench',
      {'question': 'What?', 'hint': 'h', 'A': 'x', 'B': 'y', 'C': 'nan'},
      f'h What? There are several options:\nA. x\nB. y\n\n{LETTER}',
    ),
    (
      'seedbench',
      {'question': 'How?', **{letter: letter.lower() for letter in 'ABCD'}},
      f'How?\nA. a\nB. b\nC. c\nD. d\n{LETTER}',
    ),
    ('mmmu', {'question': '<image 1> How?'}, f'<image 1> How?\n\n{WORD}'),
    ('mmmu', {'question': 'How?', 'A': 'x', 'B': 'y'}, f'How?\nA. x\nB. y\n\n{LETTER}'),
    ('mmbench', {'question': 'What?', 'hint': 'nan', 'A': 'x'}, f'What? There are several options:\nA. x\n\n{LETTER}'),
    ('mmbench', {'question': 'What?', 'hint': None, 'A': 'x'}, f'What? There are several options:\nA. x\n\n{LETTER}'),
    ('gqa', {'question': ' Is it? '}, f' Is it? \n{WORD}'),
    (
      'mmvet',
      {'question': 'Why?'},
      'First please perform reasoning, and think step by step to provide best answer to the following question: '
      '\n\nWhy?',
    ),
  ],
)
def test_prompts_of_lmms_eval(benchmark, row, text):
  assert lmms_text(benchmark, row) == text


def test_vlmevalkit_has_a_system_prompt_for_mmvet_alone():
  system = (
    'You are a helpful assistant. Please answer truthfully and write out your thinking step by step to be sure you get '
    'the right answer.'
  )
  assert vlmevalkit_prompt('mmvet', {'question': 'Why?'}, 1) == Prompt('<image_placeholder>\nWhy?', system)
  assert vlmevalkit_prompt('gqa', {'question': 'Why?'}, 0).system == ''
  assert trained_prompt('mmvet', {'question': 'Why?'}, 1) == Prompt('<image_placeholder>\nWhy?', SYSTEM_PROMPT)


def test_images_of_mmmu_stand_where_lmms_eval_puts_them():
  row = {'question': 'See <image 1> and <image 2>.', 'A': 'a', 'B': 'b'}
  assert lmms_prompt('mmmu', row, 2).text.startswith('See\n<image_placeholder>\nand\n<image_placeholder>\n.')
  assert lmms_prompt('mmmu', row, 1).text.startswith('See\n<image_placeholder>\n.')
