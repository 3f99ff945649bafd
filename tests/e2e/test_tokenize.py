"""The tokenize command as a person runs it: on a real checkpoint, on other numbers of devices, killed half-way."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip('torch')
pytest.importorskip('transformers')

import small_checkpoint
from e2e import forks
from PIL import Image

import janus_jax
from janus_jax.data.images import generation_pixels, load_image
from janus_jax.data.sources.array_record import ArrayRecordExamples
from janus_jax.data.sources.files import find_files
from janus_jax.data.sources.manifest import check_manifest, parameters_hash, read_manifest
from janus_jax.runs.image_codes import image_encoder
from janus_jax.runs.tokenizing import load_vq

ROOT = pathlib.Path(__file__).parents[2]
COUNT = 160
SIZES = ['--records_per_shard=10', '--batch_size=1']


def command(*arguments: str) -> list[str]:
  return [sys.executable, '-m', 'janus_jax.tokenize', *arguments]


def run(*arguments: str, devices: int = 1) -> subprocess.CompletedProcess:
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
  environment = {**os.environ, 'XLA_FLAGS': flags}
  return forks.run(command(*arguments), cwd=ROOT, env=environment)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  return small_checkpoint.write(tmp_path_factory.mktemp('tokenize') / 'checkpoint')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Images with captions, one of which is missing."""
  directory = tmp_path_factory.mktemp('folder')
  for number in range(COUNT):
    pixels = np.random.default_rng(number).integers(256, size=(16, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(directory / f'{number:03}.png')
    (directory / f'{number:03}.txt').write_text(f'picture {number}')
  (directory / '007.txt').unlink()
  return directory


@pytest.fixture(scope='module')
def done(checkpoint, folder, tmp_path_factory):
  """Output of a run on two devices, and its process."""
  output = tmp_path_factory.mktemp('done') / 'out'
  process = run(f'--input={folder}', f'--checkpoint={checkpoint}', f'--output={output}', *SIZES, devices=2)
  return output, process


def files(directory: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}


def test_codes_are_those_of_each_image_alone(checkpoint, folder, done):
  output, process = done
  assert process.returncode == 0, process.stderr
  assert process.stdout == ''
  assert 'encoding: 100%' in process.stderr
  assert 'image/s' in process.stderr
  assert '007.txt: No such file' in process.stderr
  assert '16 of 16 shards are finished' in process.stderr
  janus = janus_jax.load(checkpoint)
  config, params = janus.config, janus.params
  encode = image_encoder(config.vq, params['vq'])
  found = ArrayRecordExamples(find_files(f'{output}/codes-*.array_record'))
  assert [example['key'] for example in found] == [b'%03d.png' % number for number in range(COUNT) if number != 7]
  for example in found:
    pixels = generation_pixels(load_image(folder / example['key'].decode()), config.vq.image_size)
    np.testing.assert_array_equal(np.frombuffer(example['codes'], '<u2'), np.asarray(encode(pixels[None]))[0])
  assert found[100]['prompt'] == b'picture 101'
  assert len({example['codes'] for example in found}) > COUNT / 2


def test_the_manifest_names_the_tokenizer(checkpoint, done):
  manifest = read_manifest(str(done[0]))
  config, params = load_vq(checkpoint)
  check_manifest(manifest, parameters_hash(params), config.image_size, config.codebook_size)
  assert [shard.skipped for shard in manifest.shards] == [{'caption': 1}, *[{}] * 15]
  assert json.loads((done[0] / 'manifest.json').read_text())['complete'] is True


def test_a_killed_run_goes_on_where_it_stood(checkpoint, folder, done, tmp_path):
  output = tmp_path / 'out'
  arguments = [f'--input={folder}', f'--checkpoint={checkpoint}', f'--output={output}', *SIZES]
  child = subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.DEVNULL)
  while child.poll() is None and not list(output.glob('codes-00003-*.partial')):
    time.sleep(0.0005)
  child.send_signal(signal.SIGKILL)
  child.wait()
  left = list(output.glob('codes-*.array_record'))
  assert 3 <= len(left) < 16
  assert not read_manifest(str(output)).complete
  kept = {path: path.stat().st_mtime_ns for path in left}
  second = run(*arguments)
  assert second.returncode == 0, second.stderr
  assert f'{16 - len(left)} shards written, {len(left)} kept' in second.stderr
  assert {path: path.stat().st_mtime_ns for path in left} == kept
  assert files(output) == files(done[0])


@pytest.mark.parametrize(
  ('arguments', 'code', 'message'),
  [
    (['--input=/no/such/place'], 1, 'error: /no/such/place: no such folder: expected a folder of images\n'),
    (['--input=FOLDER', '--output=/proc/janus'], 1, 'error: /proc/janus/index/'),
  ],
)
def test_wrong_input_is_one_line_and_an_exit_code(checkpoint, folder, tmp_path, arguments, code, message):
  arguments = [argument.replace('FOLDER', str(folder)) for argument in arguments]
  result = run(f'--checkpoint={checkpoint}', f'--output={tmp_path}/out', *arguments)
  assert result.returncode == code
  assert result.stderr.startswith(message)
  assert result.stderr.count('\n') == 1
  assert os.listdir(tmp_path) == []
