"""Codes of whole datasets: those of each image alone, whatever was interrupted, shared out or damaged on the way."""

import dataclasses
import functools
import io
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from janus_jax import cli
from janus_jax.data.images import generation_pixels
from janus_jax.data.sources import manifest
from janus_jax.data.sources.array_record import ArrayRecordExamples
from janus_jax.data.sources.files import find_files
from janus_jax.data.sources.manifest import check_manifest, parameters_hash, read_manifest
from janus_jax.data.sources.records import Fields, GenerationRecord
from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig, VQConfig
from janus_jax.models.vq import VQ
from janus_jax.runs import image_codes, tokenizing

CONFIG = VQConfig(8, codebook_size=64, z_channels=32, base_channels=32, channel_multipliers=(1, 1), num_res_blocks=1)
DEFAULTS = {'name': 'codes', 'records_per_shard': 6, 'shard': (0, 1), 'batch_size': 1, 'max_bad_fraction': 0.01}


@functools.cache
def parameters() -> dict[str, np.ndarray]:
  params = VQ(CONFIG, ComputeConfig()).init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))['params']
  return {f'vq/{path}': np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params, sep='/').items()}


BATCH_ENCODER = tokenizing.batch_encoder


@functools.cache
def compiled_encoder(batch_size: int):
  return BATCH_ENCODER(CONFIG, parameters(), batch_size)


@pytest.fixture(autouse=True, scope='module')
def small_vq():
  """In place of a checkpoint's; compiled once for all tests."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tokenizing, 'load_vq', lambda *_: (CONFIG, parameters()))
    patch.setattr(tokenizing, 'batch_encoder', lambda config, params, batch_size: compiled_encoder(batch_size))
    yield


def dataset(count: int) -> list[dict]:
  """Noise: file contents and arrays in turn, none of them square."""
  records = []
  for number in range(count):
    pixels = np.random.default_rng(number).integers(256, size=(8, 12, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, 'PNG')
    image = pixels if number % 2 else content.getvalue()
    records.append({'prompt': f'Bild №{number}', 'image': image, 'key': f'{number}.png', 'pixels': pixels})
  return records


def run(records, output, **changes) -> manifest.Manifest:
  return tokenizing.tokenize(
    records, 'no such checkpoint', str(output), tokenizing.TokenizeSettings(**DEFAULTS | changes)
  )


def files(directory: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope='module')
def single(small_vq, tmp_path_factory):
  """Directory of 20 records in four shards, written in one go."""
  output = tmp_path_factory.mktemp('single') / 'made'
  run(dataset(20), output)
  return output


@functools.cache
def alone():
  tree = traverse_util.unflatten_dict(parameters(), sep='/')['vq']
  return image_codes.image_encoder(CONFIG, tree)


def test_codes_are_those_of_each_image_alone(single):
  assert jax.local_device_count() == 8  # A shard of six leaves two devices nothing but filling.
  found, records = ArrayRecordExamples(find_files(f'{single}/*.array_record')), dataset(20)
  assert len(found) == 20
  assert [example['key'].decode() for example in found] == [record['key'] for record in records]
  assert [example['prompt'].decode() for example in found] == [record['prompt'] for record in records]
  for example, record in zip(found, records, strict=True):
    assert set(example) == {'codes', 'prompt', 'key'}
    pixels = generation_pixels(Image.fromarray(record['pixels']), 8)
    np.testing.assert_array_equal(np.frombuffer(example['codes'], '<u2'), np.asarray(alone()(pixels[None]))[0])
  assert len({example['codes'] for example in found}) == 20
  assert max(np.frombuffer(example['codes'], '<u2').max() for example in found) > 32


def test_training_reads_them(single):
  found = ArrayRecordExamples(find_files(f'{single}/*.array_record'))
  record = GenerationRecord(Fields(codes='codes'), 8).record(found[3], np.random.default_rng(0))
  assert record['prompt'] == 'Bild №3'
  np.testing.assert_array_equal(record['codes'], np.frombuffer(found[3]['codes'], '<u2'))


def test_every_batch_has_one_shape_and_fills_the_devices(tmp_path, monkeypatch):
  shapes = []

  def image_encoder(config, params):
    encode = image_codes.image_encoder(config, params)

    def spy(pixels):
      shapes.append((pixels.shape, len(pixels.sharding.device_set), pixels.sharding.shard_shape(pixels.shape)[0]))
      return encode(pixels)

    return spy

  monkeypatch.setattr(tokenizing, 'image_encoder', image_encoder)
  monkeypatch.setattr(tokenizing, 'batch_encoder', BATCH_ENCODER)
  made = run(dataset(20), tmp_path / 'made', batch_size=2, records_per_shard=17)
  assert [shard.written for shard in made.shards] == [17, 3]
  assert shapes == [((16, 8, 8, 3), 8, 2)] * 3


def test_the_manifest(single):
  values = json.loads((single / 'manifest.json').read_text())
  shards = [
    {'index': index, 'written': count, 'skipped': {}, 'jax_version': jax.__version__}
    for index, count in enumerate((6, 6, 6, 2))
  ]
  assert values == {
    'format_version': 1,
    'name': 'codes',
    'num_records': 20,
    'records_per_shard': 6,
    'vq_hash': parameters_hash(parameters()),
    'image_size': 8,
    'crop': 'middle square, bicubic (fast)',
    'codes_per_image': 16,
    'codebook_size': 64,
    'aspects': False,
    'dataset': read_manifest(str(single)).settings.dataset,
    'complete': True,
    'shards': shards,
  }
  assert sorted(files(single)) == sorted(
    ['manifest.json', *(f'codes-0000{i}-of-00004.{end}' for i in range(4) for end in ('array_record', 'json'))]
  )


class Interrupted(list):
  """Records, reading one of which to encode it, not for their digest, ends the process."""

  def __init__(self, records, last):
    super().__init__(records)
    self.last, self.reads = last, 0

  def __getitem__(self, index):
    self.reads += index == self.last
    if self.reads == 2:
      raise KeyboardInterrupt
    return super().__getitem__(index)


def test_an_interrupted_run_goes_on_where_it_stood(tmp_path):
  output = tmp_path / 'made'
  # It reads 24 records ahead of the one it encodes, so this ends it in the middle of the third shard.
  with pytest.raises(KeyboardInterrupt):
    run(Interrupted(dataset(80), 77), output, records_per_shard=20)
  assert not read_manifest(str(output)).complete
  finished = [name for name in files(output) if name.endswith('.array_record')]
  assert finished == ['codes-00000-of-00004.array_record', 'codes-00001-of-00004.array_record']
  assert not [name for name in files(output) if name.endswith('.partial')]
  # What kill -9 leaves.
  (output / 'codes-00003-of-00004.array_record.partial').write_bytes(b'half a shard')
  kept = output / finished[0]
  before = kept.stat().st_mtime_ns
  assert run(dataset(80), output, records_per_shard=20).complete
  assert kept.stat().st_mtime_ns == before
  run(dataset(80), tmp_path / 'other', records_per_shard=20)
  assert files(output) == files(tmp_path / 'other')


@pytest.mark.parametrize('damage', ['counts', 'no_counts', 'records', 'no_records'])
def test_a_shard_that_is_not_whole_is_written_again(single, tmp_path, damage):
  output = tmp_path / 'made'
  output.mkdir()
  for name, content in files(single).items():
    (output / name).write_bytes(content)
  path = output / f'codes-00001-of-00004.{"json" if "counts" in damage else "array_record"}'
  if damage.startswith('no_'):
    path.unlink()
  else:
    path.write_bytes(path.read_bytes()[:70])
  run(dataset(20), output)
  assert files(output) == files(single)


def test_hosts_share_the_work(single, tmp_path):
  output = tmp_path / 'made'
  for host in (2, 0, 1):
    assert not (output / 'manifest.json').exists() or not read_manifest(str(output)).complete
    made = run(dataset(20), output, shard=(host, 3))
    present = sorted(int(path.name[6:11]) for path in output.glob('*.array_record'))
    assert [shard.index for shard in made.shards] == present
    assert set(range(host, 4, 3)) <= set(present)
  assert files(output) == files(single)


def test_a_second_run_has_nothing_to_do(single, monkeypatch, caplog):
  monkeypatch.setattr(tokenizing, 'batch_encoder', None)
  caplog.set_level('INFO')
  assert run(dataset(20), single).complete
  assert f'{single}: 0 shards written, 4 kept; 0 of 20 records are bad' in caplog.text


def poisoned(count: int) -> list[dict]:
  """A dataset of which records 2 to 5 are bad."""
  records = dataset(count)
  records[2]['image'] = records[2]['image'][:60]
  records[3]['image'] = b''
  records[4]['prompt'] = ' '
  records[5]['prompt'] = 'half a pair: \ud800'
  return records


def test_bad_records_are_left_out_and_counted(tmp_path, caplog):
  output = tmp_path / 'made'
  made = run(poisoned(20), output, max_bad_fraction=0.25)
  assert [shard.written for shard in made.shards] == [2, 6, 6, 2]
  assert [shard.skipped for shard in made.shards] == [{'image damaged': 2, 'text': 2}, {}, {}, {}]
  keys = [example['key'].decode() for example in ArrayRecordExamples(find_files(f'{output}/*.array_record'))]
  assert keys == ['0.png', '1.png', *(f'{number}.png' for number in range(6, 20))]
  for number, message in ((2, 'damaged PNG image'), (3, '0 bytes'), (4, 'empty'), (5, 'surrogates not allowed')):
    assert any(f'item {number} (key ' in line and message in line for line in caplog.messages)
  # A second run counts what the first one left out.
  caplog.set_level('INFO')
  run(poisoned(20), output, max_bad_fraction=0.25)
  assert '4 of 20 records are bad (image damaged 2, text 2)' in caplog.text


def test_too_many_bad_records_stop_the_run(tmp_path):
  output, message = tmp_path / 'made', r'4 of 20 records are bad \(image damaged 2, text 2\): expected at most 15.0%'
  for _ in range(2):  # Shards that were finished count too.
    with pytest.raises(InputError, match=message):
      run(poisoned(20), output, max_bad_fraction=0.15)
    assert len(list(output.glob('*.array_record'))) == 3
    assert not read_manifest(str(output)).complete
  assert run(poisoned(20), output, max_bad_fraction=0.25).complete


def test_a_dataset_that_cannot_be_read_skips_the_record(tmp_path):
  class Torn(list):
    def __getitem__(self, index):
      if index == 4:
        raise OSError('bad sector')
      return super().__getitem__(index)

  made = run(Torn(dataset(10)), tmp_path / 'made', max_bad_fraction=0.2)
  assert [shard.skipped for shard in made.shards] == [{'unreadable': 1}, {}]


def test_other_settings_are_refused(single, tmp_path, monkeypatch):
  before = files(single)
  with pytest.raises(InputError, match=rf'^{single}/manifest.json: records_per_shard is 6: expected 7 as in this run'):
    run(dataset(20), single, records_per_shard=7)
  with pytest.raises(InputError, match=r'num_records is 20: expected 21 as'):
    run(dataset(21), single)
  other = {**parameters(), 'vq/codebook': parameters()['vq/codebook'] + 1}
  monkeypatch.setattr(tokenizing, 'load_vq', lambda *_: (CONFIG, other))
  hashes = [parameters_hash(params) for params in (parameters(), other)]
  with pytest.raises(InputError, match=rf"vq_hash is '{hashes[0]}': expected '{hashes[1]}' as in this run"):
    run(dataset(20), single)
  larger = dataclasses.replace(CONFIG, image_size=16)
  monkeypatch.setattr(tokenizing, 'load_vq', lambda *_: (larger, parameters()))
  with pytest.raises(InputError, match=r'image_size is 8: expected 16 as in this run'):
    run(dataset(20), single)
  assert files(single) == before


@pytest.mark.parametrize('change', [{'prompt': 'another'}, {'key': 'x.png'}, {'image': np.zeros((8, 12, 3), np.uint8)}])
def test_another_dataset_of_as_many_records_is_refused(single, change):
  before = files(single)
  records = dataset(20)
  records[13] |= change
  with pytest.raises(InputError, match=r'manifest.json: codes of another dataset with as many records: expected'):
    run(records, single)
  with pytest.raises(InputError, match=r'manifest.json: codes of another dataset with as many records: expected'):
    run(dataset(20), single, files='of another file')
  assert files(single) == before
  assert run(dataset(20), single).complete


def test_codes_of_an_unknown_dataset_train_and_are_not_gone_on_with(single, tmp_path):
  directory = shutil.copytree(single, tmp_path / 'old')
  values = json.loads((directory / 'manifest.json').read_text())
  del values['dataset']
  (directory / 'manifest.json').write_text(json.dumps(values))
  check_manifest(read_manifest(str(directory)), parameters_hash(parameters()), 8, 64)
  with pytest.raises(InputError, match='codes of an unknown dataset: expected'):
    run(dataset(20), directory)


def test_a_trainer_checks_the_manifest(single):
  made = read_manifest(str(single))
  right = {'vq_hash': parameters_hash(parameters()), 'image_size': 8, 'codebook_size': 64}
  check_manifest(made, **right)
  for name, value in (('vq_hash', 'c' * 64), ('image_size', 384), ('codebook_size', 16384)):
    message = f'^{made.path}: {name} is {right[name]!r}: expected {value!r}'
    with pytest.raises(InputError, match=message):
      check_manifest(made, **right | {name: value})
  with pytest.raises(InputError, match=r'manifest\.json: 3 of 4 shards: expected all'):
    check_manifest(dataclasses.replace(made, shards=made.shards[1:]), **right)


def test_wrong_arguments(tmp_path):
  for changes, message in (
    ({'records_per_shard': 0}, 'records_per_shard is 0: expected 1 or more'),
    ({'batch_size': 0}, 'batch_size is 0: expected 1 or more'),
    ({'shard': (3, 3)}, 'shard is 3/3: expected i/n with 0 <= i < n'),
    ({'max_bad_fraction': 1.5}, 'max_bad_fraction is 1.5: expected a fraction from 0 to 1'),
  ):
    with pytest.raises(InputError, match=message):
      run(dataset(1), tmp_path / 'made', **changes)
  with pytest.raises(InputError, match='the dataset has no records'):
    run([], tmp_path / 'made')
  assert os.listdir(tmp_path) == []
  assert cli.parse_shard('2/8') == (2, 8)
  for text in ('8/8', '-1/8', '2', '2/', 'a/b', '1/2/3'):
    with pytest.raises(InputError, match=f"shard is '{text}': expected i/n"):
      cli.parse_shard(text)
