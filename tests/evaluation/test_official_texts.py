"""Texts of GenEval's and DPG-Bench's own scorers, which wrote those in originals.json for the same rows."""

import json
from pathlib import Path

import pytest

from janus_jax.evaluation.benchmarks import BENCHMARKS
from janus_jax.evaluation.official_texts import dpg_texts, geneval_texts, write_official_texts
from janus_jax.evaluation.scores import score_rows

pytest.importorskip('pandas')
ORIGINALS = json.loads(Path(__file__).with_name('originals.json').read_text())


def test_geneval():
  predictions, results, summary = ORIGINALS['geneval_texts']
  rows, _ = BENCHMARKS['geneval'].prepare(predictions, None, False)
  lines, scores = score_rows('geneval', rows)
  texts = geneval_texts(rows, lines, scores[0]['metrics'], 'OUT')
  assert texts == {'results.jsonl': results, 'summary.txt': summary}
  metrics = scores[0]['metrics']
  assert f'Total images: {metrics["Total images"]}\nTotal prompts: {metrics["Total prompts"]}\n' in summary
  for name in ('% correct images', '% correct prompts'):
    assert f'{name}: {metrics[name]:.2f}%\n' in summary
  for tag, score in metrics['Task breakdown'].items():
    assert f'{tag:<16} = {score:.2f}% (' in summary
  assert summary.endswith(f'Overall score (avg. over tasks): {metrics["Overall score (avg. over tasks)"]:.5f}\n')
  again, _ = BENCHMARKS['geneval'].prepare([json.loads(line) for line in results.splitlines()], None, False)
  lines, scores = score_rows('geneval', again)
  assert geneval_texts(again, lines, scores[0]['metrics'], 'OUT') == texts


def test_dpg():
  data, predictions, expected = ORIGINALS['dpg_texts']
  rows, _ = BENCHMARKS['dpg'].prepare(predictions, data, True)
  lines, scores = score_rows('dpg', rows, 'official')
  texts = dpg_texts(rows, lines, scores[0]['metrics'], 'OUT')
  assert texts.keys() == expected.keys()
  for name, text in texts.items():  # The original's L1 categories stand in the order of a set.
    assert sorted(text.splitlines()) == sorted(expected[name].splitlines())
  assert texts['dpg-bench_results_detail.txt'] == expected['dpg-bench_results_detail.txt']


def test_they_stand_beside_the_scores_of_the_rule_official_alone(tmp_path):
  data, predictions, expected = ORIGINALS['dpg_texts']
  rows, _ = BENCHMARKS['dpg'].prepare(predictions, data, True)
  lines, scores = score_rows('dpg', rows, 'official')
  write_official_texts('dpg', rows, lines, [{**scores[0], 'rule': 'clean'}], str(tmp_path))
  assert not list(tmp_path.iterdir())
  write_official_texts('dpg', rows, lines, scores, str(tmp_path))
  assert {path.name for path in tmp_path.iterdir()} == set(expected)
