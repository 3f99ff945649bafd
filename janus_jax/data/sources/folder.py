"""A folder of images with captions beside them: `cat.jpg` and `cat.txt`."""

import hashlib
import json
import posixpath

import fsspec

from janus_jax.data.sources.files import expand_home, read_text
from janus_jax.data.sources.kept_files import kept_file
from janus_jax.data.sources.lines import JsonLines
from janus_jax.errors import InputError, RecordError

ENDINGS = ('.png', '.jpg', '.jpeg', '.webp', '.gif', '.bmp', '.tif', '.tiff', '.ppm', '.jp2', '.avif')


class ImageFolder:
  """Images anywhere below a folder, sorted by their paths, with their captions.

  A record is {'image': path, 'prompt': the caption, 'key': path relative to the folder}.
  """

  def __init__(self, directory: str, index_directory: str):
    """
    Args:
      directory: local or in a bucket. Files whose names begin with a dot are left out.
      index_directory: where the list of images is kept, so that processes share it.

    Raises:
      InputError: no such folder, it cannot be read, or there are no images in it.
    """
    try:
      system, root = fsspec.url_to_fs(expand_home(directory))
      if not system.isdir(root):
        raise InputError(f'{directory}: no such folder: expected a folder of images')
      found = system.find(root)
    except (OSError, ImportError) as error:
      raise InputError(f'{directory}: {error}: expected a folder of images') from None
    self._root = system.unstrip_protocol(root).removeprefix('file://')
    keys = sorted(posixpath.relpath(path, root) for path in found if _is_image(path))
    if not keys:
      raise InputError(f'{directory}: no images in it: expected some of {", ".join(ENDINGS)}')
    self._keys = JsonLines([_listing(keys, index_directory)], index_directory)

  def __len__(self) -> int:
    return len(self._keys)

  def where(self, index: int) -> str:
    """What messages call a record: the path of its image."""
    return posixpath.join(self._root, self._keys[index]['key'])

  def __getitem__(self, index: int) -> dict[str, str]:
    """
    Raises:
      IndexError: no such record.
      RecordError: it has no caption, or one that is not text.
    """
    key = self._keys[index]['key']
    image = posixpath.join(self._root, key)
    return {'image': image, 'prompt': _caption(f'{posixpath.splitext(image)[0]}.txt'), 'key': key}


def _listing(keys: list[str], directory: str) -> str:
  """Path of a file with an object for each key, made if it is not there."""
  content = ''.join(f'{json.dumps({"key": key})}\n' for key in keys)

  def write(partial: str) -> None:
    with open(partial, 'w', encoding='utf-8') as file:
      file.write(content)

  return kept_file(directory, f'{hashlib.sha256(content.encode()).hexdigest()[:32]}.jsonl', write)


def _is_image(path: str) -> bool:
  return path.lower().endswith(ENDINGS) and not posixpath.basename(path).startswith('.')


def _caption(path: str) -> str:
  try:
    return read_text(path).strip()
  except RecordError as error:
    raise RecordError('caption', str(error)) from None
  except InputError as error:
    raise RecordError('caption', f'{error}, the caption of the image beside it') from None
