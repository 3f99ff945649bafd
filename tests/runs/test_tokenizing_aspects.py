"""Codes of images that keep their aspect: each image's own, in the order of the dataset, in batches of one shape."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from janus_jax.data.aspects import aspect_buckets, nearest_bucket
from janus_jax.data.images import covering_pixels
from janus_jax.data.sources.array_record import ArrayRecordExamples
from janus_jax.data.sources.files import find_files
from janus_jax.data.sources.manifest import Manifest, read_manifest
from janus_jax.data.sources.records import Fields, GenerationRecord
from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig, VQConfig
from janus_jax.models.vq import VQ
from janus_jax.runs import image_codes, tokenizing

# The square has 4 x 4 codes of 2 pixels.
CONFIG = VQConfig(8, codebook_size=64, z_channels=32, base_channels=32, channel_multipliers=(1, 1), num_res_blocks=1)
GRIDS = ((3, 5), (4, 4), (5, 3))
SIZES = ((9, 15), (12, 12), (12, 12), (30, 10), (12, 11), (10, 9), (9, 16))  # Heights and widths.
COUNT = 40


@functools.cache
def parameters() -> dict[str, np.ndarray]:
  params = VQ(CONFIG, ComputeConfig()).init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))['params']
  return {f'vq/{path}': np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params, sep='/').items()}


@functools.cache
def compiled_encoder(batch_size: int):
  return tokenizing.batch_encoder(CONFIG, parameters(), batch_size)


def dataset() -> list[dict]:
  """Noise of several shapes, in no order."""
  rng, records = np.random.default_rng(0), []
  for number, kind in enumerate(rng.integers(len(SIZES), size=COUNT)):
    pixels = rng.integers(256, size=(*SIZES[kind], 3), dtype=np.uint8)
    records.append({'prompt': f'image {number}', 'image': pixels, 'key': f'{number}'})
  return records


@pytest.fixture(scope='module', autouse=True)
def batches():
  """Shapes of the batches that are encoded; the VQ is in place of a checkpoint's."""
  shapes, encode = [], compiled_encoder(1)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tokenizing, 'load_vq', lambda *_: (CONFIG, parameters()))
    patch.setattr(
      tokenizing,
      'batch_encoder',
      lambda *_: lambda images: shapes.append([image.shape for image in images]) or encode(images),
    )
    yield shapes


def run(records: list[dict], output: pathlib.Path, **changes) -> Manifest:
  options = {'name': 'codes', 'records_per_shard': 25, 'shard': (0, 1), 'batch_size': 1, 'max_bad_fraction': 0.1}
  settings = tokenizing.TokenizeSettings(**options | {'aspects': True} | changes)
  return tokenizing.tokenize(records, 'no such checkpoint', str(output), settings)


@pytest.fixture(scope='module')
def made(batches, tmp_path_factory) -> pathlib.Path:
  output = tmp_path_factory.mktemp('made') / 'codes'
  run(dataset(), output)
  return output


def files(directory: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_codes_are_those_of_each_image_alone_in_the_datasets_order(made):
  assert aspect_buckets(CONFIG.grid) == GRIDS
  encode = image_codes.image_encoder(CONFIG, traverse_util.unflatten_dict(parameters(), sep='/')['vq'])
  found = ArrayRecordExamples(find_files(f'{made}/*.array_record'))
  assert [example['key'].decode() for example in found] == [f'{number}' for number in range(COUNT)]
  seen = set()
  for example, record in zip(found, dataset(), strict=True):
    assert set(example) == {'codes', 'grid', 'prompt', 'key'}
    image = Image.fromarray(record['image'])
    rows, columns = grid = nearest_bucket(image.width, image.height, GRIDS)
    assert example['grid'].tolist() == [rows, columns]
    pixels = covering_pixels(image, (2 * rows, 2 * columns))
    codes = np.frombuffer(example['codes'], '<u2')
    np.testing.assert_array_equal(codes, np.asarray(encode(pixels[None]))[0])
    assert codes.shape == (rows * columns,)
    seen.add(grid)
  assert seen == set(GRIDS)
  assert len({example['codes'] for example in found}) == COUNT


def test_a_batch_has_one_shape_and_is_full_unless_it_is_the_last_of_a_shard(batches, tmp_path):
  batches.clear()
  run(dataset(), tmp_path / 'codes')
  assert all(len(set(shapes)) == 1 for shapes in batches)
  for start, stop in ((0, 25), (25, COUNT)):  # The two shards.
    kinds = [nearest_bucket(r['image'].shape[1], r['image'].shape[0], GRIDS) for r in dataset()[start:stop]]
    expected = sum(-(-kinds.count(grid) // 8) for grid in set(kinds))
    taken, batches[:] = batches[:expected], batches[expected:]
    assert sum(map(len, taken)) == stop - start
  assert not batches


def test_training_reads_them(made):
  found = ArrayRecordExamples(find_files(f'{made}/*.array_record'))
  transform = GenerationRecord(Fields(codes='codes', grid='grid'), 8)
  records = [transform.record(found[index], np.random.default_rng(0)) for index in range(COUNT)]
  assert {record['grid'] for record in records} == set(GRIDS)
  assert all(len(record['codes']) == record['grid'][0] * record['grid'][1] for record in records)


def test_the_manifest_says_so(made):
  settings = read_manifest(str(made)).settings
  assert (settings.aspects, settings.crop) == (True, 'middle of the nearest aspect, bicubic (fast)')
  assert (settings.image_size, settings.codes_per_image) == (8, 16)


def test_manifests_from_before_there_were_aspects_are_of_squares(made, tmp_path):
  values = json.loads((made / 'manifest.json').read_text())
  del values['aspects']
  (tmp_path / 'manifest.json').write_text(json.dumps(values))
  assert read_manifest(str(tmp_path)).settings.aspects is False


@pytest.mark.parametrize('first', [False, True])
def test_squares_and_aspects_are_not_mixed(tmp_path, first):
  records = dataset()[:3]
  run(records, tmp_path, aspects=first)
  before = files(tmp_path)
  crops = [tokenizing.CROPS[kind].format('fast') for kind in (first, not first)]
  with pytest.raises(InputError) as error:
    run(records, tmp_path, aspects=not first)
  expected = f'crop is {crops[0]!r}: expected {crops[1]!r} as in this run; choose another --output'
  assert str(error.value) == f'{tmp_path}/manifest.json: {expected}'
  assert files(tmp_path) == before


class Interrupted(list):
  """Records, reading one of which to encode it, not for their digest, ends the process."""

  last, reads = 35, 0

  def __getitem__(self, index):
    self.reads += index == self.last
    if self.reads == 2:
      raise KeyboardInterrupt
    return super().__getitem__(index)


def test_an_interrupted_run_goes_on_to_the_same_files(made, tmp_path, monkeypatch):
  monkeypatch.setattr(tokenizing, 'AHEAD', 1)
  with pytest.raises(KeyboardInterrupt):
    run(Interrupted(dataset()), tmp_path)
  assert sum(name.endswith('.array_record') for name in files(tmp_path)) == 1
  assert run(dataset(), tmp_path).complete
  assert files(tmp_path) == files(made)


def test_a_bad_record_leaves_no_gap(tmp_path):
  records = dataset()
  records[3]['image'] = b'no image'
  assert [shard.written for shard in run(records, tmp_path).shards] == [24, 15]
  found = ArrayRecordExamples(find_files(f'{tmp_path}/*.array_record'))
  assert [example['key'].decode() for example in found] == [f'{n}' for n in range(COUNT) if n != 3]
