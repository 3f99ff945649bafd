"""The generate command as a person runs it, and the files around it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import reference  # noqa: E402
import small_checkpoint  # noqa: E402
from e2e import forks  # noqa: E402

from janus_jax.errors import InputError  # noqa: E402
from janus_jax.inference import generation, image_files  # noqa: E402
from janus_jax.runs import loading  # noqa: E402
from janus_jax.runs.loading import load_tokenizer  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
PROMPTS = ['three red circles', 'a square']


def run(*arguments: str) -> subprocess.CompletedProcess:
  command = [sys.executable, '-m', 'janus_jax.generate', *arguments]
  return forks.run(command, cwd=ROOT)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  return small_checkpoint.write(tmp_path_factory.mktemp('generate') / 'checkpoint')


@pytest.fixture(scope='module')
def generated(checkpoint, tmp_path_factory):
  """Arguments of a greedy float32 run, its output directory and its process."""
  out = tmp_path_factory.mktemp('generated') / 'out'
  arguments = [f'--checkpoint={checkpoint}', *(f'--prompt={prompt}' for prompt in PROMPTS), f'--out={out}']
  arguments += ['--num_images=1', '--temperature=0', '--cfg_weight=5', '--dtype=float32', '--json', '--window=5']
  return arguments, out, run(*arguments)


def transformers_codes(checkpoint: str) -> np.ndarray:
  tokenizer, template = load_tokenizer(checkpoint)
  special = tokenizer.special
  rows = generation.prompt_rows(small_checkpoint.CONFIG, PROMPTS, tokenizer, template)
  length = max(map(len, rows))
  ids = torch.tensor([[special.pad] * (length - len(row)) + row for row in rows])
  mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
  options = transformers.GenerationConfig(
    do_sample=False,
    guidance_scale=5.0,
    bos_token_id=special.bos,
    pad_token_id=special.pad,
    generation_kwargs={'boi_token_id': special.begin_of_image},
  )
  model = reference.huggingface_model(small_checkpoint.CONFIG)
  return model.generate(ids, attention_mask=mask, generation_mode='image', generation_config=options).numpy()


def test_greedy_codes_are_those_of_transformers(checkpoint, generated):
  _, out, process = generated
  assert process.returncode == 0, process.stderr
  results = [json.loads(line) for line in process.stdout.splitlines()]
  assert [result['prompt'] for result in results] == PROMPTS
  np.testing.assert_array_equal([result['codes'] for result in results], transformers_codes(checkpoint))
  assert results[0]['codes'] != results[1]['codes']
  for prompt, result in enumerate(results):
    assert set(result) == {'prompt', 'index', 'seed', 'codes', 'path'}
    assert (result['index'], result['seed']) == (0, 0)
    assert result['path'] == f'{out}/0000{prompt}-00.png'
  assert 'generating: 100%' in process.stderr
  assert 'image' in process.stderr


def test_images_are_what_transformers_decodes_and_say_how_they_were_made(checkpoint, generated):
  _, out, process = generated
  model = reference.huggingface_model(small_checkpoint.CONFIG)
  squares = []
  for result in map(json.loads, process.stdout.splitlines()):
    with torch.no_grad():
      pixels = model.decode_image_tokens(torch.tensor([result['codes']]))[0].numpy()
    with Image.open(result['path']) as image:
      square, text = np.asarray(image).astype(int), dict(image.text)
    squares.append(square)
    assert np.abs(square - np.clip((pixels + 1) / 2 * 255, 0, 255).astype(int)).max() <= 1
    assert text['prompt'] == result['prompt']
    assert text['codes'].split() == [str(code) for code in result['codes']]
    assert text['checkpoint'] == checkpoint
    settings = {'seed': '0', 'image_index': '0', 'cfg_weight': '5.0', 'temperature': '0.0', 'top_k': '0'}
    assert settings.items() <= text.items()
  with Image.open(out / 'sheet.png') as sheet:
    assert sheet.size == (16 + 8 + 16, 16)
    np.testing.assert_array_equal(np.asarray(sheet)[:, :16], squares[0])
    np.testing.assert_array_equal(np.asarray(sheet)[:, 24:], squares[1])


def test_a_run_goes_on_where_it_stood(generated):
  arguments, out, first = generated
  lost, kept = out / '00000-00.png', out / '00001-00.png'
  before = lost.read_bytes()
  kept_at = kept.stat().st_mtime_ns
  lost.unlink()
  second = run(*arguments)
  assert second.returncode == 0, second.stderr
  assert '1 images generated, 1 already there' in second.stderr
  assert lost.read_bytes() == before
  assert kept.stat().st_mtime_ns == kept_at
  assert sorted(second.stdout.splitlines()) == sorted(first.stdout.splitlines())
  # Other settings do not mix with these images, and nothing is touched.
  third = run(*arguments, '--temperature=0.5')
  assert third.returncode == 1
  expected = f"error: {lost}: has temperature '0.0': expected '0.5'; --overwrite replaces it"
  assert third.stderr.strip() == expected
  assert lost.read_bytes() == before


def test_images_of_rounded_weights_say_so(checkpoint, generated, tmp_path):
  arguments, _, _ = generated
  process = run(*arguments, f'--out={tmp_path}', '--weights=int8_products', '--cache_dtype=int8')
  assert process.returncode == 0, process.stderr
  options = {'num_images': 1, 'temperature': 0, 'weights': 'int8_products', 'cache_dtype': 'int8'}
  expected = generation.generate_images(loading.load(checkpoint, 'float32'), PROMPTS, **options)
  for result, (image,) in zip(map(json.loads, process.stdout.splitlines()), expected, strict=True):
    assert result['codes'] == image.codes.tolist()
    with Image.open(result['path']) as file:
      assert file.text['weights'] == 'int8_products'
      assert file.text['cache_dtype'] == 'int8'


def test_images_of_a_size_that_was_not_trained_come_with_a_warning(checkpoint, generated, tmp_path):
  arguments, _, _ = generated
  process = run(*arguments, f'--out={tmp_path}', '--size=64')
  assert process.returncode == 0, process.stderr
  assert '--size=64: the checkpoint was trained to generate images of 16 pixels, and others' in process.stderr
  janus = loading.load(checkpoint, 'float32', generation_size=64)
  expected = generation.generate_images(janus, PROMPTS, num_images=1, temperature=0, cfg_weight=5.0)
  for result, (image,) in zip(map(json.loads, process.stdout.splitlines()), expected, strict=True):
    assert result['codes'] == image.codes.tolist()
    with Image.open(result['path']) as file:
      assert (file.size, file.text['size']) == ((64, 64), '64')
      np.testing.assert_array_equal(np.asarray(file), image.pixels)


@pytest.mark.parametrize(
  ('arguments', 'code', 'message'),
  [
    (['--checkpoint=/no/such/place', '--prompt=a'], 1, 'error: /no/such/place: no such directory'),
    (['--checkpoint=SOURCE', '--prompt= '], 1, 'error: prompt 1 of 1: the prompt is empty: expected text'),
    (
      ['--checkpoint=SOURCE', '--prompt=a', '--size=37'],
      1,
      'error: vq.image_size is 37: expected a multiple of 4 (the downsampling of vq.channel_multipliers)',
    ),
    (['--checkpoint=SOURCE', '--prompt=a', '--num_images=0'], 1, 'error: num_images is 0: expected 1 or more'),
    (['--checkpoint=SOURCE', '--prompt=a', '--window=0'], 1, 'error: window is 0: expected auto, or 1 or more'),
    (
      ['--checkpoint=SOURCE', '--prompt=a', '--window=17'],
      1,
      'error: window is 17: expected auto, or 1 to 16, the codes of an image',
    ),
    (
      ['--checkpoint=SOURCE', '--prompt=a', '--temperature=nan'],
      1,
      'error: temperature is nan: expected a number, 0 or more',
    ),
    (
      ['--checkpoint=SOURCE', '--prompts_file=/no/f'],
      1,
      'error: /no/f: No such file or directory: expected a readable file',
    ),
    (['--checkpoint=SOURCE'], 2, 'expected either --prompt or --prompts_file'),
    (['--checkpoint=SOURCE', '--prompt=a', '--out=/proc/janus'], 1, 'error: /proc/janus: No such file or directory'),
  ],
)
def test_wrong_input_is_one_line_and_an_exit_code(checkpoint, tmp_path, arguments, code, message):
  arguments = [argument.replace('SOURCE', checkpoint) for argument in arguments]
  result = run(f'--out={tmp_path}/out', *arguments)
  assert (result.returncode, result.stderr.strip()) == (code, message)
  assert os.listdir(tmp_path) == []


def _prompts(path) -> list[str]:
  return [record['prompt'] for record in image_files.read_prompts(str(path))]


def test_prompts_files(tmp_path):
  text, lines = tmp_path / 'prompts.txt', tmp_path / 'prompts.jsonl'
  text.write_bytes(b'\xef\xbb\xbfa cat\r\n\n  two dogs \xc3\xa9\n')
  assert _prompts(text) == ['a cat', 'two dogs é']
  text.write_bytes('ein Kätzchen\r \r\nzwei\x85\n'.encode('utf-16'))
  assert _prompts(text) == ['ein Kätzchen', 'zwei']
  lines.write_text('{"prompt": "a cat", "id": 3}\n\n{"prompt": "line\\nbreak"}')
  assert _prompts(lines) == ['a cat', 'line\nbreak']
  assert image_files.read_prompts(str(lines))[0] == {'prompt': 'a cat', 'id': 3}
  (tmp_path / 'B.JSONL').write_bytes(b'\xef\xbb\xbf' + lines.read_bytes())
  assert _prompts(tmp_path / 'B.JSONL') == ['a cat', 'line\nbreak']
  for name in ('a.json', 'A.Json'):
    (tmp_path / name).write_text('\n[\n  "a cat",\n  {"prompt": "two dogs"}\n]')
    assert _prompts(tmp_path / name) == ['a cat', 'two dogs']


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('a.txt', b' \n', 'empty: expected prompts'),
    ('a.txt', b'a\xff', 'byte 0xff at offset 1: expected UTF-8'),
    ('a.jsonl', b'{"prompt": "a"}\nb', 'line 2: not JSON'),
    ('a.jsonl', b'{"prompt": 3}', r'line 1: expected {"prompt": "..."}'),
    ('a.jsonl', b'["a"]', 'line 1: expected'),
    ('a.jsonl', b'\n{"prompt": " "}', 'line 2: expected'),
    ('a.JSONL', b'a cat', 'line 1: not JSON'),
    ('a.json', b'a cat\n', 'not JSON'),
    ('a.json', b'{"prompt": "a"}', 'a dict: expected a list of prompts'),
    ('a.json', b'["a", 3]', 'item 1: expected'),
    ('a.json', b'[]', 'empty: expected prompts'),
    ('a.json', b'', 'empty: expected prompts'),
  ],
)
def test_bad_prompts_files(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError, match=rf'{name}.*{message}'):
    image_files.read_prompts(str(tmp_path / name))


def test_finished_images(tmp_path):
  path, settings = str(tmp_path / 'a.png'), {'prompt': 'ein Kätzchen 猫', 'seed': '1'}
  assert image_files.finished_codes(path, settings, overwrite=False) is None
  image_files.save_image(path, np.zeros((4, 4, 3), np.uint8), [3, 1, 2], settings)
  assert image_files.finished_codes(path, settings, overwrite=False) == [3, 1, 2]
  with pytest.raises(InputError, match=r"a\.png: has seed '1': expected '2'; --overwrite replaces it"):
    image_files.finished_codes(path, {**settings, 'seed': '2'}, overwrite=False)
  assert image_files.finished_codes(path, {**settings, 'seed': '2'}, overwrite=True) is None
  whole = pathlib.Path(path).read_bytes()
  for damaged in (b'', whole[:5], whole[:60], whole[:-20], whole[:-30] + bytes(18) + whole[-12:]):
    pathlib.Path(path).write_bytes(damaged)
    assert image_files.finished_codes(path, settings, overwrite=False) is None, damaged
  Image.new('RGB', (4, 4)).save(path)
  with pytest.raises(InputError, match=r'a\.png: has prompt None: expected'):
    image_files.finished_codes(path, settings, overwrite=False)
  pathlib.Path(path).write_bytes(b'not an image')
  with pytest.raises(InputError, match=r'a\.png: cannot be read as PNG'):
    image_files.finished_codes(path, settings, overwrite=False)
  assert image_files.finished_codes(path, settings, overwrite=True) is None


def test_the_sheet_has_a_row_per_prompt(tmp_path):
  paths = [str(tmp_path / f'{index}.png') for index in range(6)]
  for index, path in enumerate(paths):
    image_files.save_image(path, np.full((4, 4, 3), index, np.uint8), [], {})
  image_files.write_sheet(str(tmp_path), paths, num_images=2)
  with Image.open(tmp_path / 'sheet.png') as sheet:
    assert sheet.size == (2 * 4 + 8, 3 * 4 + 2 * 8)
    assert np.asarray(sheet)[12, 0, 0] == 2
