import fsspec
import pytest

pytest.importorskip('sklearn')

from data import datasets
from data.photographs import cuts, encoded

from janus_jax.data.sources.build import ImageSizes, items, open_sources, read_specs
from janus_jax.data.sources.tfds_builders import TfdsExamples
from janus_jax.errors import InputError


@pytest.fixture(scope='module')
def directory(tmp_path_factory) -> str:
  """The builder's code is not known to TFDS: it reads what lies there, as it does for anybody's own dataset."""
  path = tmp_path_factory.mktemp('tfds')
  datasets.Photographs(data_dir=path, file_format='array_record').download_and_prepare()
  return str(path)


def test_examples_are_plain_values_and_images_stay_encoded(directory):
  source = TfdsExamples('photographs', directory, 'train', number_classes=False)
  found = {item['label']: item for item in (source[i] for i in range(len(source)))}
  assert sorted(found) == [f'classes{i}' for i in range(datasets.ITEMS)]
  for i, image in enumerate(cuts(datasets.ITEMS)):
    item = found[f'classes{i}']
    assert item['image'] == encoded(image, i)[1]
    assert item['captions'] == {
      'text': [f'caption {i}.{n}'.encode() for n in range(3)],
      'kind': ['short', 'long', 'short'],
    }
  assert TfdsExamples('photographs', directory, 'train', number_classes=True)[0]['label'] in range(datasets.ITEMS)
  assert len(TfdsExamples('photographs', directory, 'train[:50%]', number_classes=False)) == datasets.ITEMS // 2


def test_a_caption_of_a_list_within_is_drawn_and_classes_get_other_names(directory, tmp_path):
  """As COCO's captions, and ImageNet's classes, are asked for."""
  (tmp_path / 'names.txt').write_text('\n'.join(f'name {i}' for i in range(datasets.ITEMS)))
  common = {'format': 'tfds', 'path': 'photographs', 'directory': directory}
  entries = {
    'coco': {**common, 'kind': 'understanding', 'answer': 'captions/text'},
    'imagenet': {**common, 'kind': 'generation', 'prompt': 'label', 'names': str(tmp_path / 'names.txt')},
  }
  opened = open_sources(read_specs(entries), ImageSizes(24, 24), 0, str(tmp_path))['train']
  view = opened['understanding']['coco'].repeat(20)
  said = {view[epoch * datasets.ITEMS]['turns'][1] for epoch in range(20)}
  assert len(said) == 3
  assert len({text.split('.')[0] for text in said}) == 1
  prompts = [opened['generation']['imagenet'][i]['prompt'] for i in range(datasets.ITEMS)]
  assert sorted(prompts) == [f'name {i}' for i in range(datasets.ITEMS)]


def test_what_is_not_there_is_refused(directory, tmp_path):
  with pytest.raises(InputError, match=r"TFDS photographs, split 'test': "):
    TfdsExamples('photographs', directory, 'test', number_classes=False)
  with pytest.raises(InputError, match=r"TFDS mnist: not prepared in .*expected after `tfds.builder\('mnist'"):
    TfdsExamples('mnist', str(tmp_path), 'train', number_classes=False)


def test_a_dataset_in_a_bucket_is_copied_once(directory, tmp_path):
  memory = fsspec.filesystem('memory')
  memory.put(f'{directory}/photographs', 'memory://tfds-bucket/data/photographs', recursive=True)
  entry = {'kind': 'generation', 'format': 'tfds', 'path': 'photographs', 'directory': 'memory://tfds-bucket/data/'}
  spec = read_specs({'photos': {**entry, 'prompt': 'label'}})['photos']
  expected = TfdsExamples('photographs', directory, 'train', number_classes=False)
  for _ in range(2):
    found = items(spec, str(tmp_path))
    assert [found[i]['image'] for i in range(len(found))] == [expected[i]['image'] for i in range(len(expected))]
    if memory.exists('memory://tfds-bucket'):  # From now on the copy is all there is.
      memory.rm('memory://tfds-bucket', recursive=True)
