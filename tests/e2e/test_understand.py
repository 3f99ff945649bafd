"""The understand command as a person runs it: answers, streaming on a terminal, exit codes."""

import errno
import io
import json
import os
import pathlib
import pty
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

import reference  # noqa: E402
import small_checkpoint  # noqa: E402
from e2e import forks  # noqa: E402

from janus_jax.data.images import load_image  # noqa: E402
from janus_jax.errors import InputError  # noqa: E402
from janus_jax.inference import answering  # noqa: E402
from janus_jax.runs import loading  # noqa: E402
from janus_jax.runs.loading import load_tokenizer  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
QUESTION = 'How many red circles?'


def command(*arguments: str) -> list[str]:
  return [sys.executable, '-m', 'janus_jax.understand', *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess:
  return forks.run(command(*arguments), cwd=ROOT)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  return small_checkpoint.write(tmp_path_factory.mktemp('understand') / 'checkpoint')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """Squares of the encoder's size, which no resize changes."""
  directory = tmp_path_factory.mktemp('images')
  paths = [str(directory / f'{index}.png') for index in range(2)]
  for index, path in enumerate(paths):
    noise = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
  return paths


def transformers_ids(checkpoint: str, paths: list[str], length: int, text: str = QUESTION) -> list[int]:
  """Greedy answer of transformers to our prompt ids, without the end token."""
  tokenizer, template = load_tokenizer(checkpoint)
  question = answering.prepare_question(
    small_checkpoint.CONFIG, [load_image(path) for path in paths], text, tokenizer, template
  )
  inputs = {}
  if paths:
    pixels = np.stack([np.asarray(Image.open(path), np.float32) for path in paths]).transpose(0, 3, 1, 2)
    inputs['pixel_values'] = torch.from_numpy((pixels / 255 - 0.5) / 0.5)
  model = reference.huggingface_model(small_checkpoint.CONFIG)
  ids = torch.tensor([question.ids])
  options = {'do_sample': False, 'max_new_tokens': length, 'eos_token_id': tokenizer.special.eos}
  out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_mode='text', **inputs, **options)
  return [token_id for token_id in out[0, ids.shape[1] :].tolist() if token_id != tokenizer.special.eos]


def test_tiles_are_images_of_the_prompt(checkpoint, tmp_path):
  """As if a person had cut the image and said how its parts lie."""
  path = str(tmp_path / 'wide.png')
  noise = np.random.default_rng(7).integers(0, 256, (32, 64, 3), dtype=np.uint8)
  Image.fromarray(noise).save(path)
  janus, whole = loading.load(checkpoint, 'float32'), load_image(path)
  parts = [whole, whole.crop((0, 0, 32, 32)), whole.crop((32, 0, 64, 32))]
  text = f'<image>\nIts parts, 1 row of 2: <image><image>\n{QUESTION}'
  (expected,) = answering.answer(janus, [parts], [text], max_new_tokens=8)
  process = run(
    f'--checkpoint={checkpoint}',
    f'--image={path}',
    f'--question={QUESTION}',
    '--tiles=4',
    '--max_new_tokens=8',
    '--dtype=float32',
    '--json',
  )
  assert process.returncode == 0, process.stderr
  assert json.loads(process.stdout)['token_ids'] == expected.token_ids
  (plain,) = answering.answer(janus, [[whole]], [QUESTION], max_new_tokens=8)
  assert plain.token_ids != expected.token_ids
  with pytest.raises(InputError, match=r'the prompt has .* tokens: expected at most'):
    answering.answer(janus, [[Image.new('RGB', (640, 640))]], [QUESTION], tiles=100)


def test_llavas_placeholder_is_one_of_ours(checkpoint, images):
  """As in training; and one for each image."""
  tokenizer, template = load_tokenizer(checkpoint)
  pictures = [load_image(path) for path in images]

  def ids(text: str) -> list[int]:
    return answering.prepare_question(small_checkpoint.CONFIG, pictures, text, tokenizer, template).ids

  assert ids('<image>One.<image>Two?') == ids('<image_placeholder>One.<image_placeholder>Two?') != ids('One.Two?')
  with pytest.raises(InputError, match='1 <image_placeholder> in the text but 2 images: expected one for each image'):
    ids('<image>One.')


@pytest.mark.parametrize('count', [1, 2])
def test_greedy_answers_are_those_of_transformers(checkpoint, images, count):
  arguments = [f'--image={path}' for path in images[:count]]
  process = run(
    f'--checkpoint={checkpoint}',
    *arguments,
    f'--question={QUESTION}',
    '--dtype=float32',
    '--max_new_tokens=40',
    '--json',
  )
  assert process.returncode == 0, process.stderr
  result = json.loads(process.stdout)
  assert set(result) == {'images', 'question', 'answer', 'token_ids'}
  assert result['images'] == images[:count]
  assert result['question'] == QUESTION
  assert result['token_ids'] == transformers_ids(checkpoint, images[:count], 40)
  assert len(result['token_ids']) > 10
  assert result['answer'] == load_tokenizer(checkpoint)[0].decode(result['token_ids'])
  assert 'tokens/s' in process.stderr


def test_rounded_weights_answer_as_they_do_in_python(checkpoint, images):
  options = {'weights': 'int8_products', 'cache_dtype': 'int8'}
  process = run(
    f'--checkpoint={checkpoint}',
    f'--image={images[0]}',
    f'--question={QUESTION}',
    '--dtype=float32',
    '--json',
    '--max_new_tokens=20',
    *(f'--{name}={value}' for name, value in options.items()),
  )
  assert process.returncode == 0, process.stderr
  janus, asked = loading.load(checkpoint, 'float32'), [[load_image(images[0])]]
  (answer,) = answering.answer(janus, asked, [QUESTION], max_new_tokens=20, **options)
  assert json.loads(process.stdout)['token_ids'] == answer.token_ids


def test_several_questions_are_answered_in_order(checkpoint, images):
  questions = [QUESTION, 'Is there a blue square to the left of the green triangle?', 'What colour?']
  arguments = [f'--checkpoint={checkpoint}', f'--image={images[0]}', *(f'--question={text}' for text in questions)]
  process = run(*arguments, '--dtype=float32', '--max_new_tokens=20', '--json')
  assert process.returncode == 0, process.stderr
  results = [json.loads(line) for line in process.stdout.splitlines()]
  assert [result['question'] for result in results] == questions
  for result in results:
    assert set(result) == {'images', 'question', 'answer', 'token_ids'}
    assert result['images'] == images[:1]
    assert result['token_ids'] == transformers_ids(checkpoint, images[:1], 20, result['question'])
  assert len({tuple(result['token_ids']) for result in results}) == 3


def test_on_a_terminal_the_answer_comes_in_pieces(checkpoint):
  """No image; the text is that of transformers' tokens."""
  reader, writer = pty.openpty()
  child = subprocess.Popen(
    command(f'--checkpoint={checkpoint}', f'--question={QUESTION}', '--dtype=float32', '--max_new_tokens=70'),
    cwd=ROOT,
    stdout=writer,
    stderr=subprocess.PIPE,
  )
  os.close(writer)
  pieces = []
  while True:
    try:
      piece = os.read(reader, 2**16)
    except OSError as error:  # How Linux says that the other end is closed.
      if error.errno != errno.EIO:
        raise
      break
    if not piece:
      break
    pieces.append(piece)
  os.close(reader)
  _, stderr = child.communicate()
  assert child.returncode == 0, stderr
  expected = load_tokenizer(checkpoint)[0].decode(transformers_ids(checkpoint, [], 70))
  assert len(pieces) > 1
  assert b''.join(pieces).decode().replace('\r\n', '\n') == expected.replace('\r\n', '\n') + '\n'


@pytest.mark.parametrize(
  ('arguments', 'code', 'message'),
  [
    (['--checkpoint=SOURCE'], 2, 'question'),
    (['--question=a'], 2, 'checkpoint'),
    (['--checkpoint=SOURCE', '--question= '], 1, 'question 1 of 1 is empty'),
    (['--checkpoint=SOURCE', '--question=a', '--question= '], 1, 'question 2 of 2: question 1 of 1 is empty'),
    (['--checkpoint=SOURCE', '--question=a', '--image=TEXT'], 1, "text.png: begins with b'no picture'"),
  ],
)
def test_wrong_input_is_one_line_and_an_exit_code(checkpoint, tmp_path, arguments, code, message):
  (tmp_path / 'text.png').write_text('no picture')
  arguments = [a.replace('SOURCE', checkpoint).replace('TEXT', f'{tmp_path}/text.png') for a in arguments]
  result = run(*arguments)
  assert result.returncode == code
  assert message in result.stderr
  assert len(result.stderr.strip().splitlines()) == 1
  assert result.stdout == ''


# The command once per image, in one process: its exit code, stdout and stderr, one JSON list per line.
DRIVER = """
import contextlib, io, json, sys
from absl.testing import flagsaver
from janus_jax import cli, understand
fixed, images = sys.argv[1:5], sys.argv[5:]
for image in images:
  with flagsaver.flagsaver(), contextlib.redirect_stdout(io.StringIO()) as out:
    with contextlib.redirect_stderr(io.StringIO()) as err:
      sys.argv = ['understand', *fixed, f'--image={image}']
      try:
        cli.run(understand.main)
      except SystemExit as end:
        code = end.code or 0
  print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def _saved(image: Image.Image, image_format: str, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, image_format, **options)
  return file.getvalue()


def _png_header(width: int, height: int) -> bytes:
  header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  chunks = [header, b'IDAT' + zlib.compress(bytes(100)), b'IEND']
  parts = [struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk)) for chunk in chunks]
  return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


NOISE = np.random.default_rng(5).integers(0, 256, (32, 32, 3), dtype=np.uint8)
BAD = {
  'truncated.jpg': (_saved(Image.fromarray(NOISE), 'JPEG')[:-400], 'damaged JPEG image'),
  'text.png': (b'not a picture at all', "begins with b'not a picture at'"),
  'empty.png': (b'', '0 bytes'),
  'huge.png': (_png_header(30_000, 30_000), 'expected at most 134217728 pixels'),
}


def odd_images() -> dict[str, bytes]:
  """Sound files that take a turn of their own to RGB (which: tests/data/test_images.py)."""
  grey, exif = NOISE[..., 0], Image.Exif()
  palette = Image.fromarray(grey // 64, 'L').convert('P')
  exif[0x0112] = 6
  return {
    'cmyk.jpg': _saved(Image.fromarray(NOISE).convert('CMYK'), 'JPEG'),
    'sixteen.png': _saved(Image.fromarray(grey.astype(np.uint16) * 257), 'PNG'),
    'palette.png': _saved(palette, 'PNG', transparency=1),
    'rotated.jpg': _saved(Image.fromarray(NOISE[:20]), 'JPEG', exif=exif),
  }


ODD = odd_images()


@pytest.fixture(scope='module')
def results(checkpoint, tmp_path_factory):
  """Name of an image -> [exit code, stdout, stderr]."""
  directory = tmp_path_factory.mktemp('odd')
  files = {name: data for name, (data, _) in BAD.items()} | ODD
  for name, data in files.items():
    (directory / name).write_bytes(data)
  fixed = [f'--checkpoint={checkpoint}', f'--question={QUESTION}', '--max_new_tokens=20', '--json']
  paths = [str(directory / name) for name in files]
  process = subprocess.run([sys.executable, '-c', DRIVER, *fixed, *paths], capture_output=True, text=True, cwd=ROOT)
  assert process.returncode == 0, process.stderr
  assert process.stderr == ''
  return dict(zip(files, map(json.loads, process.stdout.splitlines()), strict=True))


@pytest.mark.parametrize('name', [*BAD, *ODD])
def test_a_bad_image_is_one_line_and_an_odd_one_is_answered(results, name):
  code, stdout, stderr = results[name]
  if name in BAD:
    assert (code, stdout) == (1, '')
    assert f'{name}: ' in stderr
    assert BAD[name][1] in stderr
  else:
    assert code == 0, stderr
    answer = json.loads(stdout)
    assert [pathlib.Path(path).name for path in answer['images']] == [name]
    assert len(answer['token_ids']) == 20
    assert 'tokens/s' in stderr
  assert len(stderr.strip().splitlines()) == 1
