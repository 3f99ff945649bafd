"""A folder of images with captions beside them: `cat.jpg` and `cat.txt`."""

import posixpath

import fsspec

from janus_jax.data.sources.files import open_file
from janus_jax.errors import InputError, RecordError

ENDINGS = ('.png', '.jpg', '.jpeg', '.webp', '.gif', '.bmp', '.tif', '.tiff', '.ppm', '.jp2', '.avif')


class ImageFolder:
  """Images anywhere below a folder, sorted by their paths, with their captions.

  A record is {'image': path, 'prompt': the caption, 'key': path relative to the folder}.
  """

  def __init__(self, directory: str):
    """
    Args:
      directory: local or in a bucket. Files whose names begin with a dot are left out.

    Raises:
      InputError: no such folder, it cannot be read, or there are no images in it.
    """
    try:
      system, root = fsspec.url_to_fs(directory)
      if not system.isdir(root):
        raise InputError(f'{directory}: no such folder: expected a folder of images')
      found = system.find(root)
    except (OSError, ImportError) as error:
      raise InputError(f'{directory}: {error}: expected a folder of images') from None
    self._root = system.unstrip_protocol(root).removeprefix('file://')
    self._keys = sorted(posixpath.relpath(path, root) for path in found if _is_image(path))
    if not self._keys:
      raise InputError(f'{directory}: no images in it: expected some of {", ".join(ENDINGS)}')

  def __len__(self) -> int:
    return len(self._keys)

  def __getitem__(self, index: int) -> dict[str, str]:
    """
    Raises:
      IndexError: no such record.
      RecordError: it has no caption, or one that is not UTF-8.
    """
    key = self._keys[index]
    image = posixpath.join(self._root, key)
    return {'image': image, 'prompt': _caption(f'{posixpath.splitext(image)[0]}.txt'), 'key': key}


def _is_image(path: str) -> bool:
  return path.lower().endswith(ENDINGS) and not posixpath.basename(path).startswith('.')


def _caption(path: str) -> str:
  try:
    with open_file(path) as file:
      return file.read().decode('utf-8-sig').strip()
  except InputError as error:
    raise RecordError('caption', f'{error}, the caption of the image beside it') from None
  except UnicodeDecodeError as error:
    raise RecordError('caption', f'{path}: {error.reason} at byte {error.start}: expected UTF-8') from None
