"""DPG-Bench's judge: any network of `transformers` that answers questions about an image.

The official one, mPLUG (`damo/mplug_visual-question-answering_coco_large_en` of modelscope), is not among them: figures
by another judge are not the official ones.
"""

import functools
import os
import string
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from janus_jax.errors import InputError
from janus_jax.evaluation import judges
from janus_jax.evaluation.dpg import prepare_dpg
from janus_jax.evaluation.rows import Row, require

INSTRUCTION = 'Answer yes or no.'  # To models that chat.
MAX_NEW_TOKENS = 10

Answer = Callable[[Image.Image, str], str]


def list_dpg(images: judges.Images) -> list[dict[str, Any]]:
  """A row {'file', 'crc32', 'crop', 'question'} for each question about each quarter of each `<item_id>.png`.

  Raises:
    InputError: no questions, no images, an image without questions or that is no square of four.
  """
  if images.data is None:
    raise InputError("DPG-Bench has no questions: expected --data=dpg_bench.csv, the questions' file")
  require(images.data, ('item_id', 'question_natural_language'))
  questions: dict[str, dict[str, None]] = {}  # Each once: a judge says the same of the same.
  for row in images.data:
    questions.setdefault(str(row['item_id']), {})[row['question_natural_language']] = None
  rows = []
  for file in sorted(name for name in os.listdir(images.directory) if name.endswith('.png')):
    path = os.path.join(images.directory, file)
    item = file.split('.')[0]
    if item not in questions:
      raise InputError(f'{path}: no question of the data is about {item!r}')
    crc32 = judges.checksum(path)
    for crop in quarters(path):
      rows += [{'file': file, 'crc32': crc32, 'crop': crop, 'question': question} for question in questions[item]]
  if not rows:
    raise InputError(f'{images.directory}: no .png in it: expected images as evaluate writes them')
  prepare_dpg([{**row, 'answer': ''} for row in rows], images.data, images.allow_partial)
  return rows


def quarters(path: str) -> list[list[int]]:
  """[x0, y0, x1, y1] of an image's four, left before right, top before bottom."""
  with Image.open(path) as image:
    width, height = image.size
  side = width // 2
  if width != height or width != 2 * side:
    raise InputError(f'{path} has {width} x {height} pixels: expected a square of four images')
  return [[x, y, x + side, y + side] for y in (0, side) for x in (0, side)]


def judge_dpg(images: judges.Images, networks: Mapping[str, str], out: str) -> list[Row]:
  """Rows that `score` takes, written to `<out>/vqa_answers.jsonl`.

  Args:
    images: directory and the questions' file.
    networks: the directory of 'vqa'.
    out: directory.
  """
  wanted = list_dpg(images)
  judge = load_dpg_judge(networks['vqa'])
  path = os.path.join(out, 'vqa_answers.jsonl')
  return judges.judge_missing(path, wanted, ('file', 'crop', 'question'), images, judge)


def load_dpg_judge(directory: str) -> judges.Judge:
  """The judge from a directory. Raises InputError for a network that answers no questions about images."""
  transformers = judges.transformers()
  config = judges.load(transformers.AutoConfig, directory)
  processor = judges.load(transformers.AutoProcessor, directory)
  if getattr(processor, 'chat_template', None) and type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
    network = judges.load_network(transformers.AutoModelForImageTextToText, directory, 'auto')
    answer = functools.partial(_chat, network, processor)
  elif type(config) in transformers.MODEL_FOR_VISUAL_QUESTION_ANSWERING_MAPPING:
    network = judges.load_network(transformers.AutoModelForVisualQuestionAnswering, directory, 'auto')
    answer = functools.partial(_generate if network.can_generate() else _classify, network, processor)
  else:
    what = 'a model for visual question answering, or one for image and text with a chat template'
    raise InputError(f'{directory} is a {config.model_type}: expected {what}')
  open_image = functools.lru_cache(maxsize=1)(judges.open_image)  # Questions about one stand together.

  def judge(root: str, row: Row) -> Row:
    image = open_image(os.path.join(root, row['file'])).crop(row['crop'])
    return {'answer': normalized(answer(image, row['question']))}

  return judges.Judge(judges.name_of(network, directory), judge)


def normalized(answer: str) -> str:
  """An answer as the rule compares it with 'yes': lower case, no punctuation around it."""
  return answer.strip(string.punctuation + string.whitespace).lower()


def _inputs(network: Any, batch: Any) -> Any:
  return batch.to(network.device, dtype=network.dtype)  # Of floats; ids stay integers.


# One question at a time: BLIP attends to padding, so that an answer would depend on the questions beside it.


def _classify(network: Any, processor: Any, image: Image.Image, question: str) -> str:
  """The likeliest of a network's answers."""
  import torch

  with torch.inference_mode():
    logits = network(**_inputs(network, processor(images=image, text=question, return_tensors='pt'))).logits
  return network.config.id2label[int(logits[0].argmax())]


def _generate(network: Any, processor: Any, image: Image.Image, question: str) -> str:
  """The answer that a network writes."""
  inputs = _inputs(network, processor(images=image, text=question, return_tensors='pt'))
  return _write(network, processor, inputs)


def _chat(network: Any, processor: Any, image: Image.Image, question: str) -> str:
  """The answer that a network gives in a conversation."""
  content = [{'type': 'image', 'image': image}, {'type': 'text', 'text': f'{question} {INSTRUCTION}'}]
  inputs = processor.apply_chat_template(
    [{'role': 'user', 'content': content}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors='pt',
  )
  return _write(network, processor, _inputs(network, inputs), prompt=inputs['input_ids'].shape[1])


def _write(network: Any, processor: Any, inputs: Any, prompt: int = 0) -> str:
  ids = network.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=MAX_NEW_TOKENS)
  return processor.tokenizer.decode(ids[0, prompt:], skip_special_tokens=True)
