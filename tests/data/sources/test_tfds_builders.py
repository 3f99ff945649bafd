import pathlib
import shutil

import fsspec
import pytest
import tensorflow_datasets as tfds

pytest.importorskip('sklearn')

from data import datasets
from data.photographs import cuts, encoded

from janus_jax.data.sources.build import ImageSizes, items, open_sources, read_specs
from janus_jax.data.sources.tfds_builders import TfdsExamples
from janus_jax.errors import InputError, RecordError


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


def test_a_caption_of_a_list_within_is_sampled_and_classes_get_other_names(directory, tmp_path):
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


class Multi(tfds.core.GeneratorBasedBuilder):
  """Classes without names, in two configs."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name='one'), tfds.core.BuilderConfig(name='two')]  # noqa: RUF012

  def _info(self):
    features = {'label': tfds.features.ClassLabel(num_classes=3), 'text': tfds.features.Text()}
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(4):
      yield i, {'label': i - 1, 'text': f'text {i}'}  # -1 is TFDS's unknown class.


@pytest.fixture(scope='module')
def multi(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp('multi')
  for config in ('one', 'two'):
    Multi(config=config, data_dir=path, file_format='array_record').download_and_prepare()
  # As it is where nobody has the builder's code, nor what TFDS writes down of its configs.
  shutil.copytree(path / 'multi', path / 'copied', ignore=shutil.ignore_patterns('.*'))
  return str(path)


def opened(name, directory, split='train', **options):
  return TfdsExamples(name, directory, split, **{'number_classes': False, **options})


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('nosuch', r'no such dataset in .*expected the name of a TFDS dataset, one of copied, multi$'),
    ('mnist', r"not prepared in .*: expected after `tfds.builder\('mnist', .*file_format='array_record'"),
    ('copied', r'copied has configs: expected copied/one or copied/two$'),
    ('multi/three', r"no config 'three' in .*multi: expected one of one, two$"),
    ('multi/one:9.9.9', r'no version 9\.9\.9 in .*multi/one: expected one of 1\.0\.0$'),
    ('multi/', r'expected NAME, NAME/CONFIG or NAME/CONFIG:VERSION, or the folder of a version$'),
    ('{}/multi/one', r'no dataset_info\.json in it: expected the folder of a version, one of 1\.0\.0$'),
    ('{}/multi/four/1.0.0', r'no such folder: expected that of a version'),
  ],
)
def test_each_thing_that_is_not_there_is_named(multi, name, message):
  name = name.format(multi)
  with pytest.raises(InputError, match=rf'^TFDS {name}: .*{message}') as caught:
    opened(name, multi)
  assert '\n' not in str(caught.value)


def test_splits_features_and_folders_that_are_not_there_are_named(directory, multi):
  with pytest.raises(InputError, match=r"^TFDS photographs: split 'test': .*expected one of train$"):
    opened('photographs', directory, 'test')
  with pytest.raises(
    InputError, match=r"^TFDS photographs: no feature 'lable': expected one of captions, image, label$"
  ):
    opened('photographs', directory, used=('lable',))
  with pytest.raises(InputError, match=r"^TFDS photographs: no feature 'captions/txt': expected one of kind, text$"):
    opened('photographs', directory, used=('captions/txt',))
  with pytest.raises(InputError, match=r'^TFDS mnist: /nowhere: no such folder: expected the data_dir of TFDS'):
    opened('mnist', '/nowhere')


def test_another_file_format_is_named(tmp_path):
  Multi(config='one', data_dir=tmp_path, file_format='array_record').download_and_prepare()
  info = tmp_path / 'multi' / 'one' / '1.0.0' / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(InputError, match=r'has tfrecord files: expected array_record, as after `tfds\.builder'):
    opened('multi/one', str(tmp_path))
  info.write_text('{"name": ')
  with pytest.raises(InputError, match=r'^TFDS multi/one: .*expected dataset_info\.json'):
    opened('multi/one', str(tmp_path))


def test_the_folder_of_a_builder_is_as_good_as_its_name(multi):
  for name, directory in ((f'{multi}/multi/two/1.0.0', ''), ('multi/two/1.0.0', multi), ('multi/two', multi)):
    found = opened(name, directory, used=('text',))
    assert sorted(found[i]['text'] for i in range(4)) == [f'text {i}'.encode() for i in range(4)]


def test_classes_without_names_and_unknown_classes_are_not_prompts(multi, directory, tmp_path):
  with pytest.raises(InputError, match=r'label: 3 classes without names: expected .*/label\.labels\.txt, or a file'):
    opened('multi/one', multi, used=('text', 'label'))
  (tmp_path / 'names.txt').write_text('ant\nbee\ncat\n')
  entry = {'kind': 'text', 'format': 'tfds', 'path': 'multi/one', 'directory': multi}
  assert len(items(read_specs({'x': entry})['x'], str(tmp_path))) == 4  # Labels that nobody reads need no name.
  shutil.copytree(f'{multi}/multi/one/1.0.0', tmp_path / '1.0.0')
  (tmp_path / '1.0.0' / 'label.labels.txt').write_text('ant\nbee\ncat\n')
  source = opened(str(tmp_path / '1.0.0'), '', used=('label',))
  unknown = [i for i in range(4) if source._features.deserialize_example_np(source.read(i))['label'] < 0]
  with pytest.raises(RecordError, match=f'^{source.where(unknown[0])}: label: class -1: expected 0 to 2$') as caught:
    source[unknown[0]]
  assert caught.value.reason == 'class'
  assert sorted(source[i]['label'] for i in range(4) if i not in unknown) == ['ant', 'bee', 'cat']


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda path: path.unlink(), 'No such file'),
    (lambda path: path.write_bytes(b''), '0 bytes'),
    (lambda path: path.write_bytes(path.read_bytes()[:-40_000]), 'expected an ArrayRecord file'),
    (lambda path: path.write_bytes(b'version https://git-lfs.github.com/spec/v1\n'), 'a Git-LFS pointer'),
  ],
)
def test_a_damaged_shard_is_refused_when_it_is_opened(directory, tmp_path, damage, message):
  shutil.copytree(f'{directory}/photographs/1.0.0', tmp_path / '1.0.0')
  (shard,) = (tmp_path / '1.0.0').glob('*.array_record*')
  damage(shard)
  with pytest.raises(InputError, match=rf'^{shard}: .*{message}'):
    opened(str(tmp_path / '1.0.0'), '')


def test_a_shard_of_another_dataset_is_refused_when_it_is_opened(directory, multi, tmp_path):
  shutil.copytree(f'{directory}/photographs/1.0.0', tmp_path / '1.0.0')
  (shard,) = (tmp_path / '1.0.0').glob('*.array_record*')
  (other,) = pathlib.Path(f'{multi}/multi/one/1.0.0').glob('*.array_record*')
  shutil.copy(other, shard)
  with pytest.raises(InputError, match=r'4 records: expected 6, as dataset_info\.json says'):
    opened(str(tmp_path / '1.0.0'), '')


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
