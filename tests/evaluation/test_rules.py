"""The rules against the original scorers, whose functions gave the numbers in originals.json for made-up answers.

VLMEvalKit e8e78f0 and fbf0418, lmms-eval 0.7.3, POPE 3df3ba1, MMMU bb0b95a, geneval af4902f, ELLA 3c228f1, MME's
calculation.py as Bagel 056b5fd has it, and GQA's eval.py as Video-LLaVA 984e65b has it.
"""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.evaluation import dpg, geneval, gqa, mmmu, mmvet, multiple_choice, yes_no
from janus_jax.evaluation.benchmarks import BENCHMARKS

ORIGINALS = json.loads(Path(__file__).with_name('originals.json').read_text())


def lettered(options):
  return dict(zip('ABCDEFGHI', options))


def close(found, expected):
  return found == pytest.approx(expected, abs=1e-9)


def test_yes_and_no_are_read_as_the_originals_read_them():
  for text, now, then, pope, lmms in ORIGINALS['yes_no']:
    assert yes_no.vlmevalkit_answer(text, '2026') == now, text
    assert yes_no.vlmevalkit_answer(text, '2025') == then, text
    assert yes_no.official_pope_answer(text) == pope, text
    assert yes_no.lmms_mme_answer(text) == lmms, text


def test_options_are_found_as_the_originals_find_them():
  for text, options, now, then, lmms, extracted in ORIGINALS['choice']:
    choices = lettered(options)
    assert multiple_choice.vlmevalkit_option(text, choices, '2026') == now, text
    assert multiple_choice.vlmevalkit_option(text, choices, '2025') == then, text
    assert multiple_choice.lmms_option(text, choices) == lmms, text
    assert multiple_choice.lmms_extracted(text, list(choices)) == extracted, text


def test_mmmu_samples_an_option_where_the_originals_do():
  sampled = 0
  for text, options, official, is_random, lmms in ORIGINALS['mmmu_choice']:
    row = {'id': 'validation_Art_1', 'options': options, 'answer': 'A', 'question_type': 'multiple-choice'}
    readings, _ = mmmu.score_mmmu([{**row, 'prediction': text}], 'official')
    assert (readings[0].read, readings[0].is_random) == (official, is_random), text
    sampled += readings[0].is_random
    # Not through `score`, which strips answers for lmms-eval as it does itself.
    choices = lettered(options)
    assert (mmmu.find_option(text, choices, 'lmms-eval') or random.Random(0).choice(list(choices))) == lmms, text
  assert sampled > 10


def test_open_answers_of_mmmu_are_right_where_the_original_says_so():
  for text, gold, is_right in ORIGINALS['mmmu_open']:
    assert mmmu.is_open_right(gold, mmmu.open_answers(text)) == is_right, (text, gold)


@pytest.mark.parametrize('rule', ['lmms-eval', 'lmms-eval-static'])
def test_rotations_of_mmbench_count_as_in_lmms_eval(rule):
  case = ORIGINALS['mmbench']
  _, metrics = BENCHMARKS['mmbench'].rules[rule](case['rows'])
  overall, category, ability = case['expected'][rule]
  assert close(metrics['overall_acc_x100'], overall)
  assert close(metrics['category'], category)
  assert close(metrics['l2_category'], ability)


def test_what_lmms_eval_samples_is_counted():
  readings, _ = BENCHMARKS['mmbench'].rules['lmms-eval'](ORIGINALS['mmbench']['rows'])
  static, _ = BENCHMARKS['mmbench'].rules['lmms-eval-static'](ORIGINALS['mmbench']['rows'])
  assert sum(reading.is_random for reading in readings) > 3
  assert not any(reading.is_random for reading in static)


def test_generated_images_are_judged_as_by_geneval():
  for metadata, detections, colours, is_right, wrong in ORIGINALS['geneval']:
    row = {'metadata': metadata, 'detections': detections, 'colors_of_detections': colours}
    (reading,), _ = geneval.geneval_official([row])
    assert (bool(reading.score), sorted(reading.read.split('\n'))) == (is_right, wrong)


def test_dense_prompts_score_as_by_the_original():
  for data, predictions, expected, categories in ORIGINALS['dpg']:
    rows, _ = dpg.prepare_dpg(predictions, data, allow_partial=True)
    _, metrics = dpg.score_dpg(rows, is_official=True)
    assert close(metrics['DPG-Bench score'], expected)
    assert close(metrics['L2 category scores'], categories)


def test_gqa_scores_as_by_its_authors():
  rows, expected, details = ORIGINALS['gqa']
  _, metrics = gqa.gqa_official(rows, converted=False)
  assert close({name: metrics[name] for name in expected}, expected)
  for name in gqa.DETAILS:
    assert close(metrics[name], details[name])


@pytest.mark.parametrize(
  ('name', 'rule'), [(name, rule) for name, case in ORIGINALS['whole'].items() for rule in case if rule != 'rows']
)
def test_scores_are_those_of_the_original_programs(name, rule):
  """VLMEvalKit's are those of `dataset.evaluate` on an answer file, all the metrics it has."""
  rows, expected = ORIGINALS['whole'][name]['rows'], ORIGINALS['whole'][name][rule]
  _, metrics = BENCHMARKS[name.removesuffix('_ids')].rules[rule](rows)
  # lmms-eval rounds MMMU's accuracies to 5 digits.
  tolerance = 5.1e-6 if (name, rule) == ('mmmu_ids', 'lmms-eval') else 1e-9
  found = dict(flat(metrics))
  assert {path: found[path] for path, _ in flat(expected)} == pytest.approx(dict(flat(expected)), abs=tolerance)
  if rule == 'vlmevalkit-2026':
    assert len(found) == len(dict(flat(expected)))


def flat(metrics, above=()):
  for name, value in metrics.items():
    if isinstance(value, dict):
      yield from flat(value, (*above, name))
    else:
      yield (*above, name), value


# --- properties that no fixture shows


PROMPTS = [{'tag': 'colors', 'prompt': name, 'include': []} for name in 'ab']


@pytest.mark.parametrize(
  ('shown', 'partial', 'found'),
  [
    ('abab', False, 0),
    ('aba', True, 1),
    ('a', True, 1),
    ('aba', False, r"prompt 'b' \(1 in all\) has fewer than 2 images"),
    ('aac', True, "its prompt is not in the data: 'c'"),
    ('', True, 'no images to score'),
  ],
)
def test_each_prompt_of_geneval_has_as_many_images(shown, partial, found):
  rows = [{'metadata': {**PROMPTS[0], 'prompt': name}, 'correct': True} for name in shown]
  if isinstance(found, int):
    assert geneval.prepare_geneval(rows, PROMPTS, partial)[1] == found
    assert geneval.prepare_geneval(rows, None, False)[1] == 0
  else:
    with pytest.raises(InputError, match=found):
      geneval.prepare_geneval(rows, PROMPTS, partial)


@pytest.mark.parametrize(
  ('drop', 'partial', 'found'),
  [
    ((), False, 0),
    ((3,), True, 0),
    ((2, 3), True, 1),
    ((3,), False, r'b.png \(1 in all\) has fewer than 2 crops'),
    ((2, 3), False, r'prompt b \(1 of 2\) has no image'),
  ],
)
def test_each_prompt_of_dpg_has_an_image_and_each_image_as_many_crops(drop, partial, found):
  column = {'dependency': '0', 'tuple': 'entity - whole (x)', 'question_natural_language': '?'}
  data = [{'item_id': name, 'proposition_id': 1, **column} for name in 'ab']
  rows = [
    {'file': f'{name}.png', 'crop': [x, 0, x + 8, 8], 'question': '?', 'answer': 'yes'} for name in 'ab' for x in (0, 8)
  ]
  rows = [row for number, row in enumerate(rows) if number not in drop]
  if isinstance(found, int):
    assert dpg.prepare_dpg(rows, data, partial)[1] == found
  else:
    with pytest.raises(InputError, match=found):
      dpg.prepare_dpg(rows, data, partial)


def pope(predictions, category='random'):
  return [
    {'index': i, 'question': '?', 'answer': answer, 'category': category, 'prediction': text}
    for i, (answer, text) in enumerate(predictions)
  ]


def test_an_answer_that_is_nothing_to_pandas_is_unknown_to_vlmevalkit_alone():
  rows = [{'index': 0, 'answer': 'none', 'prediction': 'None'}, {'index': 1, 'answer': 'cat', 'prediction': 'cat'}]
  scores = {
    rule: [reading.score for reading in BENCHMARKS['gqa'].rules[rule](rows)[0]] for rule in BENCHMARKS['gqa'].rules
  }
  assert scores['vlmevalkit-2026'] == [0, 1]
  assert scores['lmms-eval'] == scores['official-llava'] == [1, 1]
  assert scores['official'] == [0, 1]


def test_a_question_of_pope_counts_once_for_each_of_its_subsets():
  rows = pope([('Yes', 'Yes')], 'random,popular') + pope([('No', 'Yes')], 'random')
  rows[1]['index'] = 1
  _, metrics = BENCHMARKS['pope'].rules['vlmevalkit-2026'](rows)
  assert metrics['Overall']['acc'] == pytest.approx(200 / 3)
  assert (metrics['popular']['acc'], metrics['random']['acc']) == (100, 50)


def test_a_recall_that_divides_by_nothing_is_none_where_the_original_fails():
  _, metrics = BENCHMARKS['pope'].rules['official'](pope([('No', 'no'), ('Yes', 'no')]))
  assert (metrics['all']['precision'], metrics['all']['recall'], metrics['all']['f1']) == (None, 0, None)


@pytest.mark.parametrize('text', ['no', 'it may be'])
def test_where_nothing_is_read_as_yes_the_harnesses_have_zeros(text):
  rows = pope([('No', 'no'), ('Yes', text)])
  _, metrics = BENCHMARKS['pope'].rules['vlmevalkit-2026'](rows)
  assert metrics['Overall'] == {'Overall': 0, 'acc': 50, 'precision': 0, 'recall': 0}
  _, metrics = BENCHMARKS['pope'].rules['lmms-eval'](rows)
  found = [metrics['all'][f'pope_{name}'] for name in ('accuracy', 'precision', 'recall', 'f1_score')]
  assert found == [0.5, 0, 0, 0]


@pytest.mark.parametrize('metadata', ['no JSON', '["tag", "prompt"]', {'tag': 'colors'}, None])
def test_an_image_of_geneval_names_its_prompt(metadata):
  with pytest.raises(InputError, match='row 1 has no metadata with tag and prompt'):
    geneval.geneval_official([{'metadata': metadata, 'correct': True}])


def test_a_colour_that_is_asked_for_was_judged():
  row = {'metadata': {'tag': 'colors', 'prompt': 'p', 'include': [{'class': 'cat', 'count': 1, 'color': 'red'}]}}
  with pytest.raises(InputError, match='a red cat, and its boxes have no colours_of_detections'):
    geneval.geneval_official([{**row, 'detections': {'cat': [[0, 0, 1, 1, 0.9]]}}])
  boxes = {'detections': {'cat': [[0, 0, 1, 1, 0.9]]}, 'colors_of_detections': {'cat': ['red', 'red']}}
  with pytest.raises(InputError, match='2 colours for 1 boxes of cat'):
    geneval.geneval_official([{**row, **boxes}])


def test_one_wrong_rotation_fails_a_question_of_mmbench_and_not_its_vanilla_score():
  row = {'question': '?', 'category': 'c', 'A': 'red', 'B': 'blue', 'C': None, 'D': None}
  rows = [
    {**row, 'index': 3, 'answer': 'A', 'prediction': 'A'},
    {**row, 'index': 1_000_003, 'answer': 'B', 'prediction': 'A'},
  ]
  _, metrics = BENCHMARKS['mmbench'].rules['vlmevalkit-2026'](rows)
  assert [metrics[name]['Overall'] for name in ('none', 'vanilla_0_none', 'vanilla_all_none')] == [0, 1, 0.5]


def test_open_questions_of_mmmu_become_options_in_vlmevalkit():
  row = {'id': 'validation_Art_1', 'question': '?', 'category': 'Art', 'split': 'validation'}
  rows = [
    {**row, 'index': 0, 'A': None, 'B': None, 'answer': '42', 'prediction': 'it is 42'},
    {**row, 'index': 1, 'A': None, 'B': None, 'answer': 'C', 'prediction': 'C'},  # Which is how it can't be right.
    {**row, 'index': 2, 'A': 'red', 'B': 'blue', 'answer': 'B', 'prediction': 'blue'},
  ]
  readings, _ = BENCHMARKS['mmmu'].rules['vlmevalkit-2026'](rows)
  assert [reading.score for reading in readings] == [1, 0, 1]


@pytest.mark.parametrize(
  ('replies', 'now', 'official', 'lmms'),
  [
    (['0.5'], 0.5, 0.5, 0.5),
    (['0.5 because', '1.0'], 1.0, 0.5, 0.5),
    (['bad', 'thrown away', '0.7'], 0.7, 0.7, 0.7),
    (['bad', '0.2', '0.7'], 0.2, 0.2, 0.7),
    (['x'] * 9, 0.0, 0.0, 0.0),
    (['1.5', '-1', '1e-1'], 0.1, 0.1, 0.1),
    (['', '', '', '0.7'], 0.7, 0.7, 0.0),
    (['', '', '0.7'], 0.7, 0.7, 0.7),
    (['1', '0'], 1.0, 1.0, 1.0),
    (['0', '1'], 0.0, 0.0, 0.0),
  ],
)
def test_replies_of_a_judge_are_read_in_the_order_of_tries(replies, now, official, lmms):
  assert mmvet.vlmevalkit_grade(iter(replies)) == now
  assert mmvet.official_grade(iter(replies)) == official
  assert mmvet.lmms_grade(iter(replies)) == lmms


def test_no_score_is_made_up_where_replies_end():
  row = {'category': 'rec,ocr', 'judge_replies': ['hm']}
  for rule in BENCHMARKS['mmvet'].rules.values():
    with pytest.raises(InputError, match='row 1: none of its 1 replies is a grade'):
      rule([row])


def test_capabilities_of_mmvet_are_means_in_which_one_alone_counts_twice():
  rows = [
    {'category': 'rec,ocr', 'judge_replies': ['1.0']},
    {'category': 'rec', 'judge_replies': '["0.5"]'},
  ]
  _, metrics = BENCHMARKS['mmvet'].rules['vlmevalkit-2026'](rows)
  assert metrics['score']['rec'] == metrics['score_fine']['rec'] == {'tot': 3, 'acc': pytest.approx(200 / 3)}
  assert metrics['score_fine']['rec_ocr'] == {'tot': 1, 'acc': 100}
  assert metrics['score']['math'] == {'tot': 0, 'acc': None}


def test_a_clean_rule_of_dpg_counts_the_first_row_and_passes_zeros_on():
  question = {'item_id': 'a', 'tuple': 'entity - whole (x)'}
  data = [
    {**question, 'proposition_id': 1, 'dependency': '2', 'question_natural_language': 'one?'},
    {**question, 'proposition_id': 2, 'dependency': '3', 'question_natural_language': 'two?'},
    {**question, 'proposition_id': 3, 'dependency': '0', 'question_natural_language': 'three?'},
  ]
  answers = {'one?': 'yes', 'two?': 'yes', 'three?': 'no'}
  predictions = [{'file': 'a.png', 'crop': [0, 0, 8, 8], 'question': text, 'answer': answers[text]} for text in answers]
  rows, _ = dpg.prepare_dpg(predictions, data, allow_partial=False)
  assert dpg.score_dpg(rows, is_official=False)[1]['DPG-Bench score'] == 0
  assert dpg.score_dpg(rows, is_official=True)[1]['DPG-Bench score'] == 0  # Questions 2 and 3 alone: 2 depends on 3.
  data[1]['dependency'], data[0]['dependency'] = '0', '3'
  rows, _ = dpg.prepare_dpg(predictions, data, allow_partial=False)
  assert dpg.score_dpg(rows, is_official=False)[1]['DPG-Bench score'] == pytest.approx(100 / 3)
  assert dpg.score_dpg(rows, is_official=True)[1]['DPG-Bench score'] == 50


def test_no_image_of_dpg_that_can_be_scored_has_no_score():
  data = [{'item_id': 'a', 'proposition_id': 1, 'dependency': '0', 'tuple': 't', 'question_natural_language': 'one?'}]
  predictions = [{'file': 'a.png', 'crop': [0, 0, 8, 8], 'question': 'one?', 'answer': 'yes'}]
  rows, _ = dpg.prepare_dpg(predictions, data, allow_partial=False)
  assert math.isnan(
    dpg.score_dpg(rows, is_official=True)[1]['DPG-Bench score']
  )  # Its only question is in the first row.
  assert dpg.score_dpg(rows, is_official=False)[1]['DPG-Bench score'] == 100


def test_options_in_a_list_are_options_to_vlmevalkit_too():
  row = {'index': 0, 'id': 'validation_Art_1', 'options': "['red', 'blue']", 'answer': 'B', 'prediction': 'blue'}
  assert BENCHMARKS['mmmu'].rules['vlmevalkit-2026']([row])[0][0].score == 1


def test_annotations_of_gqa_that_are_text_are_left_out():
  rows = [
    {'answer': 'red', 'prediction': 'red', 'types': '{}', 'semantic': '[]', 'groups': '{}', 'isBalanced': 'False'}
  ]
  rows.append({**rows[0], 'prediction': 'x', 'isBalanced': 'True'})
  assert gqa.gqa_official(rows, converted=False)[1] == {'accuracy': 0}


def test_only_the_first_full_stops_are_deleted():
  assert yes_no.vlmevalkit_answer('a. ' * 31 + 'yes.', '2026') == 'Yes'
  assert yes_no.vlmevalkit_answer('a. ' * 32 + 'yes.', '2026') == 'Unknown'  # The 33rd stays: the word is 'yes.'.


def test_a_direction_is_measured_by_the_whole_offset():
  # Revised offset (8, 6) over |(10, 8)| = 12.8: 0.62 and 0.47. Over its own length it would be 0.8 and 0.6.
  assert geneval.relations(np.array([10, 8, 20, 18, 1.0]), np.array([0, 0, 10, 10, 1.0])) == ['right of']
