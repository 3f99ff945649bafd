"""The page, as visitors use it: over HTTP, and in a browser where there is one."""

import concurrent.futures
import io
import itertools
import json
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import small_checkpoint
from PIL import Image

import janus_jax
from janus_jax.data.images import read_png_text

pytest.importorskip('gradio')
httpx = pytest.importorskip('httpx')

ROOT = pathlib.Path(__file__).parent.parent.parent
FLAGS = ('--dtype=float32', '--max_new_tokens=8', '--queue_size=16', '--max_upload_mib=1')
PROMPTS = ('a red cube', 'a blue cube', 'two dogs', 'a hat', 'a tree')
QUESTIONS = ('What is it?', 'Where is it?', 'Who is it?', 'Why?', 'How many?')
SAMPLING = {'cfg_weight': 2.0, 'temperature': 1.0, 'seed': 3}
WITHOUT_GRADIO = """
import runpy, sys

sys.modules['gradio'] = None
runpy.run_module('janus_jax.demo', run_name='__main__')
"""
_sessions = itertools.count()


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  return small_checkpoint.write(tmp_path_factory.mktemp('demo') / 'small-janus')


@pytest.fixture(scope='module')
def janus(checkpoint):
  return janus_jax.load(checkpoint, dtype='float32')


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def start(checkpoint: str, port: int) -> subprocess.Popen:
  command = [sys.executable, '-m', 'janus_jax.demo', f'--checkpoint={checkpoint}', f'--port={port}', *FLAGS]
  return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope='module')
def address(checkpoint):
  """Address of a page; Ctrl-C ends it."""
  port = free_port()
  process = start(checkpoint, port)
  line = process.stderr.readline()
  assert line == f'serving on http://127.0.0.1:{port}/; Ctrl-C ends it\n', line + process.stderr.read()
  yield f'http://127.0.0.1:{port}'
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=50)
  assert process.returncode == 130
  assert errors.endswith('interrupted\n')


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
  path = tmp_path_factory.mktemp('pictures') / 'picture.png'
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)).save(path)
  return path


def join(client: httpx.Client, session: str, name: str, data: list) -> httpx.Response:
  functions = client.get('/config').json()['dependencies']
  (function,) = (function['id'] for function in functions if function['api_name'] == name)
  body = {'data': data, 'fn_index': function, 'session_hash': session}
  return client.post('/gradio_api/queue/join', json=body)


def call(address: str, name: str, data: list, session: str | None = None) -> list[dict]:
  """What the queue says of a request, as the page gets it: its last message holds the result."""
  session = session or f'session{next(_sessions)}'
  with httpx.Client(base_url=address, timeout=100) as client:
    assert join(client, session, name, data).status_code == 200
    messages = []
    with client.stream('GET', '/gradio_api/queue/data', params={'session_hash': session}) as response:
      for line in filter(None, response.iter_lines()):
        messages.append(json.loads(line.removeprefix('data: ')))
        if messages[-1]['msg'] == 'process_completed':
          break
  return messages


def generate(address: str, prompt: str, number: int = 2) -> list[dict]:
  return call(address, 'generate', [prompt, number, *SAMPLING.values(), False])


def upload(address: str, path: pathlib.Path) -> httpx.Response:
  return httpx.post(f'{address}/gradio_api/upload', files={'files': (path.name, path.read_bytes())})


def question(text: str, *files: str) -> list:
  """Inputs of `ask`."""
  return [{'text': text, 'files': [{'path': path, 'meta': {'_type': 'gradio.FileData'}} for path in files]}, None, None]


def ask(address: str, text: str, *paths: pathlib.Path, session: str | None = None) -> list[dict]:
  return call(address, 'ask', question(text, *(upload(address, path).json()[0] for path in paths)), session)


def codes_of(messages: list[dict]) -> list[list[int]]:
  files = [httpx.get(entry['image']['url']) for entry in messages[-1]['output']['data'][0]['value']]
  return [codes_in(io.BytesIO(file.content)) for file in files]


def codes_in(file: io.BytesIO | pathlib.Path) -> list[int]:
  return [int(code) for code in read_png_text(file)['codes'].split()]


def answer_of(messages: list[dict]) -> str:
  assert messages[-1]['success'], messages[-1]
  return messages[-1]['output']['data'][1][-1]['content'][0]['text']


def error_of(messages: list[dict]) -> str:
  assert not messages[-1]['success'], messages[-1]
  return messages[-1]['output']['error']


def expected_codes(janus, prompt: str) -> list[list[int]]:
  (images,) = janus_jax.generate_images(janus, [prompt], num_images=2, **SAMPLING)
  return [image.codes.tolist() for image in images]


def expected_answer(janus, paths: list[pathlib.Path], turns: list[str]) -> str:
  (answer,) = janus_jax.answer(janus, [[Image.open(path) for path in paths]], [turns], max_new_tokens=8)
  return answer.text


def test_ten_visitors_at_once_get_what_they_asked_for(address, janus, picture):
  with concurrent.futures.ThreadPoolExecutor(10) as pool:
    images = [pool.submit(generate, address, prompt) for prompt in PROMPTS]
    answers = [pool.submit(ask, address, text, picture) for text in QUESTIONS]
  for prompt, found in zip(PROMPTS, images):
    assert codes_of(found.result()) == expected_codes(janus, prompt)
  for text, found in zip(QUESTIONS, answers):
    assert answer_of(found.result()) == expected_answer(janus, [picture], [text]).strip()


def test_an_answer_comes_piece_by_piece_and_progress_of_images_code_by_code(address, picture):
  pieces = [entry for entry in ask(address, QUESTIONS[0], picture) if entry['msg'] == 'process_generating']
  assert len(pieces) >= 3  # The question, the first token, those after it.
  reports = [entry['progress_data'][0] for entry in generate(address, PROMPTS[0]) if entry['msg'] == 'progress']
  assert any(0 < (report['index'] or 0) < report['length'] for report in reports if report['length'])


def test_a_conversation_goes_on_with_another_image(address, janus, picture):
  session, texts = f'session{next(_sessions)}', ['What is it?', 'And <image>?']
  first = ask(address, texts[0], picture, session=session)
  second = ask(address, texts[1], picture, session=session)
  turns = [f'<image_placeholder>\n{texts[0]}', expected_answer(janus, [picture], texts[:1]), texts[1]]
  assert answer_of(first) == turns[1].strip()
  assert answer_of(second) == expected_answer(janus, [picture, picture], turns).strip()


def with_size(png: bytes, width: int, height: int) -> bytes:
  """A PNG whose header states another size."""
  header = b'IHDR' + struct.pack('>II', width, height) + png[24:29]
  return png[:12] + header + struct.pack('>I', zlib.crc32(header)) + png[33:]


def test_files_that_cannot_be_used_get_a_message(address, picture, tmp_path):
  bomb, broken, large = (tmp_path / name for name in ('bomb.png', 'broken.png', 'large.png'))
  bomb.write_bytes(with_size(picture.read_bytes(), 9000, 9000))
  broken.write_bytes(b'nonsense')
  large.write_bytes(bytes(2**20 + 1))
  assert re.match(r'bomb\.png: 9000 x 9000 pixels', error_of(ask(address, 'What is it?', bomb)))
  assert error_of(ask(address, 'What is it?', broken)).startswith("broken.png: begins with b'nonsense'")
  assert upload(address, large).status_code == 413


def test_inputs_are_bounded(address, picture):
  assert error_of(generate(address, ' ')) == 'prompt 1 of 1: the prompt is empty: expected text'
  assert error_of(generate(address, 'a' * 1001)) == '1001 characters: expected at most 1000'
  assert not generate(address, 'a', number=5)[-1]['success']
  assert error_of(ask(address, '?', *[picture] * 9)) == '9 images: expected at most 8 in a conversation'
  assert error_of(ask(address, ' ', picture)) == 'the question is empty: expected text'


def test_one_request_too_many_is_refused_with_a_message(address):
  with httpx.Client(base_url=address, timeout=100) as client:
    # A temperature that has to be compiled first, so that the others wait.
    data = [PROMPTS[0], 1, 2.0, 0.7, 0, False]
    answers = [join(client, 'many', 'generate', data) for _ in range(30)]
    refused = [answer.text for answer in answers if answer.status_code != 200]
    with client.stream('GET', '/gradio_api/queue/data', params={'session_hash': 'many'}) as response:
      completed = [line for line in response.iter_lines() if 'process_completed' in line]
  assert len(completed) == 30 - len(refused)
  assert refused
  assert all('Queue is full' in text for text in refused)


def test_no_file_of_the_machine_can_be_read(address, tmp_path):
  secret = tmp_path / 'secret.txt'
  secret.write_text('a secret of this machine')
  up = '../' * 12
  paths = (f'file={secret}', f'file=/tmp/{up}{secret}', f'file/{secret}', f'file={up}{secret}', f'file=file://{secret}')
  for path in paths:
    answer = httpx.get(f'{address}/gradio_api/{path}')
    assert answer.status_code in (403, 404), path
    assert 'secret' not in answer.text
  for path in (str(secret), f'{up}{secret}', f'file://{secret}', 'http://example.com/picture.png'):
    messages = call(address, 'ask', question('What is it?', path))
    assert not messages[-1]['success'], path
    assert path.startswith('http') == (messages[-1]['output']['error'] == 'Expected an uploaded image.')
    assert 'a secret' not in json.dumps(messages)
  assert httpx.get(f'{address}/gradio_api/file=http://example.com').status_code == 404


def test_the_page_names_its_model_and_no_path(address, checkpoint):
  text = httpx.get(address).text
  assert 'small-janus' in text
  assert checkpoint not in text
  assert str(ROOT) not in text


def test_a_port_in_use_is_one_line(checkpoint):
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    process = start(checkpoint, port)
    _, errors = process.communicate(timeout=50)
  expected = f'error: --host=127.0.0.1 --port={port}: Address already in use: expected another --port or --host\n'
  assert (process.returncode, errors) == (1, expected)


def test_without_gradio_one_line_says_what_to_install(checkpoint):
  result = subprocess.run(
    [sys.executable, '-c', WITHOUT_GRADIO, f'--checkpoint={checkpoint}', f'--port={free_port()}'],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert result.returncode == 1
  assert re.fullmatch(r"error: .*pip install 'janus_jax\[demo\]'\n", result.stderr)


@pytest.fixture
def browser_page(address):
  """The page in headless Chromium, which fails the test where it asks for anything from elsewhere."""
  playwright = pytest.importorskip('playwright.sync_api')
  chromium = shutil.which('chromium') or shutil.which('chromium-browser') or pytest.skip('no Chromium')
  with playwright.sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
    page = browser.new_page()
    asked = []
    page.on('request', lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    browser.close()
  assert [url for url in asked if not url.startswith((address, 'data:', 'blob:'))] == []


def visible(text: str) -> str:
  """Without white space and what browsers do not show."""
  return ''.join(filter(str.isprintable, text)).replace(' ', '')


def test_a_visitor_generates_downloads_and_asks(browser_page, janus, picture, tmp_path):
  page = browser_page
  page.fill('#prompt textarea', PROMPTS[0])
  page.click('text=Settings')
  page.click('label:has(input[type=radio][value="2"])')
  page.uncheck('#random input')
  page.fill('#seed input', '3')
  page.get_by_label('number input for Guidance').fill('2')
  page.get_by_label('number input for Temperature').fill('1')
  page.click('button#generate')
  page.click('#gallery img >> nth=1')
  with page.expect_download() as download:
    page.click('#gallery button[aria-label=Download]')
  download.value.save_as(tmp_path / 'image.png')
  found = read_png_text(tmp_path / 'image.png')
  assert codes_in(tmp_path / 'image.png') == expected_codes(janus, PROMPTS[0])[1]
  wanted = {'prompt': PROMPTS[0], 'image_index': '1', 'checkpoint': 'small-janus', 'dtype': 'float32'}
  wanted |= {name: str(value) for name, value in SAMPLING.items()}
  assert found == {**found, **wanted}
  page.click('button[role=tab] >> text=Ask about images')
  page.set_input_files('#question input[type=file]', str(picture))
  page.fill('#question textarea', QUESTIONS[0])
  page.click('#question button.submit-button')
  answer = visible(expected_answer(janus, [picture], QUESTIONS[:1]))
  for _ in range(100):
    page.wait_for_timeout(100)
    bubbles = page.query_selector_all('#chat .bot')
    if bubbles and visible(bubbles[0].inner_text()) == answer:
      break
  assert [visible(bubble.inner_text()) for bubble in bubbles] == [answer]
