"""What --input of `janus_jax.tokenize` may say, and what datasets are told apart by."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from janus_jax import tokenize
from janus_jax.data.sources import identity
from janus_jax.data.sources.identity import files_digest, records_digest
from janus_jax.errors import InputError

RECIPE = """
from janus_jax.runs.config import default_config

def get_config(root: str = ''):
  config = default_config()
  entry = {{'kind': 'generation', 'format': 'folder', 'path': root or {folder!r}}}
  config.data.sources = {{'mine': entry, 'said': {{'kind': 'text', 'format': 'text', 'path': 'x.txt'}}}}
  if root:
    config.data.sources['more'] = entry
  return config
"""


def write_folder(folder) -> str:
  for number, caption in enumerate(('a cat', 'a dog', 'a cow')):
    (folder / 'sub').mkdir(parents=True, exist_ok=True)
    (folder / 'sub' / f'{number}.png').write_bytes(b'content %d' % number)
    (folder / 'sub' / f'{number}.txt').write_text(caption)
  return str(folder)


@pytest.fixture
def recipe(tmp_path) -> str:
  path = tmp_path / 'recipe.py'
  path.write_text(RECIPE.format(folder=write_folder(tmp_path / 'folder')))
  return str(path)


def test_a_source_of_a_recipe_with_and_without_an_argument(recipe, tmp_path):
  assert len(tokenize.open_input(f'{recipe}:mine', str(tmp_path / 'index'))) == 3
  other = write_folder(tmp_path / 'a:b' / 'other')  # The last colon is that of the source.
  (tmp_path / 'a:b' / 'other' / 'sub' / '2.png').unlink()
  assert len(tokenize.open_input(f'{recipe}:{other}:more', str(tmp_path / 'index'))) == 2
  assert tokenize.find_source(f'{recipe}:gs://bucket/root:more').path == ('gs://bucket/root',)
  assert tokenize.find_source(other) is None
  assert tokenize.find_source('configs/janus_pro_1b.py:/data/root:real').path == ('/data/root/real/*.tar',)


@pytest.mark.parametrize(
  ('rest', 'message'),
  [
    (':nothing', r"no generation source of images 'nothing': expected one of \['mine', 'more'\]"),
    (':said', r"no generation source of images 'said': expected one of \['mine', 'more'\]"),
    ('', r"no generation source of images '': expected one of \['mine'\]"),
    (':', r"no generation source of images '': expected one of \['mine'\]"),
    (
      ':/root',
      r"no generation source of images '/root': expected one of \['mine', 'more'\].*:ARGUMENT:SOURCE",
    ),
    (':/root:', r"no generation source of images '': expected one of \['mine', 'more'\]"),
    (':gs://bucket/root', r"no generation source of images '//bucket/root': expected one of \['mine', 'more'\]"),
  ],
)
def test_the_sources_there_are_named(recipe, rest, message):
  with pytest.raises(InputError, match=message) as error:
    tokenize.open_input(f'{recipe}{rest}', '')
  assert '\n' not in str(error.value)


def test_a_folder_is_the_same_where_it_is_moved_and_another_where_a_file_is(tmp_path):
  folder = write_folder(tmp_path / 'one')
  before = tokenize.input_digest(folder)
  shutil.copytree(folder, tmp_path / 'two')
  moved = str(tmp_path / 'two')
  assert tokenize.input_digest(moved) == before
  (tmp_path / 'two' / 'notes.md').write_text('is no record')
  assert tokenize.input_digest(moved) == before
  for name in ('1.png', '2.txt'):
    (tmp_path / 'two' / 'sub' / name).write_text('longer than it was')
    after = tokenize.input_digest(moved)
    assert after != before
    before = after


def records() -> list[dict]:
  return [{'key': f'{n}', 'prompt': f'text {n}', 'image': np.full((2, 2, 3), n, np.uint8)} for n in range(5)]


@pytest.mark.parametrize('number', [0, 3, 4])
@pytest.mark.parametrize('change', [{'key': 'x'}, {'prompt': 'x'}, {'image': np.zeros((2, 2, 3), np.uint8) + 9}])
def test_another_record_is_another_dataset(number, change):
  changed = records()
  changed[number] = {**changed[number], **change}
  assert records_digest(records()) == records_digest(records())
  assert records_digest(changed) != records_digest(records())


def test_an_image_is_its_content_wherever_it_lies(tmp_path):
  found = []
  for folder in ('a', 'b'):
    (tmp_path / folder).mkdir()
    content = io.BytesIO()
    Image.new('RGB', (4, 4)).save(content, 'PNG')
    (tmp_path / folder / 'x.png').write_bytes(content.getvalue())
    found.append([{'key': 'x', 'prompt': 'y', 'image': str(tmp_path / folder / 'x.png')}])
  assert records_digest(found[0]) == records_digest(found[1])
  (tmp_path / 'b' / 'x.png').write_bytes(b'other')
  assert records_digest(found[0]) != records_digest(found[1])


def test_of_many_records_the_first_and_the_last_are_read(monkeypatch):
  monkeypatch.setattr(identity, 'RECORDS_READ', 3)
  for number, differs in ((0, True), (1, False), (2, True), (4, True)):
    changed = records()
    changed[number]['prompt'] = 'x'
    assert (records_digest(changed) != records_digest(records())) == differs


def test_files_are_told_apart_by_content_in_pieces(tmp_path):
  path = tmp_path / 'a.jsonl'
  line = json.dumps({'text': 'a' * 1000}).encode() + b'\n'
  path.write_bytes(line * 3000)
  before = files_digest([str(path)])
  (tmp_path / 'sub').mkdir()
  assert files_digest([str(shutil.copy(path, tmp_path / 'sub' / 'a.jsonl'))]) == before
  with open(path, 'r+b') as file:
    file.seek(-10, 2)
    file.write(b'b')
  changed = files_digest([str(path)])
  assert changed != before
  path.write_bytes(path.read_bytes() + line)
  assert files_digest([str(path)]) != changed
