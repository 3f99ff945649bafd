"""Recognises what cannot be opened as a checkpoint, to say what it is: archives, adapters, other programs' files."""

import glob
import os
import pathlib

from janus_jax.data.pointers import check_content
from janus_jax.errors import InputError
from janus_jax.models.files import CONFIG_FILE

# Files that make a directory one that can be opened: ours, PyTorch's, an adapter's.
CONFIG_FILES = (CONFIG_FILE, 'config.json', 'adapter_config.json')
EXPECTED = f'{CONFIG_FILE} (ours), config.json (PyTorch) or adapter_config.json (peft)'
# First bytes of a file -> what it is. (Those of a tar are at offset 257.)
_MAGIC = (
  (b'GGUF', 'a GGUF file (llama.cpp), whose weights are quantized'),
  (b'PK\x03\x04', 'a zip archive'),
  (b'\x1f\x8b', 'a compressed archive (gzip)'),
  (b'\xfd7zXZ\x00', 'a compressed archive (xz)'),
  (b'BZh', 'a compressed archive (bzip2)'),
  (b'\x28\xb5\x2f\xfd', 'a compressed archive (zstd)'),
  (b'7z\xbc\xaf\x27\x1c', 'a 7z archive'),
  (b'\x89HDF\r\n\x1a\n', 'an HDF5 file (Keras)'),
)
# End of a file's name -> what it is.
_ENDINGS = (
  (('.gguf', '.ggml'), 'a GGUF file (llama.cpp), whose weights are quantized'),
  (('.onnx', '.onnx_data'), 'an ONNX model'),
  (('.safetensors',), 'a file of weights (safetensors)'),
  (('.bin', '.pt', '.pth', '.ckpt'), 'a file of weights (PyTorch)'),
  (('.msgpack',), 'a file of weights (Flax)'),
  (('.h5', '.keras'), 'a file of weights (Keras)'),
  (('.tar', '.tar.gz', '.tgz', '.zip', '.7z', '.tar.xz', '.tar.bz2', '.tar.zst'), 'an archive'),
  (('.json',), 'a JSON file'),
)
_WEIGHTS = ('.safetensors', '.bin', '.pt', '.pth', '.ckpt', '.msgpack', '.h5', '.gguf', '.onnx', '.distcp')


def check_is_checkpoint(path: str, name: str) -> None:
  """Raises InputError, which says what `path` is instead, unless a config file makes it a checkpoint.

  Args:
    path: local path.
    name: what the message calls it, where `path` is its copy.
  """
  if not os.path.exists(path):
    raise InputError(f'{name}: no such directory')
  if not os.path.isdir(path):
    raise InputError(_file_text(path, name))
  found = sorted(os.listdir(path))
  is_checkpoint = has_config(path)
  if 'model_index.json' in found:
    raise InputError(f'{name}: a diffusers pipeline, not a Janus: expected {EXPECTED}')
  if not is_checkpoint:
    raise InputError(f'{name}: {_directory_text(path, found)}')


def found_weights(directory: str) -> str:
  """'found model.gguf, ...': what a directory has that looks like weights, at most five of them."""
  files = [file for file in sorted(os.listdir(directory)) if file.endswith(_WEIGHTS)]
  return f'found {", ".join(files[:5])}{", ..." if len(files) > 5 else ""}' if files else 'found none'


def _file_text(path: str, name: str) -> str:
  with open(path, 'rb') as file:
    head = file.read(512)
  check_content(head, name)
  found = next((text for magic, text in _MAGIC if head.startswith(magic)), None)
  found = 'a tar archive' if head[257:262] == b'ustar' else found
  ending = next((text for endings, text in _ENDINGS if path.lower().endswith(endings)), None)
  if found is None or (ending and 'PyTorch' in ending):  # What torch.save writes is a zip archive.
    found = ending or 'a file'
  if 'archive' in found:
    hint = '; unpack it first'
  else:
    hint = f'; did you mean {os.path.dirname(name) or "."}?' if has_config(os.path.dirname(path) or '.') else ''
  return f'{name}: {found}, not a directory: expected one with {EXPECTED}{hint}'


def _directory_text(path: str, found: list[str]) -> str:
  """The error's text for a directory without a config."""
  for above in pathlib.Path(os.path.abspath(path)).parents[:3]:  # WORKDIR/checkpoints/STEP/params: up to WORKDIR.
    if has_config(above):
      return f'a part of the checkpoint {above}: expected {EXPECTED}; did you mean {above}?'
  # huggingface_hub's cache is models--ORGANISATION--NAME/snapshots/REVISION.
  folders = [os.path.join(path, name) for name in [*found, *sorted(glob.glob('snapshots/*', root_dir=path))]]
  below = list(filter(has_config, folders))
  if below:
    meant = ' or '.join(below[:3])
    return f'not a checkpoint, but a directory of such: expected {EXPECTED}; did you mean {meant}?'
  if not found:
    return f'an empty directory: expected {EXPECTED}'
  known = [f'; {file} is {text}' for file in found for ends, text in _ENDINGS[:-1] if file.lower().endswith(ends)]
  return f'not a checkpoint: expected {EXPECTED}{known[0] if known else ""}'


def has_config(directory: str | os.PathLike) -> bool:
  """Tells whether a directory has one of CONFIG_FILES, which makes it a checkpoint."""
  return any(os.path.isfile(os.path.join(directory, file)) for file in CONFIG_FILES)
