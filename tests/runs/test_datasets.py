"""Data of a run: configs that are refused before anything is written, and requests that are sampled along the way."""

import functools
import json

import numpy as np
import pytest
import small_checkpoint

pytest.importorskip('sklearn')
pytest.importorskip('transformers')

from data.photographs import cuts, encoded
from recipes import recipe

from janus_jax.conversion.checkpoint import Checkpoint, open_checkpoint
from janus_jax.conversion.lazy import from_numpy
from janus_jax.data.sources import manifest
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS
from janus_jax.runs import datasets
from janus_jax.runs.config import TrainConfig, parse_config, replaced
from janus_jax.runs.datasets import check_codes, check_data, open_data
from janus_jax.runs.tokenizing import TokenizeSettings, load_vq, tokenize
from janus_jax.toy.shapes import World

MODEL = small_checkpoint.CONFIG
LLAVA = {'kind': 'understanding', 'format': 'json', 'path': 'x.json'}
WEB = {'kind': 'generation', 'format': 'tars', 'path': 'x.tar'}
CODES = {'kind': 'generation', 'format': 'array_record', 'path': 'x', 'codes': 'codes'}


def config_of(sources: dict, **data) -> TrainConfig:
  config = recipe('tiny')
  config.data.update({'name': 'files', 'precompute_codes': False, **data})
  config.data.sources = sources
  return parse_config(config)


def toy_of(**data) -> TrainConfig:
  config = recipe('tiny')
  config.data.update(data)
  return parse_config(config)


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (config_of({}), r"data.sources is empty.*'files'"),
    (toy_of(toy_combinations=13), r'^13 combinations held out of 6 colours and 4 shapes: expected 1 to 12$'),
    (toy_of(num_train=0, precompute_codes=True), r'^data.precompute_codes is for stored scenes: expected False'),
    (config_of({'a': WEB}, precompute_codes=True), r'data.precompute_codes is for the toy world'),
    (
      config_of({'a': WEB, 'b': CODES, 'c': LLAVA}),
      r'data.sources: b of 2 generation sources have codes: expected all',
    ),
  ],
)
def test_a_wrong_config_is_refused(config, message):
  with pytest.raises(InputError, match=message):
    check_data(config, MODEL if config.data.name == 'files' else PRESETS['toy'])


def test_the_first_good_held_out_records_are_looked_at(tmp_path):
  """One source has a bad record and one about two images, which no single question is about."""
  for i, image in enumerate(cuts(3)):
    (tmp_path / f'{i}.png').write_bytes(encoded(image, 1)[1])
  turns = [{'from': 'human', 'value': '<image>\nWhat?'}, {'from': 'gpt', 'value': 'A.'}]
  two = [{'from': 'human', 'value': 'Which?'}, {'from': 'gpt', 'value': 'A.'}]
  items = [
    {'image': '1.png', 'conversations': turns},
    {'image': '2.png', 'conversations': two},
    {'image': 'gone.png', 'conversations': turns},
    {'image': '0.png', 'conversations': turns},  # Trained on: of the others, the third and the fifth come first.
    {'image': ['1.png', '2.png'], 'conversations': two},
  ]
  (tmp_path / 'llava.json').write_text(json.dumps(items))
  entry = {**LLAVA, 'path': str(tmp_path / 'llava.json'), 'image_folder': str(tmp_path), 'held_out': 4}
  data = open_data(config_of({'llava': entry}), MODEL, str(tmp_path), lambda: None, 2)
  assert [question for _, question in data.samples.questions] == ['Which?', 'What?']
  assert data.samples.questions[1][0].shape == (MODEL.vision_encoder.image_size,) * 2 + (3,)
  assert data.samples.prompts == []
  assert not data.holds_codes


def test_a_raw_source_has_no_questions_to_look_at(tmp_path):
  (tmp_path / '0.png').write_bytes(encoded(cuts(1)[0], 1)[1])
  (tmp_path / 'captions.json').write_text(json.dumps([{'image': '0.png', 'caption': 'Roofs.'}] * 2))
  entry = {**LLAVA, 'path': str(tmp_path / 'captions.json'), 'image_folder': str(tmp_path), 'held_out': 1}
  raw = entry | {'answer': 'caption', 'template': 'raw'}
  data = open_data(config_of({'raw': raw}), MODEL, str(tmp_path), lambda: None, 2)
  assert data.held_out['understanding']['raw'][0]['text'] == 'Roofs.'
  assert data.samples.questions == []


def test_images_that_no_stage_generates_have_no_codes():
  config = replaced(parse_config(recipe('tiny')), {'run': ('stage1',)})
  for name in config.stages:
    config = replaced(config, {f'stages.{name}.sources.generation': {'shapes': 1, 'digits': 0}})
  assert datasets._generation_sources(config) == ['shapes']
  later = {'stages.stage3.sources': {'generation': {'digits': 2}}}  # It may run later.
  assert datasets._generation_sources(replaced(config, later)) == ['shapes', 'digits']


def test_stored_codes_are_those_of_the_vq_that_a_run_starts_from(tmp_path, monkeypatch):
  """A run that was killed before it began leaves codes; the next one in the workdir may start from another VQ."""
  monkeypatch.setattr(datasets.dataset, 'data_source', lambda *_: [{'image': np.zeros((24, 24, 3), np.uint8)}] * 2)
  monkeypatch.setattr(datasets, 'image_encoder', lambda _, params: lambda x: np.full((len(x), 4), int(params['x'][0])))

  def codes_of(value: int | None, is_new: bool) -> int:
    checkpoint = value and Checkpoint(MODEL, {'vq/x': from_numpy(np.full(3, value, np.float32), 'x')}, {}, {}, ())
    codes = datasets._ToyCodes(World(), MODEL.vq, 'data', str(tmp_path), lambda: checkpoint, is_new)
    return codes.of('shapes', 'train')[1, 3]

  assert codes_of(1, is_new=True) == 1
  assert codes_of(None, is_new=False) == 1  # It goes on without what it started from.
  assert codes_of(2, is_new=True) == 2
  assert codes_of(1, is_new=False) == 1  # Of two the right one.


def test_codes_of_another_vq_are_refused_where_a_run_begins(tmp_path):
  checkpoint = small_checkpoint.write(tmp_path / 'checkpoint')
  images = [np.asarray(image) for image in cuts(3)]
  records = [{'prompt': f'{i}', 'image': image, 'key': f'{i}'} for i, image in enumerate(images)]
  options = {'name': 'x', 'records_per_shard': 8, 'shard': (0, 1), 'batch_size': 4, 'max_bad_fraction': 0.0}
  tokenize(records, checkpoint, str(tmp_path / 'codes'), TokenizeSettings(**options))
  config = config_of({'x': {**CODES, 'path': str(tmp_path / 'codes' / '*.array_record')}})
  config = replaced(config, {'run': ('stage1',), 'stages.stage1.sources': {'generation': {'x': 1}}})
  open_start = functools.partial(open_checkpoint, checkpoint)
  check_codes(config, [MODEL], open_start)
  data = open_data(config, MODEL, str(tmp_path), open_start, 0)
  assert data.holds_codes
  assert data.train['generation']['x'][2]['codes'].shape == (MODEL.vq.num_tokens,)
  path = tmp_path / 'codes' / 'manifest.json'
  right = manifest.parameters_hash(load_vq(checkpoint)[1])
  path.write_text(path.read_text().replace(right, right[::-1]))
  with pytest.raises(InputError, match=r'manifest\.json: vq_hash is '):
    check_codes(config, [MODEL], open_start)
  open_data(config, MODEL, str(tmp_path), lambda: pytest.fail('the start was read'), 0, is_new=False)


@pytest.mark.parametrize('aspects', [False, True])
def test_a_source_names_the_grids_of_codes_that_have_them(tmp_path, aspects):
  checkpoint = small_checkpoint.write(tmp_path / 'checkpoint')
  records = [{'prompt': 'a', 'image': np.asarray(image), 'key': 'a'} for image in cuts(1)]
  options = {'name': 'x', 'records_per_shard': 8, 'shard': (0, 1), 'batch_size': 1, 'max_bad_fraction': 0.0}
  tokenize(records, checkpoint, str(tmp_path / 'codes'), TokenizeSettings(**options, aspects=aspects))
  for grid in ('', 'grid'):
    entry = {**CODES, 'path': str(tmp_path / 'codes' / '*.array_record'), 'grid': grid}
    config = replaced(config_of({'x': entry}), {'run': ('stage1',), 'stages.stage1.sources': {'generation': {'x': 1}}})
    if aspects == bool(grid):
      check_codes(config, [MODEL], functools.partial(open_checkpoint, checkpoint))
      continue
    expected = "'grid', as the codes of" if aspects else "'', as no codes of"
    message = rf'^data\.sources\.x\.grid is {grid!r}: expected {expected} .*manifest\.json have aspects$'
    with pytest.raises(InputError, match=message):
      check_codes(config, [MODEL], functools.partial(open_checkpoint, checkpoint))


def test_a_stage_reads_codes_of_its_size(tmp_path):
  checkpoint = small_checkpoint.write(tmp_path / 'checkpoint')
  side = 2 * MODEL.vq.image_size
  records = [{'prompt': 'a', 'image': np.asarray(image), 'key': 'a'} for image in cuts(1)]
  options = {'name': 'x', 'records_per_shard': 8, 'shard': (0, 1), 'batch_size': 1, 'max_bad_fraction': 0.0}
  for name, size in (('small', None), ('large', side)):
    tokenize(records, checkpoint, str(tmp_path / name), TokenizeSettings(**options, image_size=size))
  made = manifest.read_manifest(str(tmp_path / 'large')).settings
  assert (made.image_size, made.codes_per_image) == (side, 4 * MODEL.vq.num_tokens)
  config = config_of({n: {**CODES, 'path': str(tmp_path / n / '*.array_record')} for n in ('small', 'large')})
  changes = {f'stages.stage{i}.sources': {'generation': {n: 1}} for i, n in ((1, 'small'), (2, 'large'))}
  config = replaced(config, {'run': ('stage1', 'stage2'), **changes})
  open_start = functools.partial(open_checkpoint, checkpoint)
  check_codes(config, [MODEL, MODEL.resized(generation_size=side)], open_start)
  with pytest.raises(InputError, match=rf'large.manifest\.json: image_size is {side}: expected {MODEL.vq.image_size}'):
    check_codes(config, [MODEL, MODEL], open_start)
  with pytest.raises(InputError, match=r'image_size is 33: expected a multiple of'):
    tokenize(records, checkpoint, str(tmp_path / 'odd'), TokenizeSettings(**options, image_size=33))
