"""GenEval's judge: logic with scripted networks, and networks of random weights by the command."""

import json
import os
import sys

import numpy as np
import pytest
from e2e import forks
from PIL import Image

from janus_jax.errors import InputError
from janus_jax.evaluation import geneval_judge, judges
from janus_jax.evaluation.geneval import COLOURS, geneval_official, kept_boxes
from janus_jax.evaluation.geneval_judge import CLASSES, Instance

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
import judge_networks  # noqa: E402  (it needs both)
from judge_networks import noise  # noqa: E402

CAT, DOG = CLASSES.index('cat'), CLASSES.index('dog')
PROMPTS = [
  {'tag': 'colors', 'include': [{'class': 'cat', 'count': 1, 'color': 'red'}], 'prompt': 'a red cat'},
  {'tag': 'counting', 'include': [{'class': 'dog', 'count': 2}], 'prompt': 'two dogs'},
]


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
  root = tmp_path_factory.mktemp('networks')
  return {kind: str(getattr(judge_networks, f'write_{kind}')(root / kind)) for kind in ('detector', 'clip', 'vilt')}


def rectangle(x0, y0, x1, y1, size=16, inside=8.0):
  mask = torch.full((size, size), -8.0)
  mask[y0:y1, x0:x1] = inside
  return mask


def query(masks, **probabilities):
  """Logits of a query whose classes have given probabilities; the rest is no object."""
  found = torch.full((81,), 1e-9)
  for name, probability in probabilities.items():
    found[CLASSES.index(name)] = probability
  found[80] = 1 - sum(probabilities.values())
  return found.log(), masks


def instances(*queries, size=(16, 16), input_size=(16, 16)):
  logits, masks = zip(*queries)
  return geneval_judge.find_instances(torch.stack(logits), torch.stack(masks), input_size, size)


def test_instances_overlap_and_score_class_times_mask():
  corner = torch.maximum(rectangle(2, 3, 9, 5), rectangle(2, 3, 4, 12, inside=2.0))  # Smaller than its box.
  found = instances(query(corner, cat=0.9), query(rectangle(4, 4, 16, 16), cat=0.8))
  assert [instance.box for instance in found] == [(2, 3, 9, 12), (4, 4, 16, 16)]
  assert [instance.label for instance in found] == [CAT, CAT]
  assert [int(instance.mask.sum()) for instance in found] == [28, 144]  # A pixel may belong to both.
  certainty = (14 / (1 + np.exp(-8)) + 14 / (1 + np.exp(-2))) / 28
  np.testing.assert_allclose([i.score for i in found], [0.9 * certainty, 0.8 / (1 + np.exp(-8))], rtol=1e-5)


def test_empty_masks_and_low_scores_are_no_instances():
  faint = rectangle(0, 0, 4, 4, inside=0.01)  # Its mean probability is a half.
  empty = torch.full((16, 16), -1.0)
  found = instances(query(empty, cat=0.99), query(faint, cat=0.59), query(faint, dog=0.61))
  assert [(i.label, round(i.score, 2)) for i in found] == [(DOG, 0.31)]


def test_a_query_may_name_two_classes_and_a_hundred_instances_are_most():
  found = instances(query(rectangle(0, 0, 4, 4), cat=0.5, dog=0.4))
  assert {i.label: i.box for i in found} == {CAT: (0, 0, 4, 4), DOG: (0, 0, 4, 4)}
  many = [query(rectangle(0, 0, 1 + i // 16, 1 + i % 16), cat=0.99 - i / 1000) for i in range(110)]
  found = instances(*many)
  assert len(found) == 100
  assert {i.box for i in found} == {(0, 0, 1 + i // 16, 1 + i % 16) for i in range(100)}


def test_masks_are_scaled_to_the_image_by_way_of_the_input():
  rows, columns = np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1])
  mask = torch.tensor(4.0 * np.outer(rows, columns) - 3, dtype=torch.float32)
  (found,) = instances(query(mask, cat=0.9), size=(6, 12), input_size=(16, 16))

  def scaled(profile, size):
    for length in (16, size):
      profile = np.interp((np.arange(length) + 0.5) * len(profile) / length - 0.5, range(len(profile)), profile)
    return profile

  logits = 4 * np.outer(scaled(rows, 6), scaled(columns, 12)) - 3  # Bilinear scaling is one of rows, then of columns.
  np.testing.assert_array_equal(found.mask, logits > 0)
  assert found.score == pytest.approx(0.9 * (1 / (1 + np.exp(-logits[logits > 0]))).mean(), rel=1e-5)


def test_the_detector_sees_800_pixels_and_refuses_other_classes(networks, tmp_path, monkeypatch):
  seen = {}

  def forward(self, pixel_values):
    seen['shape'] = tuple(pixel_values.shape)
    logits, masks = query(rectangle(4, 4, 8, 12), cat=0.9)
    output = {'class_queries_logits': logits[None, None], 'masks_queries_logits': masks[None, None]}
    return transformers.models.mask2former.modeling_mask2former.Mask2FormerForUniversalSegmentationOutput(**output)

  monkeypatch.setattr(transformers.Mask2FormerForUniversalSegmentation, 'forward', forward)
  detect, name = geneval_judge.load_detector(networks['detector'])
  (found,) = detect(noise(0, side=32))
  assert seen['shape'] == (1, 3, 800, 800)  # Its processor says 64.
  assert found.box == (8, 8, 16, 24)
  assert name == 'Mask2FormerForUniversalSegmentation detector (float32, cpu)'
  panoptic = judge_networks.write_detector(tmp_path / 'panoptic', num_labels=133)
  with pytest.raises(InputError, match=r"panoptic: 133 classes: expected COCO's 80 in their order"):
    geneval_judge.load_detector(str(panoptic))
  labels = dict(enumerate(('motorbike', *CLASSES[:79])))
  with pytest.raises(InputError, match='person is class 1: expected'):
    geneval_judge.load_detector(str(judge_networks.write_detector(tmp_path / 'moved', labels=labels)))


def test_colours_are_asked_of_the_surest_boxes_that_a_prompt_is_about():
  image = Image.new('RGB', (16, 16), 'red')
  left, right = rectangle(0, 0, 4, 4) > 0, rectangle(8, 8, 16, 16) > 0
  right[8:, 12:] = False  # Smaller than its box.
  found = [
    Instance(CAT, (0, 0, 4, 4), 0.4, left.numpy()),
    Instance(DOG, (0, 0, 4, 4), 0.9, left.numpy()),
    Instance(CAT, (8, 8, 16, 16), 0.8, right.numpy()),
  ]
  crops = []

  def name_colours(some, name):
    crops.extend(some)
    return ['red' if name == 'cat' else 'blue'] * len(some)

  metadata = {'tag': 'colors', 'prompt': 'x', 'include': [{'class': 'cat', 'count': 1, 'color': 'red'}]}
  said = geneval_judge.judge_image(image, metadata, lambda image: found, name_colours)
  assert said['detections'] == {'cat': [[0, 0, 4, 4, 0.4], [8, 8, 16, 16, 0.8]], 'dog': [[0, 0, 4, 4, 0.9]]}
  assert said['colors_of_detections'] == {'cat': [None, 'red']}
  (pixels,) = map(np.asarray, crops)
  assert pixels.shape == (8, 8, 3)
  assert (pixels[:, :4] == (255, 0, 0)).all()
  assert (pixels[:, 4:] == 0x99).all()
  assert geneval_official([{'metadata': metadata, **said}])[0][0].score == 1
  both = {**metadata, 'include': [{'class': name, 'count': 1, 'color': 'red'} for name in ('cat', 'dog')]}
  said = geneval_judge.judge_image(image, both, lambda image: found, name_colours)
  assert said['colors_of_detections'] == {'cat': [None, 'red'], 'dog': ['blue']}
  assert geneval_official([{'metadata': both, **said}])[0][0].read == 'expected red dog>=1, found 0 red; and 1 blue'


def test_of_twenty_boxes_the_rule_keeps_sixteen_with_the_colours_of_their_own():
  found = [Instance(CAT, (i, 0, i + 1, 1), 0.31 + i / 100, np.ones((1, 20), bool)) for i in range(20)]
  metadata = {'tag': 'colors', 'prompt': 'x', 'include': [{'class': 'cat', 'count': 18, 'color': 'red'}]}

  def name_colours(crops, name):
    return [COLOURS[np.asarray(crop)[0, 0, 0]] for crop in crops]

  image = Image.fromarray(np.repeat(np.arange(20, dtype=np.uint8)[None, :, None] % 10, 3, axis=2))
  said = geneval_judge.judge_image(image, metadata, lambda image: found, name_colours)
  kept = kept_boxes(said, 0.3)['cat']
  assert [int(box[0]) for box, _ in kept] == list(range(19, 3, -1))
  assert [colour for _, colour in kept] == [COLOURS[i % 10] for i in range(19, 3, -1)]


def test_colours_are_those_of_the_whole_clip(networks):
  name_colours, _ = geneval_judge.load_colour_classifier(networks['clip'])
  network = transformers.CLIPModel.from_pretrained(networks['clip'])
  processor = transformers.CLIPProcessor.from_pretrained(networks['clip'])
  crops = [noise(seed, side=32, blocks=2) for seed in range(24)]
  vectors = []
  for colour in COLOURS:
    kinds = (f'{colour} tv remote', f'{colour}-colored tv remote', f'{colour} object')
    prompts = [f'a photo of a {kind}' for kind in kinds]
    inputs = processor(text=prompts, images=crops, padding='max_length', max_length=77, return_tensors='pt')
    with torch.no_grad():
      output = network(**inputs)
    mean = output.text_embeds.mean(0)
    vectors.append(mean / mean.norm())
  expected = [COLOURS[index] for index in (output.image_embeds @ torch.stack(vectors).T).argmax(1)]
  assert name_colours(crops, 'tv remote') == expected
  assert len(set(expected)) > 2


@pytest.mark.parametrize(('width', 'left'), [(32, 0), (35, 2), (37, 2), (39, 4)])  # Halves go to the even neighbour.
def test_the_middle_is_where_torchvision_has_it(width, left):
  columns = np.repeat(np.arange(width, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(32, axis=0)
  found = np.asarray(geneval_judge.centre_square(Image.fromarray(columns), 32))
  assert found[0, :, 0].tolist() == list(range(left, left + 32))
  tall = geneval_judge.centre_square(Image.fromarray(columns).transpose(Image.Transpose.TRANSPOSE), 32)
  assert np.asarray(tall)[:, 0, 0].tolist() == list(range(left, left + 32))


def write_tree(root, prompts, images=1):
  for number, prompt in enumerate(prompts):
    (root / f'{number:05}' / 'samples').mkdir(parents=True)
    (root / f'{number:05}' / 'metadata.jsonl').write_text(json.dumps(prompt))
    for image in range(images):
      noise(10 * number + image).save(root / f'{number:05}' / 'samples' / f'{image:05}.png')
  return root


def images_of(root, data=None):
  return judges.Images(str(root), data, allow_partial=False)


def test_the_tree_of_evaluate_is_read(tmp_path):
  root = write_tree(tmp_path / 'images', PROMPTS, images=2)
  for name in ('00000.png.partial', 'grid.png'):
    (root / '00000' / 'samples' / name).write_bytes(b'')
  (root / 'notes').mkdir()
  rows = geneval_judge.list_geneval(images_of(root))
  assert [row['filename'] for row in rows] == [f'{p:05}/samples/{i:05}.png' for p in range(2) for i in range(2)]
  assert [row['metadata'] for row in rows] == [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
  (root / '00001' / 'samples' / '00001.png').unlink()
  with pytest.raises(InputError, match=r"prompt 'two dogs' \(1 in all\) has fewer than 2 images"):
    geneval_judge.list_geneval(images_of(root, PROMPTS))
  (root / '00001' / 'metadata.jsonl').write_text('{}')
  with pytest.raises(InputError, match=r'00001/metadata\.jsonl: expected one line'):
    geneval_judge.list_geneval(images_of(root))
  with pytest.raises(InputError, match=r'no 00000/samples/00000\.png'):
    geneval_judge.list_geneval(images_of(root / 'notes'))


def test_other_networks_are_refused(networks, tmp_path):
  for pair, message in (
    ((networks['clip'], networks['clip']), 'clip is a clip: expected a mask2former'),
    ((networks['detector'], networks['vilt']), 'vilt is a vilt: expected a clip'),
    ((str(tmp_path / 'none'), networks['clip']), 'none: no such directory'),
    ((str(tmp_path), networks['clip']), 'config.json'),
  ):
    with pytest.raises(InputError, match=message) as error:
      geneval_judge.load_geneval_judge(*pair)
    assert '\n' not in str(error.value)


def score(*arguments):
  command = [sys.executable, '-m', 'janus_jax.score', *map(str, arguments)]
  return forks.run(command, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def test_images_end_in_scores_though_the_judge_was_killed(networks, tmp_path):
  given = {name: networks[name] for name in ('detector', 'clip')}
  root = write_tree(tmp_path / 'images', PROMPTS)
  detect, detector = geneval_judge.load_detector(given['detector'])
  name_colours, clip = geneval_judge.load_colour_classifier(given['clip'])
  names, lines = f'{detector}, {clip}', []
  for number, row in enumerate(geneval_judge.list_geneval(images_of(root))):
    # The prompt is made up after what the networks see: the first image shows it, the second in another colour.
    image = judges.open_image(str(root / row['filename']))
    found = detect(image)
    surest = max(found, key=lambda instance: instance.score)
    (colour,) = name_colours([geneval_judge.crop_object(image, surest)], CLASSES[surest.label])
    wanted = COLOURS[(COLOURS.index(colour) + number) % 10]
    clause = {'class': CLASSES[surest.label], 'count': 1, 'color': wanted}
    prompt = {'tag': 'colors', 'include': [clause], 'prompt': f'prompt {number}'}
    (root / f'{number:05}' / 'metadata.jsonl').write_text(json.dumps(prompt))
    said = geneval_judge.judge_image(image, prompt, lambda _, found=found: found, name_colours)
    lines.append(json.dumps({**row, 'metadata': prompt, 'judge': names, **said}))
  out = tmp_path / 'out'
  out.mkdir()
  (out / 'detections.jsonl').write_text(f'{lines[0]}\n{lines[1][:50]}')
  flags = [f'--{name}={directory}' for name, directory in given.items()]
  found = score('--benchmark=geneval', f'--images={root}', *flags, f'--out={out}')
  assert found.returncode == 0, found.stderr
  assert '2/2' in found.stderr
  assert (out / 'detections.jsonl').read_text() == f'{lines[0]}\n{lines[1]}\n'
  scores = json.loads((out / 'scores.json').read_text())
  assert scores['metrics']['% correct images'] == 50
  assert names == 'Mask2FormerForUniversalSegmentation detector (float32, cpu), CLIPModel clip (float32, cpu)'
  assert scores['judge'] == names
  assert found.stdout.splitlines()[-1] == f'judge: {names}'
  again = score(
    '--benchmark=geneval', f'--predictions={out / "detections.jsonl"}', f'--out={tmp_path / "again"}', '--json'
  )
  assert json.loads(again.stdout)['judge'] == names
  assert (tmp_path / 'again' / 'scores.json').read_text() == (out / 'scores.json').read_text()
