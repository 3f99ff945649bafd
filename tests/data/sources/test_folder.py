import pickle

import pytest

from janus_jax import tokenize
from janus_jax.data.sources.folder import ImageFolder
from janus_jax.errors import InputError, RecordError


def test_a_folder_of_images(tmp_path):
  for name, caption in (('b.jpg', ' a dog\n'), ('sub/a.PNG', '\ufeffein Kätzchen'), ('c[1].webp', 'x')):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b'content')
    (tmp_path / name).with_suffix('.txt').write_text(caption)
  for name in ('a.png', 'd.png', '._b.jpg', 'notes.md'):
    (tmp_path / name).write_bytes(b'')
  (tmp_path / 'd.txt').write_bytes(b'\xff')
  folder = tokenize.open_input(f'{tmp_path}/', str(tmp_path / 'index'))
  assert isinstance(folder, ImageFolder)
  assert len(folder) == 5
  assert folder[1] == {'image': f'{tmp_path}/b.jpg', 'prompt': 'a dog', 'key': 'b.jpg'}
  assert folder[2]['prompt'] == 'x'
  assert folder[4] == {'image': f'{tmp_path}/sub/a.PNG', 'prompt': 'ein Kätzchen', 'key': 'sub/a.PNG'}
  for number, message in (
    (0, r'a\.txt: No such file.*caption'),
    (3, r'd\.txt: byte 0xff at offset 0: expected UTF-8'),
  ):
    with pytest.raises(RecordError, match=message) as error:
      folder[number]
    assert error.value.reason == 'caption'
  with pytest.raises(IndexError):
    folder[5]


def test_captions_of_other_encodings(tmp_path):
  (tmp_path / 'a.png').write_bytes(b'content')
  (tmp_path / 'a.txt').write_bytes('ein Kätzchen\r\n'.encode('utf-16'))
  assert ImageFolder(str(tmp_path), str(tmp_path / 'index'))[0]['prompt'] == 'ein Kätzchen'


def test_workers_do_not_get_the_list_of_images(tmp_path):
  sizes = []
  for count in (2, 200):
    folder = tmp_path / f'{count:03}'
    folder.mkdir()
    for number in range(count):
      (folder / f'{number}.png').write_bytes(b'')
    sizes.append(len(pickle.dumps(ImageFolder(str(folder), str(tmp_path / 'index')))))
  assert sizes[1] - sizes[0] < 10


def test_folders_that_are_none(tmp_path):
  (tmp_path / 'file').write_bytes(b'')
  for name, message in (('no', 'no such folder'), ('file', 'no such folder'), ('', 'no images in it')):
    with pytest.raises(InputError, match=message):
      ImageFolder(str(tmp_path / name), str(tmp_path / 'index'))
