"""GenEval: whether generated images show what their prompts ask for, by the boxes and colours that networks found.

Rule: `evaluation/evaluate_images.py` and `summary_scores.py` of djghosh13/geneval (af4902f).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.errors import InputError
from janus_jax.evaluation.rows import Row
from janus_jax.evaluation.rules import Metrics, ReadAnswer, grouped, mean

COLOURS = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'black', 'white')
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # A box is kept if its score is above.
MOST_BOXES = 16  # Of a class.
OVERLAP = 0.1  # Of the boxes' sizes, by which centres may differ without a relation.
LEAST = 0.5  # Of a direction's component, for a relation.

Box = tuple[
  np.ndarray, str | None
]  # [x0, y0, x1, y1, score] in pixels, y downwards; its colour, where one was asked for.


def threshold_of(metadata: Mapping[str, Any]) -> float:
  return COUNTING_THRESHOLD if metadata['tag'] == 'counting' else THRESHOLD


def kept_boxes(row: Row, threshold: float) -> dict[str, list[Box]]:
  """Class -> boxes above a threshold, the surest first; of equal ones the later."""
  found = {}
  for name, boxes in row['detections'].items():
    colours = row.get('colors_of_detections', {}).get(name, [None] * len(boxes))
    if len(colours) != len(boxes):
      raise InputError(
        f'{row.get("filename")}: {len(colours)} colours for {len(boxes)} boxes of {name}: expected one each'
      )
    array = np.asarray(boxes, np.float64).reshape(-1, 5)
    order = [index for index in np.argsort(array[:, 4], kind='stable')[::-1] if array[index, 4] > threshold]
    if order:
      found[name] = [(array[index], colours[index]) for index in order[:MOST_BOXES]]
  return found


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
      wrong = find_faults(kept_boxes(row, threshold_of(metadata)), metadata)
      readings.append(ReadAnswer('\n'.join(wrong), float(not wrong)))
    elif 'correct' in row:  # The official scorer's own results.jsonl.
      readings.append(ReadAnswer(row.get('reason'), float(row['correct'])))
    else:
      raise InputError(f'row {number} has neither detections nor correct: expected one of them')
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
  return found


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
