"""What the rules make of unusual rows, as the original programs make it; and rows that they refuse."""

import pytest

from janus_jax.errors import InputError
from janus_jax.evaluation import dpg, mmvet, yes_no
from janus_jax.evaluation.benchmarks import BENCHMARKS


def mme(category='OCR', **columns):
  return [
    {'category': category, 'answer': answer, 'prediction': text, 'image_path': 'a', **columns}
    for answer, text in ((' Yes. ', 'yes'), ('no', 'no'))
  ]


def test_images_of_mme_have_two_questions_and_either_name():
  for rule in ('lmms-eval', 'official'):
    for rows in (mme(), [{**row, 'image_path': None, 'question_id': 'a'} for row in mme()]):
      _, metrics = BENCHMARKS['mme'].rules[rule]([{k: v for k, v in row.items() if v is not None} for row in rows])
      assert metrics['OCR'] == 200
    with pytest.raises(InputError, match='OCR: image b has 1 questions: expected 2'):
      BENCHMARKS['mme'].rules[rule]([*mme(), mme(image_path='b')[0]])
    with pytest.raises(InputError, match='no column'):
      BENCHMARKS['mme'].rules[rule]([*mme(), {**mme()[0], 'image_path': 'b'}, {'category': 'OCR'}])
  assert BENCHMARKS['mme'].rules['official'](mme('scene'))[1] == {'Perception': 200, 'scene': 200, 'Cognition': 0}
  with pytest.raises(InputError, match='MME has no question of the category existence: expected all 14'):
    BENCHMARKS['mme'].rules['vlmevalkit-2026'](mme())


@pytest.mark.parametrize('version', ['2025', '2026'])
def test_a_carriage_return_is_a_code_to_vlmevalkit(version):
  """Its spreadsheet has yes_x000D_, which is no yes."""
  row = {'index': 0, 'answer': 'Yes', 'category': 'random', 'prediction': 'yes\r it is'}
  (reading,), _ = BENCHMARKS['pope'].rules[f'vlmevalkit-{version}']([row])
  assert reading.read == 'Unknown'
  rows = [row for name in (*yes_no.PERCEPTION, *yes_no.COGNITION) for row in mme(name)]
  rows[0]['prediction'] = 'yes\r it is'
  readings, _ = BENCHMARKS['mme'].rules[f'vlmevalkit-{version}'](rows)
  assert [reading.read for reading in readings[:3]] == ['Unknown', 'No', 'Yes']


def test_the_first_rotation_of_question_0_counts_as_unrotated():
  row = {'question': '?', 'category': 'c', 'A': 'red', 'B': 'blue', 'answer': 'A', 'prediction': 'A'}
  rows = [{**row, 'index': 0}, {**row, 'index': 1_000_000, 'prediction': 'B'}, {**row, 'index': 2_000_000}]
  _, metrics = BENCHMARKS['mmbench'].rules['vlmevalkit-2026'](rows)
  assert [metrics[name]['Overall'] for name in ('vanilla_0_none', 'vanilla_all_none')] == [0.5, pytest.approx(2 / 3)]


@pytest.mark.parametrize('replies', ['0.5', '{"0.5": 1}', 'x', [0.5], ['0.5', None], None])
def test_replies_of_a_judge_are_texts(replies):
  with pytest.raises(InputError, match=r'row 1: judge_replies is .*: expected a list of texts'):
    mmvet.mmvet_vlmevalkit([{'category': 'rec', 'judge_replies': replies}])


@pytest.mark.parametrize('rule', ['vlmevalkit-2026', 'lmms-eval', 'official'])
def test_capabilities_of_mmvet_may_be_a_list(rule):
  rows = [{'category': ['rec', 'ocr'], 'judge_replies': ['1.0']}, {'category': ['ocr'], 'judge_replies': ['0.5']}]
  same = [{**row, 'category': ','.join(row['category'])} for row in rows]
  assert BENCHMARKS['mmvet'].rules[rule](rows) == BENCHMARKS['mmvet'].rules[rule](same)


def test_questions_of_gqa_without_groups_have_no_distribution():
  annotated = {'question': 'a b', 'types': {'structural': 'query', 'semantic': 'rel'}, 'semantic': []}
  rows = [{'answer': 'red', 'prediction': 'red', **annotated, 'groups': {'global': None}}]
  _, metrics = BENCHMARKS['gqa'].rules['official'](rows)
  found = [metrics[name] for name in ('accuracy', 'open', 'binary', 'distribution')]
  assert found == [100, 100, 0, None]  # Where the original divides by zero.
  assert metrics['accuracyPerLength'] == {'2': 100}
  rows[0].pop('groups')
  assert BENCHMARKS['gqa'].rules['official'](rows)[1] == {'accuracy': 100}


def test_blanks_and_case_of_both_answers_are_nothing_to_vlmevalkit():
  (reading,), _ = BENCHMARKS['gqa'].rules['vlmevalkit-2026']([{'answer': ' Red ', 'prediction': 'rED\n'}])
  assert reading.score == 1


@pytest.mark.parametrize('rule', ['vlmevalkit-2026', 'lmms-eval', 'official', 'official-llava'])
def test_rows_without_answers_are_refused(rule):
  with pytest.raises(InputError, match='row 1 has no column prediction'):
    BENCHMARKS['gqa'].rules[rule]([{'answer': 'red'}])
  with pytest.raises(InputError, match='no rows to score'):
    BENCHMARKS['gqa'].rules[rule]([])


def test_seedbench_has_accuracies_by_type_where_each_question_has_one():
  rows = [{'answer': 'A', 'prediction': 'A.', 'category': 'c'}, {'answer': 'A', 'prediction': ' A', 'category': 'd'}]
  _, metrics = BENCHMARKS['seedbench'].rules['official'](rows)
  assert (metrics['total_accuracy'], metrics['per_type']) == (50, {'c': 100, 'd': 0})
  del rows[1]['category']
  assert 'per_type' not in BENCHMARKS['seedbench'].rules['official'](rows)[1]


def test_mmmu_has_lists_of_answers_and_what_is_right_without_chance():
  row = {'id': 'validation_Art_1', 'options': "['red', 'blue']", 'question_type': 'multiple-choice'}
  rows = [
    {**row, 'options': '[]', 'question_type': 'open', 'answer': ['4', 'four'], 'prediction': 'it is four'},
    {**row, 'answer': ['A', 'B'], 'prediction': 'neither'},
    {**row, 'answer': ['B', 'A'], 'prediction': 'B'},
  ]
  for rule in ('official', 'lmms-eval'):
    readings, metrics = BENCHMARKS['mmmu'].rules[rule](rows)
    assert [(reading.score, reading.is_random) for reading in readings] == [(1, False), (1, True), (1, False)]
    assert (metrics['Overall']['acc'], metrics['without_random']) == (1, pytest.approx(2 / 3))
    with pytest.raises(InputError, match="MMMU has no subject 'Arts'"):
      BENCHMARKS['mmmu'].rules[rule]([{**rows[0], 'id': 'validation_Arts_1'}])


def test_blanks_around_answers_to_mmmu_and_the_kind_of_a_question():
  row = {'id': 'validation_Art_1', 'options': "['red', 'blue']", 'answer': 'B', 'prediction': 'B\n'}
  (reading,), _ = BENCHMARKS['mmmu'].rules['lmms-eval']([row])
  assert (reading.read, reading.is_random) == ('B', False)
  (reading,), _ = BENCHMARKS['mmmu'].rules['official']([{**row, 'question_type': 'open', 'answer': '4'}])
  assert (reading.read, reading.score) == ([' b', 'b '], 0)
  (reading,), _ = BENCHMARKS['mmmu'].rules['official']([{**row, 'options': '', 'A': 'x', 'B': '', 'prediction': 'A'}])
  assert (reading.read, reading.score) == ('A', 0)


QUESTIONS = [
  {'item_id': 'a', 'proposition_id': n, 'dependency': '0', 'tuple': f'{kind} (x)', 'question_natural_language': text}
  for n, kind, text in ((1, 'other', 'skipped?'), (2, 'global', 'same?'), (3, 'entity - whole', 'same?'))
]


def answers_of_dpg(*corners, file='a.png'):
  """Of each crop, 8 wide, a yes to the last question alone if it stands at the right and below."""
  last = max(corners)
  return [
    {'file': file, 'crop': [x, y, x + 8, y + 8], 'question': text, 'answer': answer}
    for x, y in corners
    for text, answer in (('skipped?', 'no'), ('same?', 'no'), ('same?', 'yes' if (x, y) == last else 'no'))
  ]


@pytest.mark.parametrize('corners', [[(0, 0), (8, 0), (0, 8), (8, 8)], [(8, 8), (0, 8), (8, 0), (0, 0)]])
def test_categories_of_dpg_are_those_of_the_last_crop_wherever_its_answers_stand(corners):
  rows, _ = dpg.prepare_dpg(answers_of_dpg(*corners), QUESTIONS, False)
  (reading,), metrics = BENCHMARKS['dpg'].rules['official'](rows)
  assert (reading.read, reading.score) == ([0, 0, 0, 0.5], 0.125)
  assert list(metrics['L2 category scores'].items()) == [('entity - whole', 100), ('global', 0)]
  assert metrics['L1 category scores'] == {'global': 0, 'entity': 100}
  (reading,), metrics = BENCHMARKS['dpg'].rules['clean'](rows)
  assert reading.score == pytest.approx(1 / 12)
  assert metrics['L2 category scores'] == {'other': 0, 'global': 0, 'entity - whole': 25}


def test_images_of_dpg_that_fail_are_left_out_officially_and_else_refused():
  rows, _ = dpg.prepare_dpg([*answers_of_dpg((0, 0)), *answers_of_dpg((0, 0), file='b.png')], QUESTIONS, False)
  orphan = [*QUESTIONS[:2], {**QUESTIONS[2], 'dependency': '7'}]
  without_parent, _ = dpg.prepare_dpg(answers_of_dpg((0, 0)), orphan, False)
  for failed, message in ((rows, "b.png: no question is about 'b'"), (without_parent, 'depends on 7, which does not')):
    readings, _ = BENCHMARKS['dpg'].rules['official'](failed)
    assert (readings[-1].read, readings[-1].score) == ('failed', 0)
    with pytest.raises(InputError, match=message):
      BENCHMARKS['dpg'].rules['clean'](failed)
  with pytest.raises(InputError, match=r"a.png: no answer to 'same\?'"):
    BENCHMARKS['dpg'].rules['official'](dpg.prepare_dpg(answers_of_dpg((0, 0))[:1], QUESTIONS, False)[0])
  with pytest.raises(InputError, match='DPG-Bench has no data'):
    dpg.prepare_dpg(answers_of_dpg((0, 0)), None, False)
  assert dpg.prepare_dpg(answers_of_dpg((0, 0)), [*QUESTIONS, {**QUESTIONS[0], 'item_id': 'z'}], True)[1] == 1


def test_zeros_of_dpg_do_not_pass_through_a_later_question_officially():
  texts = ('skipped?', 'two?', 'three?', 'four?')
  question = {'item_id': 'a', 'tuple': 'entity - whole (x)'}
  data = [
    {**question, 'proposition_id': number, 'dependency': parent, 'question_natural_language': text}
    for number, (text, parent) in enumerate(zip(texts, ('0', '3', '4', '0')), 1)
  ]
  crop = {'file': 'a.png', 'crop': [0, 0, 8, 8]}
  predictions = [{**crop, 'question': text, 'answer': 'no' if text == 'four?' else 'yes'} for text in texts]
  rows, _ = dpg.prepare_dpg(predictions, data, allow_partial=False)
  assert dpg.score_dpg(rows, is_official=True)[1]['DPG-Bench score'] == pytest.approx(100 / 3)
  assert dpg.score_dpg(rows, is_official=False)[1]['DPG-Bench score'] == 25  # The first question counts, and is yes.
