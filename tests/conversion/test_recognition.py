"""What is given for a checkpoint and is none: named for what it is. Git-LFS pointers instead of any file."""

import io
import os
import pathlib
import shutil
import tarfile
import zipfile

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

from conversion.checkpoints import deepseek_directory, huggingface_directory  # noqa: E402

from janus_jax.conversion.adapters import split_base  # noqa: E402
from janus_jax.conversion.checkpoint import open_checkpoint, read_json, write_checkpoint  # noqa: E402
from janus_jax.conversion.export import exporting  # noqa: E402
from janus_jax.conversion.parts import read_vq  # noqa: E402
from janus_jax.data.images import decode_image  # noqa: E402
from janus_jax.data.sources.build import items, read_specs  # noqa: E402
from janus_jax.data.tokenizer import Tokenizer  # noqa: E402
from janus_jax.errors import InputError  # noqa: E402

POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 4140000000\n'.format('4d7a' * 16).encode()
LINE = 'a Git-LFS pointer, not the file itself: expected its content; run `git lfs pull`'


@pytest.fixture(scope='module')
def intact(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp('intact')
  huggingface_directory(root / 'huggingface')
  huggingface_directory(root / 'shards', max_shard_size='500KB')
  deepseek_directory(root / 'deepseek', shards=1)
  checkpoint = open_checkpoint(str(root / 'huggingface'))
  with exporting(checkpoint, str(root / 'orbax'), 'orbax', False) as directory:
    write_checkpoint(checkpoint, directory, 'orbax', lambda _: None)
  return root


def pointed(intact: pathlib.Path, tmp_path: pathlib.Path, layout: str, file: str) -> pathlib.Path:
  """A copy of a checkpoint, one file of which is a pointer."""
  copy = tmp_path / layout
  shutil.copytree(intact / layout, copy)
  path = copy / file if '*' not in file else next(copy.glob(file))
  assert path.exists()
  path.write_bytes(POINTER)
  return path


@pytest.mark.parametrize(
  ('layout', 'file'),
  [
    ('huggingface', 'config.json'),
    ('huggingface', 'model.safetensors'),
    ('huggingface', 'tokenizer.json'),
    ('shards', 'model.safetensors.index.json'),
    ('shards', 'model-00001-of-*.safetensors'),
    ('deepseek', 'pytorch_model.bin'),
    ('deepseek', 'tokenizer.json'),
    ('orbax', 'janus_config.json'),
    ('orbax', 'tokenizer.json'),
    ('orbax', 'params/manifest.ocdbt'),
    ('orbax', 'params/d/*'),
    ('orbax', 'params/_METADATA'),
  ],
)
def test_a_pointer_in_a_checkpoint_is_named(intact, tmp_path, layout, file):
  path = pointed(intact, tmp_path, layout, file)
  with pytest.raises(InputError) as error:
    open_checkpoint(str(path.parents[file.count('/')]))
  assert str(error.value) == f'{path}: {LINE}'


def test_pointers_as_files_of_any_other_kind(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(POINTER)
  for read in (read_json, Tokenizer, lambda path: read_vq(path, 8), open_checkpoint):
    with pytest.raises(InputError) as error:
      read(str(path))
    assert str(error.value) == f'{path}: {LINE}'
  with pytest.raises(InputError, match=f'^a.png: {LINE}$'):
    decode_image(io.BytesIO(POINTER), 'a.png')


@pytest.mark.parametrize('format', ['array_record', 'json', 'json_lines', 'parquet', 'tars', 'text'])
def test_pointers_as_data(tmp_path, format):
  path = tmp_path / 'file'
  path.write_bytes(POINTER)
  spec = read_specs({'a': {'kind': 'text', 'format': format, 'path': str(path)}})['a']
  with pytest.raises(InputError) as error:
    items(spec, str(tmp_path / 'index'))
  assert str(error.value) == f'{path}: {LINE}'
  assert os.listdir(tmp_path) == ['file']


def archive(compression: str):
  def make(path: pathlib.Path) -> None:
    if compression == 'zip':
      with zipfile.ZipFile(path, 'w') as file:
        file.writestr('config.json', '{}')
    else:
      with tarfile.open(path, f'w:{compression}') as file:
        file.addfile(tarfile.TarInfo('config.json'))

  return make


FILES = {
  'a.zip': (archive('zip'), 'a zip archive, not a directory: expected one with janus_config.json'),
  'a.tar': (archive(''), 'a tar archive, not a directory: .*; unpack it first'),
  'a.tar.gz': (archive('gz'), r'a compressed archive \(gzip\), not a directory: .*; unpack it first'),
  'a.tar.xz': (archive('xz'), r'a compressed archive \(xz\), not a directory: .*; unpack it first'),
  'no-ending': (archive('gz'), r'a compressed archive \(gzip\)'),
  'a.gguf': (lambda path: path.write_bytes(b'GGUF\x03\0\0\0'), r'a GGUF file \(llama.cpp\)'),
  'a.onnx': (lambda path: path.write_bytes(b'\x08\x07'), 'an ONNX model'),
  'a.bin': (lambda path: torch.save({}, path), r'a file of weights \(PyTorch\), not a directory'),
  'a.safetensors': (lambda path: path.write_bytes(b''), r'a file of weights \(safetensors\), not a directory'),
  'notes': (lambda path: path.write_text('a'), 'a file, not a directory'),
}


@pytest.mark.parametrize('name', FILES)
def test_a_file_is_named_for_what_it_is(tmp_path, name):
  make, message = FILES[name]
  make(tmp_path / name)
  with pytest.raises(InputError, match=f'{name}: {message}'):
    open_checkpoint(str(tmp_path / name))


def test_a_file_of_a_checkpoint_leads_to_its_directory(intact):
  with pytest.raises(InputError, match=f'; did you mean {intact / "huggingface"}\\?$'):
    open_checkpoint(str(intact / 'huggingface' / 'model.safetensors'))


DIRECTORIES = {
  'diffusers': (lambda d: (d / 'model_index.json').write_text('{}'), 'a diffusers pipeline, not a Janus'),
  'diffusers model': (
    lambda d: (d / 'config.json').write_text('{"_class_name": "UNet2DModel", "_diffusers_version": "0.30.0"}'),
    'a diffusers model: expected "janus" or "multi_modality"',
  ),
  'gguf': (lambda d: (d / 'q4.gguf').write_bytes(b'GGUF'), r'not a checkpoint: .*; q4.gguf is a GGUF file'),
  'onnx': (lambda d: (d / 'model.onnx').write_bytes(b'a'), r'not a checkpoint: .*; model.onnx is an ONNX model'),
  'archive': (lambda d: archive('gz')(d / 'w.tgz'), r'not a checkpoint: .*; w.tgz is an archive'),
  'empty': (lambda d: None, 'an empty directory: expected janus_config.json'),
}


@pytest.mark.parametrize('name', DIRECTORIES)
def test_a_directory_is_named_for_what_it_is(tmp_path, name):
  make, message = DIRECTORIES[name]
  make(tmp_path)
  with pytest.raises(InputError, match=message) as error:
    open_checkpoint(str(tmp_path))
  assert str(error.value).startswith(str(tmp_path))
  assert '\n' not in str(error.value)


def test_weights_under_another_name_are_listed(intact, tmp_path):
  shutil.copytree(intact / 'huggingface', tmp_path / 'copy')
  os.rename(tmp_path / 'copy' / 'model.safetensors', tmp_path / 'copy' / 'consolidated.00.pth')
  with pytest.raises(InputError, match=r'no weights found: expected one of .*; found consolidated\.00\.pth$'):
    open_checkpoint(str(tmp_path / 'copy'))


def test_a_directory_above_or_below_leads_to_the_checkpoint(intact, tmp_path):
  with pytest.raises(InputError, match=rf'did you mean {intact}/deepseek or {intact}/huggingface or {intact}/orbax\?$'):
    open_checkpoint(str(intact))
  with pytest.raises(InputError, match=rf'a part of the checkpoint {intact}/orbax: .*did you mean {intact}/orbax\?$'):
    open_checkpoint(str(intact / 'orbax' / 'params'))
  # As a training workdir has it.
  step = tmp_path / 'run' / 'checkpoints' / '120' / 'params'
  step.mkdir(parents=True)
  (tmp_path / 'run' / 'janus_config.json').write_text('{}')
  with pytest.raises(InputError, match=f'did you mean {tmp_path}/run\\?$'):
    open_checkpoint(str(step))
  # As huggingface_hub's cache has it.
  snapshot = tmp_path / 'models--a--b' / 'snapshots' / '0f1e'
  shutil.copytree(intact / 'huggingface', snapshot)
  with pytest.raises(InputError, match=f'did you mean {snapshot}\\?$'):
    open_checkpoint(str(tmp_path / 'models--a--b'))


def test_a_plus_stands_between_a_base_and_an_adapter(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'a+b').mkdir()
  (tmp_path / 'adapter').mkdir()
  for whole in ('a+b', 'a+b@ema', '~/a+b', str(tmp_path / 'a+b'), 'run', 'org/name', 'gs://bucket/a+b', '+a', 'a+'):
    assert split_base(whole) == (None, whole)
  for base, adapter in (
    ('org/name', 'org/adapter'),
    ('a+b', 'adapter'),
    ('~/base', 'run@ema'),
    ('gs://bucket/base', 'adapter'),
    ('gs://bucket/a+b', 'gs://bucket/run'),
  ):
    assert split_base(f'{base}+{adapter}') == (base, adapter)
