"""A folder of images with captions beside them: `cat.jpg` and `cat.txt`."""

import hashlib
import json
import posixpath

import fsspec

from janus_jax.data.sources.files import errors_named, expand_home, kept_file, read_text
from janus_jax.data.sources.lines import JsonLines
from janus_jax.errors import InputError, RecordError

ENDINGS = ('.png', '.jpg', '.jpeg', '.webp', '.gif', '.bmp', '.tif', '.tiff', '.ppm', '.jp2', '.avif')


def list_folder(directory: str) -> tuple[str, dict[str, int]]:
  """Files anywhere below a folder, local or in a bucket; those whose names begin with a dot are left out.

  Returns:
    The folder as `open_file` takes it; path relative to it -> bytes, sorted.

  Raises:
    InputError: no such folder, or it cannot be read.
  """
  with errors_named(directory, 'a folder of images'):
    system, root = fsspec.url_to_fs(expand_home(directory))
    if not system.isdir(root):
      raise InputError(f'{directory}: no such folder: expected a folder of images')
    found = system.find(root, detail=True)
  sizes = {
    posixpath.relpath(path, root): found[path]['size']
    for path in sorted(found)
    if not posixpath.basename(path).startswith('.')
  }
  return system.unstrip_protocol(root).removeprefix('file://'), sizes


class ImageFolder:
  """Images anywhere below a folder, sorted by their paths, with their captions.

  A record is {'image': path, 'prompt': the caption, 'key': path relative to the folder}.
  """

  def __init__(self, directory: str, index_directory: str):
    """
    Args:
      directory: as `list_folder` takes it.
      index_directory: for the list of images, so that processes share it.

    Raises:
      InputError: no such folder, it cannot be read, or there are no images in it.
    """
    self._root, sizes = list_folder(directory)
    keys = [key for key in sizes if key.lower().endswith(ENDINGS)]
    if not keys:
      raise InputError(f'{directory}: no images in it: expected some of {", ".join(ENDINGS)}')
    self._keys = JsonLines([_listing(keys, index_directory)], index_directory)

  def __len__(self) -> int:
    return len(self._keys)

  def where(self, index: int) -> str:
    """Path of the image, the name of a record in messages."""
    return posixpath.join(self._root, self._keys[index]['key'])

  def __getitem__(self, index: int) -> dict[str, str]:
    """Raises IndexError for no such record, RecordError for a caption that is missing or not text."""
    key = self._keys[index]['key']
    image = posixpath.join(self._root, key)
    try:
      prompt = read_text(f'{posixpath.splitext(image)[0]}.txt').strip()
    except RecordError as error:
      raise RecordError('caption', str(error)) from None
    except InputError as error:
      raise RecordError('caption', f'{error}, the caption of the image beside it') from None
    return {'image': image, 'prompt': prompt, 'key': key}


def _listing(keys: list[str], directory: str) -> str:
  """Path of a file with an object for each key, made if it is not there."""
  content = ''.join(f'{json.dumps({"key": key})}\n' for key in keys)

  def write(partial: str) -> None:
    with open(partial, 'w', encoding='utf-8') as file:
      file.write(content)

  return kept_file(directory, f'{hashlib.sha256(content.encode()).hexdigest()[:32]}.jsonl', write)
