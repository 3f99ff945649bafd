"""GenEval: whether generated images show what their prompts ask for, by the boxes and colours that networks found.

Rule: `evaluation/evaluate_images.py` and `summary_scores.py` of djghosh13/geneval (af4902f).
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.errors import InputError, shown
from janus_jax.evaluation.rows import Row, require, require_text
from janus_jax.evaluation.rules import Metrics, ReadAnswer, grouped, mean

COLOURS = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'black', 'white')
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # A box is kept if its score is above.
MOST_BOXES = 16  # Of a class.
OVERLAP = 0.1  # Of the boxes' sizes, by which centres may differ without a relation.
LEAST = 0.5  # Of a direction's component, for a relation.
RELATIONS = ('left of', 'right of', 'above', 'below')

Box = tuple[
  np.ndarray, str | None
]  # [x0, y0, x1, y1, score] in pixels, y downwards; its colour, where one was asked for.


def kept_indices(scores: np.ndarray, threshold: float) -> list[int]:
  """Indices of a class's boxes above a threshold, the surest first; of equal ones the later. MOST_BOXES at most."""
  order = np.argsort(scores, kind='stable')[::-1]
  return [int(index) for index in order if scores[index] > threshold][:MOST_BOXES]


def threshold_for(metadata: Mapping[str, Any]) -> float:
  """Score that a box must exceed, by a prompt's task."""
  return COUNTING_THRESHOLD if metadata['tag'] == 'counting' else THRESHOLD


def kept_boxes(row: Row, threshold: float) -> dict[str, list[Box]]:
  """Class -> boxes above a threshold, the surest first; of equal ones the later."""
  found = {}
  for name, array in _arrays(row, row['detections']).items():
    boxes, given = row['detections'][name], row.get('colors_of_detections', {})
    colours = given.get(name, [None] * len(boxes)) if isinstance(given, Mapping) else None
    if not isinstance(colours, list):
      raise InputError(f'{row.get("filename")}: colors_of_detections are {shown(given)}: expected lists by class')
    if len(colours) != len(boxes):
      raise InputError(
        f'{row.get("filename")}: {len(colours)} colours for {len(boxes)} boxes of {name}: expected one each'
      )
    if kept := kept_indices(array[:, 4], threshold):
      found[name] = [(array[index], colours[index]) for index in kept]
  return found


def _arrays(row: Row, found: Any) -> dict[str, np.ndarray]:
  """Class -> boxes float64[n, 5]. Raises InputError for anything else."""
  arrays = {}
  for name, boxes in found.items() if isinstance(found, Mapping) else [('detections', found)]:
    try:
      array = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):
      array = np.full(1, np.nan)
    if (array.shape != (0,) and (array.ndim != 2 or array.shape[1] != 5)) or not np.isfinite(array).all():
      expected = 'expected [x0, y0, x1, y1, score] each, by class'
      raise InputError(f'{row.get("filename")}: boxes of {name} are {shown(boxes)}: {expected}')
    arrays[name] = array.reshape(-1, 5)
  return arrays


def seen_boxes(row: Row, metadata: Mapping[str, Any]) -> dict[str, list[Box]]:
  """Boxes that count for a prompt: of a row of detections, or of the official results, without their colours."""
  if 'detections' in row:
    return kept_boxes(row, threshold_for(metadata))
  found = row.get('details')
  if found is None:
    raise InputError(f'{row.get("filename")}: neither detections nor details: expected one of them')
  try:
    found = json.loads(found) if isinstance(found, str) else found
  except ValueError:
    raise InputError(f'{row.get("filename")}: details are {shown(found)}: expected JSON of boxes by class') from None
  return {name: [(box, None) for box in boxes] for name, boxes in _arrays(row, found).items()}


def relations(box: np.ndarray, target: np.ndarray) -> list[str]:
  """Position of a box relative to another: 'left of', 'right of', 'above', 'below'; two, one or none of them."""
  boxes = np.stack([box, target])[:, :4].reshape(2, 2, 2)
  offset = np.subtract(*boxes.mean(axis=1))
  sizes = np.abs(boxes[:, 1] - boxes[:, 0]).sum(axis=0)
  revised = np.maximum(np.abs(offset) - OVERLAP * sizes, 0) * np.sign(offset)
  if np.all(np.abs(revised) < 1e-3):
    return []
  x, y = revised / np.linalg.norm(offset)  # Of the offset as it was: the result is shorter than 1.
  holds = {'left of': x < -LEAST, 'right of': x > LEAST, 'above': y < -LEAST, 'below': y > LEAST}
  return [name for name, is_so in holds.items() if is_so]


def find_faults(found: Mapping[str, Sequence[Box]], metadata: Mapping[str, Any]) -> list[str]:
  """Faults of an image, none if it shows what its prompt asks for."""
  wrong: list[str] = []
  groups: list[Sequence[Box] | None] = []  # Boxes that met each clause; None for a clause that is not met.
  for clause in metadata.get('include', []):
    name, count = clause['class'], clause['count']
    boxes = found.get(name, [])[:count]
    problem = _problem(boxes, clause, groups)
    groups.append(None if problem else boxes)
    wrong += [problem] if problem else []
  for clause in metadata.get('exclude', []):
    if len(found.get(clause['class'], [])) >= clause['count']:
      wrong.append(f'expected {clause["class"]}<{clause["count"]}, found {len(found[clause["class"]])}')
  return wrong


def _problem(boxes: Sequence[Box], clause: Mapping[str, Any], groups: Sequence[Sequence[Box] | None]) -> str | None:
  name, count = clause['class'], clause['count']
  if len(boxes) < count:
    return f'expected {name}>={count}, found {len(boxes)}'
  if 'color' in clause:
    colours = [colour for _, colour in boxes]
    if None in colours:
      raise InputError(f'a prompt asks for a {clause["color"]} {name}, and its boxes have no colours_of_detections')
    if colours.count(clause['color']) < count:
      others = ', '.join(f'{colours.count(colour)} {colour}' for colour in COLOURS if colour in colours)
      return (
        f'expected {clause["color"]} {name}>={count}, '
        f'found {colours.count(clause["color"])} {clause["color"]}; and {others}'
      )
  if 'position' in clause:
    relation, target = clause['position']
    if groups[target] is None:
      return f'no target for {name} to be {relation}'
    for box, _ in boxes:
      for other, _ in groups[target]:
        if relation not in (holds := relations(box, other)):
          return f'expected {name} {relation} target, found {" and ".join(holds)} target'
  return None


def geneval_official(rows: Sequence[Row]) -> tuple[list[ReadAnswer], Metrics]:
  """Overall is the mean of the tasks that are present."""
  readings, tagged = [], []
  for number, row in enumerate(rows, 1):
    metadata = read_metadata(row, number)
    tagged.append({'tag': metadata['tag'], 'prompt': json.dumps(metadata)})
    if 'detections' in row:
      wrong = find_faults(seen_boxes(row, metadata), metadata)
      readings.append(ReadAnswer('\n'.join(wrong), float(not wrong)))
    elif isinstance(row.get('correct'), bool):  # The official scorer's own results.jsonl.
      readings.append(ReadAnswer(row.get('reason'), float(row['correct'])))
    else:
      raise InputError(f'row {number} has neither detections nor correct: expected boxes by class, or true or false')
  scores = [reading.score for reading in readings]
  prompts = grouped(tagged, 'prompt').values()
  tasks = {tag: mean([scores[index] for index in some]) for tag, some in grouped(tagged, 'tag').items()}
  return readings, {
    'Total images': len(rows),
    'Total prompts': len(prompts),
    '% correct images': 100 * mean(scores),
    '% correct prompts': 100 * mean([max(scores[index] for index in some) for some in prompts]),
    'Task breakdown': {tag: 100 * score for tag, score in tasks.items()},
    'Overall score (avg. over tasks)': mean(list(tasks.values())),
  }


def read_metadata(row: Row, number: int) -> dict[str, Any]:
  """The prompt's line of evaluation_metadata.jsonl; results.jsonl holds it as a string. Raises InputError without."""
  found = row.get('metadata')
  try:
    found = json.loads(found) if isinstance(found, str) else found
  except ValueError:
    found = None
  if not isinstance(found, dict) or not {'tag', 'prompt'} <= set(found):
    raise InputError(f'row {number} has no metadata with tag and prompt: expected a line of evaluation_metadata.jsonl')
  if fault := _metadata_fault(found):
    raise InputError(f'row {number}: metadata has {fault}')
  return found


def _metadata_fault(metadata: Mapping[str, Any]) -> str | None:
  """First fault of a prompt's line; None where it is as GenEval writes it."""
  tag, prompt = metadata['tag'], metadata['prompt']
  if not isinstance(tag, str) or not tag or os.path.basename(tag) != tag:  # It names a page, too.
    return f'tag {shown(tag)}: expected a name'
  if not isinstance(prompt, str):
    return f'prompt {shown(prompt)}: expected text'
  for name in ('include', 'exclude'):
    clauses = metadata.get(name, [])
    for place, clause in enumerate(clauses if isinstance(clauses, list) else [clauses]):
      count, kind = (clause.get('count'), clause.get('class')) if isinstance(clause, Mapping) else (None, None)
      if not isinstance(kind, str) or not isinstance(count, int) or count < 0:
        return f'{name} {shown(clause)}: expected a list of {{"class", "count"}}'
      if name == 'include' and not _is_position(clause.get('position', (RELATIONS[0], -1)), place):
        return f'position {shown(clause["position"])}: expected one of {", ".join(RELATIONS)}, and an earlier clause'
  return None


def _is_position(position: Any, place: int) -> bool:
  if not isinstance(position, list | tuple) or len(position) != 2 or position[0] not in RELATIONS:
    return False
  return isinstance(position[1], int) and position[1] < place


def prepare_geneval(
  predictions: Sequence[Row], data: Sequence[Row] | None, allow_partial: bool
) -> tuple[list[dict[str, Any]], int]:
  """Rows as they are; where the prompts' file is given, each prompt must have the same number of images.

  Returns:
    Rows, and the number of images that are missing.
  """
  rows = [{'index': row.get('filename', number), **row} for number, row in enumerate(predictions)]
  if not rows:
    raise InputError('no images to score')
  if data is None:
    return rows, 0
  require(data, ('prompt',))
  require_text(data, ('prompt',), ' of the data')
  counts = {row['prompt']: 0 for row in data}
  for number, row in enumerate(rows, 1):
    prompt = read_metadata(row, number)['prompt']
    if prompt not in counts:
      raise InputError(f'{row["index"]}: its prompt is not in the data: {prompt!r}')
    counts[prompt] += 1
  most = max(counts.values())
  short = [prompt for prompt, count in counts.items() if count < most]
  if short and not allow_partial:
    raise InputError(
      f'prompt {short[0]!r} ({len(short)} in all) has fewer than {most} images: expected as many for each'
    )
  return rows, sum(most - count for count in counts.values())


RULES = {'geneval': {'official': geneval_official}}
