"""Answers in the files that the harnesses and the authors' scorers read."""

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from janus_jax.data.whole_files import write_text
from janus_jax.errors import InputError
from janus_jax.evaluation.mmmu import choices_of, is_open, subject_of
from janus_jax.evaluation.rows import Row, pandas, spreadsheet_text
from janus_jax.evaluation.rules import grouped

# Names of VLMEvalKit's datasets, which its answer files carry.
DATASETS = {
  'pope': 'POPE',
  'mme': 'MME',
  'mmbench': 'MMBench_DEV_EN',
  'seedbench': 'SEEDBench_IMG',
  'gqa': 'GQA_TestDev_Balanced',
  'mmmu': 'MMMU_DEV_VAL',
  'mmvet': 'MMVet',
}


def vlmevalkit_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
  """Rows as `<model>_<dataset>.xlsx` has them: the dataset's columns without images, and the prediction last."""
  kept = [{name: value for name, value in row.items() if name not in ('image', 'prediction')} for row in rows]
  return [{**row, 'prediction': source['prediction']} for row, source in zip(kept, rows)]


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
  return ''.join(f'{json.dumps(row, ensure_ascii=False)}\n' for row in rows)


def _one_line(text: str) -> str:
  """Text with blanks for tabs and line breaks, each of which would cost MME's scorer the line."""
  return text.translate(dict.fromkeys(map(ord, '\t\n\r'), ' '))


def _pope(rows: Sequence[Row]) -> dict[str, str]:
  """A file of answers for each subset, in the order of its questions."""
  answers = [{'question': row['question'], 'answer': row['prediction'], 'category': row['category']} for row in rows]
  subsets = sorted({name for row in answers for name in str(row['category']).split(',')})
  files = {}
  for subset in subsets:
    kept = [row for row in answers if subset in str(row['category']).split(',')]
    files[f'coco_pope_{subset}_answers.json'] = _lines([{k: row[k] for k in ('question', 'answer')} for row in kept])
  return files


def _mme(rows: Sequence[Row]) -> dict[str, str]:
  """Your_Results/<task>.txt: image, question, gold answer and answer, joined by tabs; pairs stand together."""
  files = {}
  for task, indices in grouped(rows, 'category').items():
    found = sorted((rows[index] for index in indices), key=lambda row: str(row['image_path']))
    fields = [
      (os.path.basename(str(row['image_path'])), row['question'], row['answer'], _one_line(row['prediction']))
      for row in found
    ]
    files[f'Your_Results/{task}.txt'] = ''.join('\t'.join(map(str, line)) + '\n' for line in fields)
  return files


def _seedbench(rows: Sequence[Row]) -> dict[str, str]:
  return {
    'results.json': _lines(
      [
        {'question_id': row.get('question_id', row['index']), 'prediction': row['prediction'].strip()[:1]}
        for row in rows
      ]
    )
  }


def _gqa(rows: Sequence[Row]) -> dict[str, str]:
  found = [
    {'questionId': str(row.get('questionId', row.get('id', row['index']))), 'prediction': row['prediction']}
    for row in rows
  ]
  return {'testdev_balanced_predictions.json': json.dumps(found, ensure_ascii=False)}


def _mmmu(rows: Sequence[Row]) -> dict[str, str]:
  """<Subject>/output.json, for the authors' main_parse_and_eval.py."""
  by_subject: dict[str, list[dict[str, Any]]] = {}
  for row in rows:
    kind = 'open' if is_open(row) else 'multiple-choice'
    entry = {'id': row['id'], 'question_type': kind, 'answer': row['answer'], 'response': row['prediction']}
    if kind == 'multiple-choice':
      choices = choices_of(row)
      entry |= {'all_choices': list(choices), 'index2ans': choices}
    by_subject.setdefault(subject_of(row), []).append(entry)
  return {f'{subject}/output.json': json.dumps(found, ensure_ascii=False) for subject, found in by_subject.items()}


def _mmvet(rows: Sequence[Row]) -> dict[str, str]:
  """Answers by question, for the authors' scorer; and what each judge is asked, whose replies `score` reads."""
  answers = {str(row.get('question_id', row['index'])): row['prediction'] for row in rows}
  asked = ('index', 'question', 'answer', 'category', 'prediction')
  requests = [{name: row[name] for name in asked if name in row} for row in rows]
  return {'answers.json': json.dumps(answers, ensure_ascii=False), 'judge_requests.jsonl': _lines(requests)}


SUBMISSIONS: Mapping[str, Callable[[Sequence[Row]], dict[str, str]]] = {
  'pope': _pope,
  'mme': _mme,
  'seedbench': _seedbench,
  'gqa': _gqa,
  'mmmu': _mmmu,
  'mmvet': _mmvet,
}


def submission_files(benchmark: str, rows: Sequence[Row]) -> dict[str, str]:
  """Name -> content of the files for the authors' scorers. Raises InputError where a row lacks a column for them."""
  try:
    return SUBMISSIONS[benchmark](rows) if benchmark in SUBMISSIONS else {}
  except KeyError as error:
    have = ', '.join(name for name in rows[0] if name != 'prediction')
    raise InputError(f'{benchmark}: a question has no column {error}: it has {have}') from None


def write_answers(benchmark: str, rows: Sequence[Row], directory: str, model: str) -> list[str]:
  """Writes VLMEvalKit's answer file and the files for the authors' scorers. Returns their names."""
  name = f'{model}_{DATASETS[benchmark]}.xlsx'
  frame = pandas().DataFrame(vlmevalkit_rows(rows))
  with pandas().ExcelWriter(os.path.join(directory, name), engine='openpyxl') as writer:
    frame.map(spreadsheet_text).to_excel(writer, index=False)
    for cell in itertools.chain(*writer.book.active):
      if isinstance(cell.value, str):
        cell.data_type = 's'  # '=1' is no formula, '#REF!' no error: both would be read as nothing.
  files = submission_files(benchmark, rows)
  for path, text in files.items():
    path = os.path.join(directory, 'submission', path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_text(path, text)
  return [name, *(f'submission/{path}' for path in files)]
