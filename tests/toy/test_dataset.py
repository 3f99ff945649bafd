"""The toy world on disk. The world is small here; its content is tested in the other files."""

import itertools
import pathlib
import pickle
import socket
import subprocess
import sys

import grain
import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS
from janus_jax.toy import captions, dataset, digits, scenes, shapes
from janus_jax.toy.shapes import Object, Scene, World

pytest.importorskip('sklearn')
WORLD = World(num_train=120, num_test=40, num_held_out=20)
ENDLESS = World(num_train=0, num_test=12, num_held_out=6)


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  path = tmp_path_factory.mktemp('world')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(socket.socket, 'connect', _no_network)
    dataset.prepare_dataset(WORLD, path)
  return path


def _no_network(*args):
  raise AssertionError('the network was asked')


def _sources(directory, split='train', seed=0):
  return dataset.sources(WORLD, directory, split, seed)


def test_files_are_array_records_and_a_second_call_leaves_them(directory):
  files = {path: path.stat().st_mtime_ns for path in pathlib.Path(directory).rglob('*') if path.is_file()}
  records = [path for path in files if '.array_record' in path.name]
  assert len(records) == 6
  dataset.prepare_dataset(WORLD, directory)
  assert files == {path: path.stat().st_mtime_ns for path in pathlib.Path(directory).rglob('*') if path.is_file()}


def test_another_world_gets_its_own_files(directory, tmp_path):
  other = World(num_train=3, num_test=2, num_held_out=1)
  assert dataset.name_of(other) != dataset.name_of(WORLD)
  dataset.prepare_dataset(other, tmp_path)
  with pytest.raises(InputError, match='no shapes of World'):
    dataset.data_source('shapes', WORLD, tmp_path, 'train')
  dataset.prepare_dataset(World(num_train=3, num_test=2, num_held_out=1, seed=1), tmp_path)
  assert len(dataset.data_source('shapes', other, tmp_path, 'train')) == 3


def test_a_world_of_few_scenes_is_tested_on_few():
  model = PRESETS['toy']
  assert dataset.world_for(model, 3) == World(seed=3)
  assert dataset.world_for(model, 0, num_train=700) == World(num_train=700, num_test=700)
  assert dataset.world_for(model, 0, num_train=0) == World(num_train=0)


def test_imports_no_tensorflow(directory):
  code = (
    'import sys\n'
    'from janus_jax.toy import dataset\n'
    'from janus_jax.toy.shapes import World\n'
    'world = World(num_train=120, num_test=40, num_held_out=20)\n'
    f'print(sorted(dataset.sources(world, {str(directory)!r}, "test", 0)["shapes_gen"][0]))\n'
    'print("tensorflow" in sys.modules, "sklearn" in sys.modules)\n'
  )
  output = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
  assert output.splitlines() == ["['image', 'prompt']", 'False False']


def test_stored_scenes_are_those_of_the_split_and_the_images_show_them(directory):
  stored = {split: dataset.data_source('shapes', WORLD, directory, split) for split in scenes.SPLITS}
  assert {split: len(source) for split, source in stored.items()} == {'train': 120, 'test': 40, 'held_out': 20}
  for split, source in stored.items():
    elements = [source[index] for index in range(len(source))]
    found = [shapes.decode(element['scene']) for element in elements]
    assert {scenes.split_of(WORLD, scene) for scene in found} == {split}
    assert (np.stack([element['image'] for element in elements]) == shapes.render_scene(WORLD, found)).all()


def test_stored_digits_are_those_of_the_split(directory):
  for split in digits.SPLITS:
    source = dataset.data_source('digits', WORLD, directory, split)
    images, labels = digits.load_digits(WORLD.size, split)
    expected = sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))
    elements = [source[index] for index in range(len(source))]
    assert sorted((element['image'].tobytes(), int(element['label'])) for element in elements) == expected


def test_records_keep_the_contract(directory):
  train = _sources(directory)
  assert list(train) == ['shapes_und', 'digits_und', 'shapes_gen', 'digits_gen', 'captions_text']
  for name, source in train.items():
    assert isinstance(source, grain.MapDataset)
    record = source[7]
    match name.rsplit('_', 1)[1]:
      case 'und':
        (image,) = record.pop('images')
        assert list(record) == ['turns']
        assert len(record['turns']) == (6 if name == 'shapes_und' else 4)
        assert all(type(turn) is str and turn for turn in record['turns'])
      case 'gen':
        image = record.pop('image')
        assert list(record) == ['prompt']
        assert type(record['prompt']) is str
      case 'text':
        assert list(record) == ['text']
        continue
    assert image.shape == (24, 24, 3)
    assert image.dtype == np.uint8
  assert list(_sources(directory, 'held_out')) == ['shapes_und', 'shapes_gen', 'captions_text']


def test_codes_stand_in_for_the_pixels_of_the_same_images(directory):
  splits = {'shapes': scenes.DRAWN, 'digits': 'train'}
  assert splits == {name: dataset.generated_split(name, 'train') for name in dataset.NAMES}
  stored = {name: dataset.data_source(name, WORLD, directory, split) for name, split in splits.items()}
  codes = {name: np.arange(len(source))[:, None].repeat(36, axis=1) for name, source in stored.items()}
  coded, plain = dataset.sources(WORLD, directory, 'train', 0, codes), _sources(directory)
  for name, source in stored.items():
    for index in (0, 7, len(source) - 1):
      record, with_pixels = coded[f'{name}_gen'][index], plain[f'{name}_gen'][index]
      assert sorted(record) == ['codes', 'prompt']
      assert record['prompt'] == with_pixels['prompt']
      np.testing.assert_array_equal(source[record['codes'][0]]['image'], with_pixels['image'])
  assert coded['shapes_und'][3]['images'][0].shape == (24, 24, 3)
  some = dataset.sources(WORLD, directory, 'train', 0, {'shapes': codes['shapes']})
  assert [sorted(some[f'{name}_gen'][0]) for name in stored] == [['codes', 'prompt'], ['image', 'prompt']]


def test_what_is_said_is_true_and_in_an_allowed_template(directory):
  elements = {
    'shapes_und': dataset.data_source('shapes', WORLD, directory, 'train'),
    'shapes_gen': dataset.data_source('shapes', WORLD, directory, scenes.DRAWN),
    **{f'digits_{kind}': dataset.data_source('digits', WORLD, directory, 'train') for kind in ('und', 'gen')},
  }
  train = _sources(directory)
  for name, source in elements.items():
    for index in range(60):
      record, element = train[name][index], source[index]
      truths = dataset.true_captions(element)
      if name.endswith('gen'):
        said = {template.format(text): text for text in truths for template in captions.PROMPT_TEMPLATES}
        phrase = said[record['prompt']]
        assert record['prompt'] not in {template.format(phrase) for template in captions.held_out_templates(phrase)}
      else:
        answers = {question.text: question.answers for question in dataset.questions_about(element)}
        assert all(a in answers[q] for q, a in zip(record['turns'][::2], record['turns'][1::2], strict=True))


def test_half_of_the_prompts_for_images_say_all_there_is_to_say(directory):
  source = _sources(directory)['shapes_gen'].repeat(5)
  stored = dataset.data_source('shapes', WORLD, directory, scenes.DRAWN)
  elements = [stored[index] for index in range(len(stored))]
  densest, all_of_it = ([dataset.prompts_of(WORLD, element, dense) for element in elements] for dense in (True, False))
  dense = [source[i]['prompt'].endswith(tuple(densest[i % len(stored)])) for i in range(len(source))]
  # The other half is sampled among all that may be said.
  expected = 0.5 + 0.5 * np.mean([len(some) / len(found) for some, found in zip(densest, all_of_it)])
  assert abs(np.mean(dense) - expected) < 0.06  # Three standard errors of 600 samples.


def test_a_held_out_triple_is_drawn_and_never_said():
  never = scenes.held_out(WORLD)
  (triple,) = sorted(never.triples)[:1]
  colour, shape, size = triple
  alone = {'scene': shapes.encode(Scene((Object(shape, colour, size, 2, 2),)))}
  article = 'an' if colour == 'orange' else 'a'
  assert dataset.prompts_of(WORLD, alone, dense=True) == [f'{article} {colour} {shape}']
  assert dataset.prompts_of(WORLD, alone, dense=False) == [f'a {shape}', f'{article} {colour} {shape}']
  drawn = [scenes.scene_at(WORLD, scenes.DRAWN, index) for index in range(1500)]
  shown = {(item.colour, item.shape, item.size) for scene in drawn for item in scene.objects}
  assert never.triples <= shown
  for scene in drawn:
    element = {'scene': shapes.encode(scene)}
    for text in itertools.chain(*(dataset.prompts_of(WORLD, element, dense) for dense in (True, False))):
      assert text in dataset.true_captions(element)
      assert not any(f'{size} {colour} {shape}' in text for colour, shape, size in never.triples)
    assert scenes.split_of(WORLD, scene) != 'test'
    if scenes.layout(scene) == 'alike':
      assert (len(scene.objects), scene.objects[0].colour, scene.objects[0].shape) not in never.counts


def test_texts_are_of_both_domains_and_differ_between_epochs(directory):
  source = _sources(directory)['captions_text'].repeat(2)
  once, again = ([source[epoch * len(source) // 2 + index]['text'] for index in range(1557)] for epoch in range(2))
  assert len(source) == 2 * (120 + 1437)
  assert sum(a != b for a, b in zip(once, again, strict=True)) > 700
  digit = [text for text in once if 'digit' in text]
  assert 1300 < len(digit) <= 1437
  assert any(text.startswith('What') for text in once)


def test_epochs_differ_and_the_seed_decides(directory):
  once = _sources(directory)['shapes_gen'].repeat(2)
  again = _sources(directory)['shapes_gen'].repeat(2)
  other = _sources(directory, seed=1)['shapes_gen'].repeat(2)
  prompts = [once[index]['prompt'] for index in range(240)]
  assert prompts == [again[index]['prompt'] for index in range(240)]
  assert prompts != [other[index]['prompt'] for index in range(240)]
  assert sum(a != b for a, b in zip(prompts[:120], prompts[120:], strict=True)) > 60
  assert (once[5]['image'] == once[125]['image']).all()


def test_sources_can_be_sent_to_workers(directory):
  source = _sources(directory)['shapes_und']
  copy = pickle.loads(pickle.dumps(source))
  assert copy[3]['turns'] == source[3]['turns']


def test_a_directory_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match=r'file.*expected a directory to write to'):
    dataset.prepare_dataset(WORLD, tmp_path / 'file')


@pytest.fixture(scope='module')
def endless(tmp_path_factory):
  path = tmp_path_factory.mktemp('endless')
  dataset.prepare_dataset(ENDLESS, path)
  return path


def test_an_endless_world_stores_test_scenes_only(endless):
  folder = pathlib.Path(endless, 'janus_shapes', dataset.name_of(ENDLESS))
  names = {path.name.split('-')[1].split('.')[0] for path in folder.rglob('*.array_record*')}
  assert names == {'test', 'held_out'}
  for split, count in (('test', 12), ('held_out', 6)):
    source = dataset.data_source('shapes', ENDLESS, endless, split)
    assert len(source) == count
    found = [shapes.decode(source[index]['scene']) for index in range(count)]
    assert {scenes.split_of(ENDLESS, scene) for scene in found} == {split}


def test_endless_scenes_are_training_scenes_and_the_same_whenever_they_are_read(endless):
  source = dataset.data_source('shapes', ENDLESS, endless, 'train')
  indices = [*range(300), len(source) - 1]
  elements, copy = [source[index] for index in indices], pickle.loads(pickle.dumps(source))
  found = [shapes.decode(element['scene']) for element in elements]
  assert found == [shapes.decode(copy[index]['scene']) for index in indices]
  assert {scenes.split_of(ENDLESS, scene) for scene in found} == {'train'}
  assert len(set(found)) > 0.8 * len(found)  # A world of 24 pixels has few scenes of one object.
  assert (np.stack([element['image'] for element in elements]) == shapes.render_scene(ENDLESS, found)).all()


def test_sources_of_an_endless_world(endless):
  train = dataset.sources(ENDLESS, endless, 'train', 0)
  assert train.keys() - {'objects_und', 'objects_gen'} == dataset.sources(ENDLESS, endless, 'test', 0).keys()
  scenes_of = dataset.data_source('shapes', ENDLESS, endless, 'train')
  for index in (0, 5, 10**8):
    np.testing.assert_array_equal(train['shapes_und'][index]['images'][0], scenes_of[index]['image'])
    drawn = dataset.data_source('shapes', ENDLESS, endless, scenes.DRAWN)[index]
    np.testing.assert_array_equal(train['shapes_gen'][index]['image'], drawn['image'])
    truths = dataset.true_captions(drawn)
    assert any(train['shapes_gen'][index]['prompt'].endswith(text) for text in truths)
  prompts = [train['shapes_gen'][index]['prompt'] for index in range(50)]
  assert prompts == [
    dataset.sources(ENDLESS, endless, 'train', 0)['shapes_gen'][index]['prompt'] for index in range(50)
  ]
  assert len(train['digits_gen']) == 1437


def test_sources_of_single_objects(endless):
  train = dataset.sources(ENDLESS, endless, 'train', 0)
  source = dataset.EndlessShapes(ENDLESS, scenes.DRAWN, scene_layout='one')
  found = [source[index] for index in range(100)]
  alone = [shapes.decode(element['scene']) for element in found]
  assert {scenes.layout(scene) for scene in alone} == {'one'}
  assert len(set(alone)) > 50
  for index, element in enumerate(found[:20]):
    record = train['objects_gen'][index]
    np.testing.assert_array_equal(record['image'], element['image'])
    assert any(record['prompt'].endswith(text) for text in dataset.true_captions(element))
  asked = [question for index in range(50) for question in train['objects_und'][index]['turns'][::2]]
  assert not any('beside' in question or 'Where' in question for question in asked)


def test_texts_about_an_endless_world_have_their_part_of_digits_and_render_nothing(endless, monkeypatch):
  texts = dataset.sources(ENDLESS, endless, 'train', 0)['captions_text']
  monkeypatch.setattr(shapes, 'render_encoded', lambda *_: pytest.fail('an image was rendered'))
  said = [texts[index]['text'] for index in range(1000)]
  # A description is not marked as one of a digit, but says it: 'Describe the image. the digit seven'.
  assert abs(sum('digit' in text for text in said) / len(said) - 0.15) < 0.01
  assert len(texts) > 10**8
  assert len({text for text in said if 'digit' not in text}) > 300


def test_near_misses_of_either_domain_are_false_of_their_example(endless):
  for name in dataset.NAMES:
    source = dataset.data_source(name, ENDLESS, endless, 'test')
    for element in (source[index] for index in range(10)):
      misses = dataset.near_misses(ENDLESS, element)
      assert misses
      assert not set(misses) & set(dataset.true_captions(element))
  assert sorted([*dataset.near_misses(ENDLESS, {'label': 7}), 'the digit seven']) == sorted(
    map(digits.phrase, range(10))
  )
