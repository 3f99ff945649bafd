"""A bad record is named by its file and item, whichever format it has and however it has been shuffled."""

import io
import json
import re
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversion.fixtures import BOS, EOS, JANUS_TOKENS, make_tokenizer
from PIL import Image

from janus_jax.data import prompts
from janus_jax.data.examples import ExampleSpec
from janus_jax.data.mixture import shuffled
from janus_jax.data.packing import BatchShape, check_fits, size_of
from janus_jax.data.sources.array_record import ShardWriter, encode_example
from janus_jax.data.sources.build import ImageSizes, items, open_sources, read_specs
from janus_jax.data.sources.records import Fields, GenerationRecord, Numbered, ToEncode
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.data.workers import Reading, reason_of
from janus_jax.errors import InputError
from janus_jax.runs.tokenizing import read_image

FILES, ITEMS = 2, 4  # Each file has so many items, of which one is bad.
BAD = (1, 2)  # The file and the index in it.


def png() -> bytes:
  file = io.BytesIO()
  Image.new('RGB', (8, 8)).save(file, 'PNG')
  return file.getvalue()


def values(image, prompt='a square'):
  """Of each file, {'image', 'prompt', 'id'} of each item: the bad one has the image or the prompt given."""
  found = [[{'image': png(), 'prompt': 'a square', 'id': f'{f}{i}'} for i in range(ITEMS)] for f in range(FILES)]
  found[BAD[0]][BAD[1]] |= {'image': image, 'prompt': prompt}
  return found


def write_json(root, files, lines: bool):
  (root / 'good.png').write_bytes(png())
  for number, found in enumerate(files):
    named = [item | {'image': 'good.png' if item['image'] == png() else 'bad.png'} for item in found]
    text = '\n'.join(map(json.dumps, named)) if lines else json.dumps(named)
    (root / f'{number}.{"jsonl" if lines else "json"}').write_text(text)
  (root / 'bad.png').write_bytes(files[BAD[0]][BAD[1]]['image'])
  return {'format': 'json_lines' if lines else 'json', 'path': f'{root}/*.json*', 'image_folder': str(root)}


def write_parquet(root, files):
  for number, found in enumerate(files):
    pq.write_table(pa.Table.from_pylist(found), root / f'{number}.parquet', row_group_size=3)
  return {'format': 'parquet', 'path': f'{root}/*.parquet'}


def write_tars(root, files):
  for number, found in enumerate(files):
    with tarfile.open(root / f'{number}.tar', 'w') as tar:
      for item in found:
        for ending, content in (('png', item['image']), ('txt', item['prompt'].encode())):
          info = tarfile.TarInfo(f'{item["id"]}.{ending}')
          info.size = len(content)
          tar.addfile(info, io.BytesIO(content))
  return {'format': 'tars', 'path': f'{root}/*.tar', 'prompt': 'txt'}


def write_records(root, files):
  for number, found in enumerate(files):
    with ShardWriter(str(root / f'{number}.array_record')) as writer:
      for item in found:
        writer.write(encode_example(item))
  return {'format': 'array_record', 'path': f'{root}/*.array_record'}


def write_folder(root, files):
  for number, found in enumerate(files):
    (root / str(number)).mkdir()
    for index, item in enumerate(found):
      (root / str(number) / f'{index}.png').write_bytes(item['image'])
      (root / str(number) / f'{index}.txt').write_text(item['prompt'])
  return {'format': 'folder', 'path': str(root)}


FORMATS = {
  'json': (lambda root, files: write_json(root, files, lines=False), r'1\.json: item 2 \(id 12\)'),
  'json_lines': (lambda root, files: write_json(root, files, lines=True), r'1\.jsonl:3 \(id 12\)'),
  'parquet': (write_parquet, r'1\.parquet: row 2'),
  'tars': (write_tars, r'1\.tar: 12'),
  'array_record': (write_records, r'1\.array_record: record 2 \(id b?\'?12\)'),
  'folder': (write_folder, r'1/2\.png'),
}
# What is wrong with it: in the reader, or in the example stage.
WRONG = {
  'image damaged': ({'image': png()[:44]}, 'damaged PNG'),
  'text': ({'image': png(), 'prompt': 'an <image_placeholder>'}, 'in the text, but the record has no such image'),
  'long': ({'image': png(), 'prompt': 'a ' * 200}, r'sequence_length \(see data\.sources\.x\.long\)'),
}


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  directory = tmp_path_factory.mktemp('tokenizer')
  (directory / 'tokenizer.json').write_bytes(make_tokenizer((BOS, EOS, *JANUS_TOKENS)))
  return ExampleSpec(Tokenizer.from_directory(directory), prompts.TEMPLATES['deepseek'], 3, 5, 24, 16, 120)


@pytest.mark.parametrize('reason', WRONG)
@pytest.mark.parametrize('kind', FORMATS)
def test_each_bad_record_is_named(kind, reason, spec, tmp_path):
  (write, where), (wrong, message) = FORMATS[kind], WRONG[reason]
  (tmp_path / 'data').mkdir()
  entry = {'kind': 'generation'} | write(tmp_path / 'data', values(**wrong))
  index = str(tmp_path / 'index')
  for held_out in (0, 3):
    opened = open_sources(read_specs({'x': entry | {'held_out': held_out}}), ImageSizes(24, 16), 0, index)
    sources = [split['generation']['x'] for split in opened.values() if split['generation']]
    assert sum(map(len, sources)) == FILES * ITEMS
    errors = []
    for source in sources:
      reading = Reading({'generation/x': shuffled(source, 7, 'generation/x')}, spec, 0, 0.0)
      found = [reading.try_examples('generation/x', position) for position in range(3 * len(source))]
      errors += [error for error in found if isinstance(error, InputError)]
    assert len(errors) == 3  # Once an epoch.
    for error in errors:
      assert reason_of(error) == reason
      assert re.match(f'{tmp_path}/data/{where}: .*{message}', str(error)), error
  if reason == 'image damaged':
    (read,) = read_specs({'x': entry}).values()
    located = Numbered(ToEncode(items(read, index), read.fields))[BAD[0] * ITEMS + BAD[1]]
    with pytest.raises(InputError, match=rf'^{tmp_path}/data/{where.split(" ")[0]}.*: .*{message}'):
      read_image(located, GenerationRecord(Fields(), 16))


def test_a_document_is_named_by_its_first_line(spec, tmp_path):
  (tmp_path / 'x.txt').write_bytes(b'One.\n\nTwo\n<image_placeholder>\n\nThree \xff.\n')
  entry = {'kind': 'text', 'format': 'text', 'path': str(tmp_path / 'x.txt')}
  source = open_sources(read_specs({'x': entry}), ImageSizes(24, 16), 0, str(tmp_path))['train']['text']['x']
  reading = Reading({'text/x': source}, spec, 0, 0.0)
  for position, message in (
    (1, r'x\.txt:3: text: <image_placeholder> in the text'),
    (2, r'x\.txt:6: .*expected UTF-8'),
  ):
    with pytest.raises(InputError, match=f'^{tmp_path}/{message}'):
      reading.examples('text/x', position)


def test_a_record_that_no_batch_holds_is_named_too(spec, tmp_path):
  (tmp_path / 'x.txt').write_text('One.')
  entry = {'kind': 'text', 'format': 'text', 'path': str(tmp_path / 'x.txt')}
  source = open_sources(read_specs({'x': entry}), ImageSizes(24, 16), 0, str(tmp_path))['train']['text']['x']
  (example,) = Reading({'text/x': source}, spec, 0, 0.0).examples('text/x', 0)
  assert np.all(example.weights[:-1] == 1)
  with pytest.raises(InputError, match=rf'^{tmp_path}/x\.txt:1: the example has \d+ tokens: .*\(sequence_length\)'):
    check_fits(size_of(example), BatchShape(1, 2, 0, 0), example.where)
