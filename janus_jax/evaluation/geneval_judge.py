"""GenEval's judge: a Mask2Former finds objects, a CLIP names their colours.

Outputs become boxes and colours as in `evaluation/evaluate_images.py` of djghosh13/geneval (af4902f) with mmdet 2.28
(`maskformer_fusion_head.py`), open_clip 2.20 and clip_benchmark 1.4. The post-processing of `transformers` is another
one: its masks are made at 384 x 384 and it has no boxes.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from janus_jax.errors import InputError
from janus_jax.evaluation import judges
from janus_jax.evaluation.geneval import COLOURS, THRESHOLD, kept_indices, prepare_geneval, threshold_for
from janus_jax.evaluation.rows import Row, read_rows

_NAMES = (
  'person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,'
  'bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,'
  'snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,'
  'fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,'
  'potted plant,bed,dining table,toilet,tv,laptop,computer mouse,tv remote,computer keyboard,cell phone,microwave,oven,'
  'toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush'
)
CLASSES = tuple(_NAMES.split(','))  # COCO's objects in its order, three under names of their own (`object_names.txt`).
INPUT_SIZE = {'shortest_edge': 800, 'longest_edge': 1333}  # Of mmdet's config, whatever the processor's own is.
MOST_INSTANCES = 100  # Of all classes.
BACKGROUND = 0x99  # Of each channel, where an object's mask is not.
COLOUR_PROMPTS = (
  'a photo of a {colour} {name}',
  'a photo of a {colour}-colored {name}',
  'a photo of a {colour} object',
)


@dataclasses.dataclass(frozen=True)
class Instance:
  """An object that was found in an image.

  Attributes:
    label: index in CLASSES.
    box: x0, y0, x1, y1 in pixels, the last two exclusive.
    score: from 0 to 1.
    mask: bool[H, W].
  """

  label: int
  box: tuple[int, int, int, int]
  score: float
  mask: np.ndarray


Detect = Callable[[Image.Image], list[Instance]]
NameColours = Callable[[Sequence[Image.Image], str], list[str]]  # Crops of a class -> the colour of each.


def list_geneval(images: judges.Images) -> list[dict[str, Any]]:
  """A row {'filename', 'crc32', 'metadata'} for each `NNNNN/samples/*.png`. Raises InputError for another tree."""
  folders = sorted(name for name in os.listdir(images.directory) if name.isdigit())
  rows = []
  for folder in folders:
    path = os.path.join(images.directory, folder, 'metadata.jsonl')
    metadata = read_rows(path)
    if len(metadata) != 1 or not {'tag', 'prompt'} <= set(metadata[0]):
      raise InputError(f'{path}: expected one line of evaluation_metadata.jsonl, with tag and prompt')
    names = sorted(os.listdir(os.path.join(images.directory, folder, 'samples')))
    for name in (name for name in names if re.fullmatch(r'\d+\.png', name)):
      filename = f'{folder}/samples/{name}'
      crc32 = judges.checksum(os.path.join(images.directory, filename))
      rows.append({'filename': filename, 'crc32': crc32, 'metadata': metadata[0]})
  if not rows:
    raise InputError(f'{images.directory}: no 00000/samples/00000.png ...: expected images as evaluate writes them')
  prepare_geneval(rows, images.data, images.allow_partial)
  return rows


def judge_geneval(images: judges.Images, networks: Mapping[str, str], out: str) -> list[Row]:
  """Rows that `score` takes, written to `<out>/detections.jsonl`.

  Args:
    images: directory, and the prompts' file where it is to be checked against it.
    networks: directories by 'detector' and 'clip'.
    out: directory.
  """
  wanted = list_geneval(images)
  judge = load_geneval_judge(networks['detector'], networks['clip'])
  return judges.judge_missing(os.path.join(out, 'detections.jsonl'), wanted, ('filename',), images, judge)


def load_geneval_judge(detector: str, clip: str) -> judges.Judge:
  """The judge from two directories. Raises InputError for other networks."""
  transformers = judges.transformers()
  for directory, kind in ((detector, 'mask2former'), (clip, 'clip')):
    config = judges.load(transformers.AutoConfig, directory)
    if config.model_type != kind:
      raise InputError(f'{directory} is a {config.model_type}: expected a {kind}')
  detect, detector_name = load_detector(detector)
  name_colours, clip_name = load_colour_classifier(clip)

  def judge(root: str, row: Row) -> Row:
    return judge_image(judges.open_image(os.path.join(root, row['filename'])), row['metadata'], detect, name_colours)

  return judges.Judge(f'{detector_name}, {clip_name}', judge)


def judge_image(
  image: Image.Image, metadata: Mapping[str, Any], detect: Detect, name_colours: NameColours
) -> dict[str, Any]:
  """All boxes above THRESHOLD by class, and colours of those that the rule asks for: `count` of a clause's class.

  Returns:
    {'detections': {class: [[x0, y0, x1, y1, score], ...]}, 'colors_of_detections': {class: [colour or None, ...]}}
  """
  found: dict[str, list[Instance]] = {}
  for instance in detect(image):
    found.setdefault(CLASSES[instance.label], []).append(instance)
  colours = {}
  for clause in (clause for clause in metadata.get('include', []) if 'color' in clause):
    instances = found.get(clause['class'], [])
    scores = np.array([instance.score for instance in instances])
    chosen = kept_indices(scores, threshold_for(metadata))[: clause['count']]
    named = colours.setdefault(clause['class'], [None] * len(instances))
    if chosen := [index for index in chosen if named[index] is None]:
      crops = [crop_object(image, instances[index]) for index in chosen]
      for index, colour in zip(chosen, name_colours(crops, clause['class'])):
        named[index] = colour
  boxes = {name: [[*instance.box, instance.score] for instance in some] for name, some in found.items()}
  return {'detections': boxes, 'colors_of_detections': {name: some for name, some in colours.items() if some}}


def crop_object(image: Image.Image, instance: Instance) -> Image.Image:
  """An object's box, grey where its mask is not."""
  pixels = np.where(instance.mask[:, :, None], np.asarray(image), np.uint8(BACKGROUND))
  return Image.fromarray(pixels).crop(instance.box)


def find_instances(
  class_logits: Any, mask_logits: Any, input_size: tuple[int, int], size: tuple[int, int]
) -> list[Instance]:
  """Instances of an image above THRESHOLD, as mmdet makes them: they may overlap.

  Args:
    class_logits: float32[Q, 81] of queries; the last class is no object.
    mask_logits: float32[Q, h, w].
    input_size: height and width of the network's input.
    size: height and width of the image.
  """
  import torch

  scale = functools.partial(torch.nn.functional.interpolate, mode='bilinear', align_corners=False)
  masks = scale(scale(mask_logits[None], size=input_size), size=size)[0]
  probabilities = class_logits.softmax(-1)[:, :-1]
  scores, order = probabilities.flatten().topk(min(MOST_INSTANCES, probabilities.numel()))
  queries, labels = order // probabilities.shape[1], order % probabilities.shape[1]
  inside = masks > 0
  # Mean probability within the mask, of each query.
  certainty = (masks.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
  scores = scores * certainty[queries]
  found = []
  for query, label, score in zip(queries.tolist(), labels.tolist(), scores.tolist()):
    if score > THRESHOLD:
      mask = inside[query].cpu().numpy()
      (rows,), (columns,) = mask.any(1).nonzero(), mask.any(0).nonzero()
      box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
      found.append(Instance(label, box, score, mask))
  return found


def load_detector(directory: str) -> tuple[Detect, str]:
  """The detector, and its name. Raises InputError for one whose classes are not COCO's 80."""
  import torch

  transformers = judges.transformers()
  network = judges.load_network(transformers.Mask2FormerForUniversalSegmentation, directory, torch.float32)
  processor = judges.load(transformers.AutoImageProcessor, directory)
  labels = network.config.id2label
  # Other spellings (motorbike) and other names (LABEL_3) say nothing.
  moved = [name for index, name in labels.items() if name in CLASSES and CLASSES.index(name) != index]
  if len(labels) != len(CLASSES) or moved:
    what = f'{moved[0]} is class {network.config.label2id[moved[0]]}' if moved else f'{len(labels)} classes'
    raise InputError(f"{directory}: {what}: expected COCO's 80 in their order, as a checkpoint for instances has them")

  def detect(image: Image.Image) -> list[Instance]:
    pixels = processor(images=image, size=INPUT_SIZE, return_tensors='pt')['pixel_values'].to(network.device)
    with torch.inference_mode():
      output = network(pixel_values=pixels)
      logits = output.class_queries_logits[0], output.masks_queries_logits[0]
      return find_instances(*logits, tuple(pixels.shape[-2:]), (image.height, image.width))

  return detect, judges.name_of(network, directory)


def load_colour_classifier(directory: str) -> tuple[NameColours, str]:
  """CLIP as a classifier of colours, and its name; in mixed precision on a GPU, as clip_benchmark has it."""
  import torch

  transformers = judges.transformers()
  network = judges.load_network(transformers.CLIPModel, directory, torch.float32)
  processor = judges.load(transformers.CLIPProcessor, directory)
  normalize = functools.partial(torch.nn.functional.normalize, dim=-1)
  side = network.config.vision_config.image_size
  mixed = functools.partial(torch.autocast, 'cuda', torch.float16, enabled=network.device.type == 'cuda')

  @functools.cache
  def class_vectors(name: str) -> torch.Tensor:
    """float[10, D], a unit vector for each colour."""
    vectors = []
    for colour in COLOURS:
      texts = [prompt.format(colour=colour, name=name) for prompt in COLOUR_PROMPTS]
      tokens = processor.tokenizer(texts, padding=True, return_tensors='pt').to(network.device)
      features = network.text_projection(network.text_model(**tokens).pooler_output)
      vectors.append(normalize(normalize(features).mean(0)))
    return torch.stack(vectors)

  def name_colours(crops: Sequence[Image.Image], name: str) -> list[str]:
    squares = [centre_square(crop, side) for crop in crops]
    inputs = processor.image_processor(squares, do_resize=False, do_center_crop=False, return_tensors='pt')
    with torch.inference_mode(), mixed():
      output = network.vision_model(inputs['pixel_values'].to(network.device))
      similarities = normalize(network.visual_projection(output.pooler_output)) @ class_vectors(name).T
      return [COLOURS[index] for index in similarities.argmax(1).tolist()]

  return name_colours, judges.name_of(network, directory)


def centre_square(image: Image.Image, side: int) -> Image.Image:
  """The middle of an image, its shorter side scaled to `side`: rounded as torchvision does, where `transformers` cuts
  odd remainders off elsewhere.
  """
  shorter = min(image.size)
  width, height = (side if length == shorter else int(side * length / shorter) for length in image.size)
  left, top = round((width - side) / 2), round((height - side) / 2)
  return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
