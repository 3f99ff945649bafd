"""Files for the authors' scorers, as those read them; VLMEvalKit's answer file is read in tests/e2e."""

import json

import pytest

from janus_jax.evaluation.exports import SUBMISSIONS, vlmevalkit_rows, write_answers
from janus_jax.evaluation.rows import as_vlmevalkit_reads


def lines(text):
  return [json.loads(line) for line in text.splitlines()]


def test_vlmevalkit_has_the_columns_without_images_and_the_prediction_last():
  rows = [{'index': 1, 'image': 'x', 'prediction': 'Yes', 'answer': 'No'}]
  assert [list(row.items()) for row in vlmevalkit_rows(rows)] == [
    [('index', 1), ('answer', 'No'), ('prediction', 'Yes')]
  ]


def test_pope_has_a_file_for_each_subset_in_the_order_of_its_questions():
  rows = [
    {'question': f'{n}?', 'prediction': text, 'category': category}
    for n, (text, category) in enumerate([('é yes', 'random'), ('no', 'random,popular')])
  ]
  first, second = ({'question': '0?', 'answer': 'é yes'}, {'question': '1?', 'answer': 'no'})
  files = SUBMISSIONS['pope'](rows)
  assert {name: lines(text) for name, text in files.items()} == {
    'coco_pope_popular_answers.json': [second],
    'coco_pope_random_answers.json': [first, second],
  }


def test_mme_has_a_file_for_each_task_and_pairs_stand_together():
  rows = [
    {
      'question': f'{n}?',
      'answer': answer,
      'prediction': '\n\nYes,\tit\r is',
      'category': 'OCR',
      'image_path': f'OCR/{image}',
    }
    for n, (answer, image) in enumerate([('Yes', 'b.png'), ('No', 'a.png'), ('No', 'b.png'), ('Yes', 'a.png')])
  ]
  order = [('a', 1, 'No'), ('a', 3, 'Yes'), ('b', 0, 'Yes'), ('b', 2, 'No')]
  expected = ''.join(f'{image}.png\t{n}?\t{answer}\t  Yes, it  is\n' for image, n, answer in order)
  assert SUBMISSIONS['mme'](rows) == {'Your_Results/OCR.txt': expected}


def test_seedbench_and_gqa_have_answers_by_question():
  row = {'index': 5, 'prediction': ' B. é'}
  assert SUBMISSIONS['seedbench']([row, {**row, 'question_id': 7}]) == {
    'results.json': '{"question_id": 5, "prediction": "B"}\n{"question_id": 7, "prediction": "B"}\n'
  }
  expected = [{'questionId': name, 'prediction': ' B. é'} for name in ('5', '6', '7')]
  (text,) = SUBMISSIONS['gqa']([row, {**row, 'id': 6}, {**row, 'id': 6, 'questionId': 7}]).values()
  assert text == json.dumps(expected, ensure_ascii=False)


def test_mmmu_has_a_file_for_each_subject():
  row = {'id': 'validation_Art_Theory_1', 'answer': 'B', 'prediction': 'B'}
  files = SUBMISSIONS['mmmu']([{**row, 'A': 'x', 'B': 'é'}, {**row, 'id': 'validation_Math_2', 'answer': '4'}])
  assert {name: json.loads(text) for name, text in files.items()} == {
    'Art_Theory/output.json': [
      {
        'id': row['id'],
        'question_type': 'multiple-choice',
        'answer': 'B',
        'response': 'B',
        'all_choices': ['A', 'B'],
        'index2ans': {'A': 'x', 'B': 'é'},
      }
    ],
    'Math/output.json': [{'id': 'validation_Math_2', 'question_type': 'open', 'answer': '4', 'response': 'B'}],
  }


def test_mmvet_has_answers_by_question_and_requests_for_a_judge():
  row = {'index': 3, 'question': 'Why?', 'answer': 'x', 'prediction': 'y', 'category': 'rec'}
  files = SUBMISSIONS['mmvet']([row, {**row, 'index': 4, 'question_id': 'v1_4'}])
  assert json.loads(files['answers.json']) == {'3': 'y', 'v1_4': 'y'}
  expected = {'question': 'Why?', 'answer': 'x', 'category': 'rec', 'prediction': 'y'}
  assert lines(files['judge_requests.jsonl']) == [{'index': 3, **expected}, {'index': 4, **expected}]


def test_a_spreadsheet_has_answers_as_vlmevalkit_writes_them(tmp_path):
  """What pandas reads of a file that VLMEvalKit e8e78f0 wrote of the same rows (its `dump`, by xlsxwriter)."""
  pandas = pytest.importorskip('pandas')
  texts = {'a\x00b\x1fc\td\ne': 'a_x0000_b_x001F_c\td\ne', 'a\r\nb\ufffe': 'a_x000D_\nb_xFFFE_'}
  texts |= {text: text for text in ('=1+1', '#REF!', "'yes", '-1', '_x0041_', ' lead')}
  rows = [{'index': i, 'question': 'q', 'answer': 'a', 'prediction': text} for i, text in enumerate(texts)]
  write_answers('gqa', rows, str(tmp_path), 'tiny')
  found = pandas.read_excel(tmp_path / 'tiny_GQA_TestDev_Balanced.xlsx')['prediction']
  assert list(found) == list(texts.values()) == [row['prediction'] for row in as_vlmevalkit_reads(rows)]
