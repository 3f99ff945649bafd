"""Predictions and the questions they answer, from files as people have them: JSON lines, TSV, xlsx.

pandas is imported where a file is read (extra `evaluation`): VLMEvalKit keeps answers in files that pandas writes and
reads, and what comes back is not always what went in (`as_vlmevalkit_reads`).
"""

import functools
import io
import json
import os
import re
import types
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.errors import InputError, one_line, shown

Row = Mapping[str, Any]
FORMATS = ('.jsonl', '.json', '.tsv', '.csv', '.xlsx')
# Columns that tell a question from others; the first that both files have joins them.
KEYS = ('index', 'id', 'question_id', 'questionId')
# Columns that rules tell rows apart and group them by: text or a number each.
PLAIN = (*KEYS, 'category', 'l2-category', 'split', 'data_type', 'image_path', 'image_source', 'imageId', 'data_id')
# Names that datasets give the columns of VLMEvalKit's files, which are ours.
COLUMNS = {
  'text': 'question',
  'label': 'answer',
  'capability': 'category',
  'L2-category': 'l2-category',
  **{f'choice_{letter.lower()}': letter for letter in 'ABCD'},
}

# Characters that a spreadsheet cannot hold. VLMEvalKit's (xlsxwriter) have '_x0007_' in their place, and so read it.
UNHELD = re.compile('[\x00-\x08\x0b-\x1f\ufffe\uffff]')


def pandas() -> types.ModuleType:
  """The package. Raises InputError where it is not installed."""
  try:
    import pandas
  except ImportError as error:
    raise InputError(f'scoring reads tables by pandas ({error}): pip install janus_jax[evaluation]') from None
  return pandas


def read_rows(path: str) -> list[dict[str, Any]]:
  """Rows of a file; those of TSV and xlsx hold strings, '' for an empty cell.

  Raises:
    InputError: another kind of file, one that cannot be read, or one without rows.
    OSError: no such file.
  """
  suffix = os.path.splitext(path)[1].lower()
  if suffix not in FORMATS:
    raise InputError(f'{path}: expected a file that ends with one of {", ".join(FORMATS)}')
  try:
    rows = _read_json_lines(path) if suffix == '.jsonl' else _read_file(path, suffix)
  except InputError:
    raise
  except (ValueError, KeyError, ImportError, RecursionError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
    # UnicodeError, JSONDecodeError and pandas' are ValueErrors; the XML of a spreadsheet raises SyntaxErrors.
    form = f'a {suffix} file' if suffix == '.xlsx' else f'a {suffix} file in UTF-8'
    raise InputError(f'{path}: cannot be read: {one_line(error)}: expected {form}') from None
  if not rows:
    raise InputError(f'{path} has no rows: expected some')
  return rows


def _read_file(path: str, suffix: str) -> list[dict[str, Any]]:
  if suffix == '.json':
    with open(path, encoding='utf-8-sig') as file:
      rows = json.load(file)
    json.dumps(rows, ensure_ascii=False).encode()  # JSON can spell half a character, which no file can hold.
    if isinstance(rows, dict):  # GQA's questions, by their id.
      rows = [{'questionId': name, **row} if isinstance(row, dict) else None for name, row in rows.items()]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
      raise InputError(f'{path}: expected a list of objects')
    return rows
  read_csv, read_excel = pandas().read_csv, functools.partial(pandas().read_excel, engine='openpyxl')
  read = {'.tsv': functools.partial(read_csv, sep='\t'), '.csv': read_csv, '.xlsx': read_excel}[suffix]
  return read(path, dtype=str, keep_default_na=False).to_dict('records')


def _read_json_lines(path: str) -> list[dict[str, Any]]:
  rows = []
  with open(path, encoding='utf-8-sig') as file:
    for number, line in enumerate(file, 1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # JSON can spell half a character, which no file can hold.
      except (ValueError, RecursionError) as error:
        raise InputError(f'{path}, line {number}: {one_line(error)}: expected a JSON object') from None
      if not isinstance(row, dict):
        raise InputError(f'{path}, line {number}: expected a JSON object, got {shown(row)}')
      rows.append(row)
  return rows


def read_appended(path: str) -> list[dict[str, Any]]:
  """Rows of a JSON-lines file that is appended to; cuts off what a killed run left of a line. No file: none."""
  if not os.path.exists(path):
    return []
  with open(path, 'rb+') as file:
    file.truncate(file.read().rfind(b'\n') + 1)
  try:
    return _read_json_lines(path)
  except UnicodeDecodeError as error:
    raise InputError(f'{path}: {one_line(error)}: expected JSON lines in UTF-8') from None


def join(
  predictions: Sequence[Row], data: Sequence[Row] | None, allow_partial: bool = False
) -> tuple[list[dict[str, Any]], int]:
  """Predictions with the columns of the dataset, in its order.

  Args:
    predictions: with 'prediction', and one of KEYS where `data` is given.
    data: the dataset's rows, with the same one of KEYS; None where predictions have all columns.
    allow_partial: whether some of the dataset's rows may have no prediction; they are left out.

  Returns:
    Rows, and the number of the dataset's rows that have no prediction.

  Raises:
    InputError: a column is missing; a key is repeated, unknown, or (unless `allow_partial`) has no prediction.
  """
  if not predictions:
    raise InputError('no predictions to score')
  rows = [{COLUMNS.get(name, name): value for name, value in row.items()} for row in predictions]
  for number, row in enumerate(rows, 1):
    if 'prediction' not in row and 'judge_replies' not in row:
      raise InputError(f'row {number} of the predictions has no column prediction: {", ".join(row) or "none at all"}')
    row['prediction'] = '' if row.get('prediction') is None else row['prediction']
    _check_plain(row, f'row {number} of the predictions')
  if data is None:
    if all('index' in row for row in rows):
      _by_key(rows, 'index', 'predictions')
    return [{'index': number, **row} for number, row in enumerate(rows)], 0
  key = next((name for name in KEYS if name in rows[0] and data and name in data[0]), None)
  if key is None:
    raise InputError(f'predictions and data have no column in common that tells questions apart: {", ".join(KEYS)}')
  wanted, given = _by_key(data, key, 'data'), _by_key(rows, key, 'predictions')
  if unknown := [name for name in given if name not in wanted]:
    raise InputError(
      f'{key} {unknown[0]} ({len(unknown)} in all) is not in the data: are these answers to another set?'
    )
  missing = [name for name in wanted if name not in given]
  if missing and not allow_partial:
    raise InputError(f'{key} {missing[0]} ({len(missing)} of {len(wanted)} rows) has no prediction: expected one each')
  named = [{COLUMNS.get(name, name): value for name, value in row.items()} for row in data]
  for number, row in enumerate(named, 1):
    _check_plain(row, f'row {number} of the data')
  # What predictions say of a question is not trusted; of what else they hold (a judge's replies) nothing is lost.
  joined = [{**given[str(row[key])], **row} for row in named if str(row[key]) in given]
  return [{'index': number, **row} for number, row in enumerate(joined)], len(missing)


def _by_key(rows: Sequence[Row], key: str, what: str) -> dict[str, Row]:
  found: dict[str, Row] = {}
  for number, row in enumerate(rows, 1):
    if key not in row:
      raise InputError(f'row {number} of the {what} has no column {key}: expected one')
    if str(row[key]) in found:
      raise InputError(f'{key} {row[key]} stands in the {what} more than once')
    found[str(row[key])] = row
  return found


def _check_plain(row: Row, what: str) -> None:
  for name in PLAIN:
    is_list = name == 'category' and isinstance(row.get(name), list)  # MM-Vet's capabilities.
    if isinstance(row.get(name), dict | list) and not (is_list and 'judge_replies' in row):
      raise InputError(f'{what}: {name} is {shown(row[name])}: expected text or a number')


def require_text(rows: Sequence[Row], columns: Sequence[str], what: str = '') -> None:
  """Raises InputError where a column of a row is no text; `what` says whose row."""
  for number, row in enumerate(rows, 1):
    for name in columns:
      if not isinstance(row[name], str):
        raise InputError(f'row {number}{what}: {name} is {shown(row[name])}: expected text')


def require(rows: Sequence[Row], columns: Sequence[str]) -> None:
  """Raises InputError where a row lacks a column that a rule needs, or there are no rows."""
  if not rows:
    raise InputError('no rows to score')
  for number, row in enumerate(rows, 1):
    if missing := [name for name in columns if name not in row]:
      have = ', '.join(sorted(row))
      raise InputError(f'row {number} has no column {missing[0]}: expected {", ".join(columns)}; it has {have}')


def as_vlmevalkit_reads(rows: Sequence[Row]) -> list[dict[str, Any]]:
  """Rows as they come back from VLMEvalKit's answer file: 'None', 'N/A', 'nan', '' ... are float NaN.

  A column of nothing but numbers comes back as numbers, too, as pandas infers it. Answers come from a spreadsheet.
  """
  frame = pandas().DataFrame(rows)
  frame = frame.map(spreadsheet_text) if 'prediction' in frame else frame
  return pandas().read_csv(io.StringIO(frame.to_csv(sep='\t', index=False)), sep='\t').to_dict('records')


def spreadsheet_text(value: Any) -> Any:
  """Text as VLMEvalKit's spreadsheet holds it; other values as they are."""
  return UNHELD.sub(lambda found: f'_x{ord(found[0]):04X}_', value) if isinstance(value, str) else value


def is_missing(value: Any) -> bool:
  """True for None and NaN."""
  return value is None or value != value
