"""The texts that GenEval's and DPG-Bench's own scorers write and print, to the character, of rows that were scored.

GenEval (af4902f): the file of `evaluate_images.py` and the text of `summary_scores.py`. DPG-Bench (3c228f1): both files
of `compute_dpg_bench.py`, of one process that is called with --res-path=DIR/dpg-bench_results.txt. The originals take
images in the order of a directory's listing, these in the order of the rows; and DPG-Bench lists its L1 categories in
the order of a set, which differs between runs.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.data.whole_files import write_text
from janus_jax.evaluation import dpg, geneval
from janus_jax.evaluation.rows import Row, pandas
from janus_jax.evaluation.rules import grouped, mean

RULE = 'official'
DPG_RESULTS = 'dpg-bench_results.txt'
Lines = Sequence[Mapping[str, Any]]


def geneval_texts(rows: Sequence[Row], lines: Lines, metrics: Mapping[str, Any], directory: str) -> dict[str, str]:
  """results.jsonl, which `summary_scores.py` reads, and summary.txt, which it prints."""
  results = [_geneval_result(number, row, line[RULE]) for number, (row, line) in enumerate(zip(rows, lines), 1)]
  correct = [result['correct'] for result in results]
  prompts = [max(correct[index] for index in some) for some in grouped(results, 'metadata').values()]
  tasks = {tag: [correct[index] for index in some] for tag, some in grouped(results, 'tag').items()}
  summary = [
    'Summary',
    '=======',
    f'Total images: {len(results)}',
    f'Total prompts: {len(prompts)}',
    f'% correct images: {mean(correct):.2%}',
    f'% correct prompts: {mean(prompts):.2%}',
    '',
    'Task breakdown',
    '==============',
    *(f'{tag:<16} = {mean(some):.2%} ({sum(some)} / {len(some)})' for tag, some in tasks.items()),
    '',
    f'Overall score (avg. over tasks): {np.mean([mean(some) for some in tasks.values()]):.5f}',
  ]
  written = pandas().DataFrame(results).to_json(orient='records', lines=True)
  return {'results.jsonl': written, 'summary.txt': ''.join(f'{line}\n' for line in summary)}


def _geneval_result(number: int, row: Row, reading: Mapping[str, Any]) -> dict[str, Any]:
  metadata = geneval.read_metadata(row, number)
  details = row.get('details', '{}')
  if 'detections' in row:
    found = geneval.kept_boxes(row, geneval.threshold_for(metadata))
    details = json.dumps({name: [box.tolist() for box, _ in boxes] for name, boxes in found.items()})
  return {
    'filename': row['index'],
    'tag': metadata['tag'],
    'prompt': metadata['prompt'],
    'correct': bool(reading['score']),
    'reason': reading['read'],
    'metadata': json.dumps(metadata),
    'details': details,
  }


def dpg_texts(rows: Sequence[Row], lines: Lines, metrics: Mapping[str, Any], directory: str) -> dict[str, str]:
  """A line for each image and the scores; and a line for each answer."""
  images, answers = [], []
  for row, line in zip(rows, lines):
    reading, questions = line[RULE], dpg.questions_of(row, is_official=True)
    failed = reading['read'] == 'failed'
    if not failed:
      images.append(', '.join(map(str, [row['index'], *reading['read'], reading['score']])))
    # A question that depends on one that does not exist is noticed after the first crop.
    for box, given in zip(row['boxes'][: 1 if failed else None], row['crops']) if questions else ():
      by_number = dpg.answers_by_number(questions, given, row['index'])
      answers += [f'{row["index"]}, {box}, {questions[number]["text"]}, {by_number[number]}' for number in by_number]
  root = os.path.dirname(rows[0]['index'])
  score = metrics['DPG-Bench score']
  results = [*images, f'Model: {os.path.basename(root)}']
  for level in ('L1', 'L2'):
    title = f'{level} category scores'
    results += [f'{title}:', *(f'\t{name}: {value}' for name, value in metrics[title].items())]
  results += [f'Image path: {root}', f'Save results to: {os.path.join(directory, DPG_RESULTS)}']
  results.append(f'DPG-Bench score: {"nan" if score is None else score}')
  texts = {DPG_RESULTS: results, DPG_RESULTS.replace('.txt', '_detail.txt'): answers}
  return {name: ''.join(f'{line}\n' for line in text) for name, text in texts.items()}


TEXTS: dict[str, Callable[[Sequence[Row], Lines, Mapping[str, Any], str], dict[str, str]]] = {
  'geneval': geneval_texts,
  'dpg': dpg_texts,
}


def write_official_texts(benchmark: str, rows: Sequence[Row], lines: Lines, scores: Lines, directory: str) -> None:
  """Writes the texts of a benchmark that has any, where its rule `official` is among the scores."""
  score = next((score for score in scores if score['rule'] == RULE), None)
  if benchmark in TEXTS and score is not None:
    for name, text in TEXTS[benchmark](rows, lines, score['metrics'], directory).items():
      write_text(os.path.join(directory, name), text)
