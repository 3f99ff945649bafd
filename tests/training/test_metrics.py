"""Metrics survive kills and resumes without duplicates; event files are TensorBoard's; FLOPs the published ones."""

import builtins
import io
import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.data.images import load_image, read_png_text
from janus_jax.errors import InputError
from janus_jax.training.metrics import MetricWriter, format_line, read_metrics, truncate_metrics
from janus_jax.training.progress import Progress


def write_steps(workdir, steps, resume_step=0, value=1.0):
  with MetricWriter(str(workdir), resume_step=resume_step) as writer:
    for step in steps:
      writer.write(step, 'stage1', {'loss': value})


def steps_of(workdir):
  return [line['step'] for line in read_metrics(str(workdir / 'metrics.jsonl'))]


def test_lines_hold_numbers_of_every_kind(tmp_path):
  values = {'a': 1, 'b': 0.5, 'c': np.float32(0.25), 'd': jnp.int32(3), 'e': float('nan'), 'f': jnp.float32(jnp.inf)}
  with MetricWriter(str(tmp_path)) as writer:
    writer.write(7, 'stage2', values)
  [line] = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  # Strictly: NaN is no JSON.
  found = json.loads(line, parse_constant=pytest.fail)
  assert found.pop('time') > 1.7e9
  assert found == {'step': 7, 'stage': 'stage2', 'a': 1, 'b': 0.5, 'c': 0.25, 'd': 3, 'e': None, 'f': None}


def test_every_line_is_there_at_once(tmp_path):
  writer = MetricWriter(str(tmp_path))
  writer.write(1, 'stage1', {'loss': 1.0})
  assert steps_of(tmp_path) == [1]
  assert len(events(tmp_path)) == 2
  writer.close()


def test_a_resumed_curve_has_no_step_twice(tmp_path):
  write_steps(tmp_path, range(1, 11))
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 11, "sta')  # Killed while writing.
  write_steps(tmp_path, range(7, 13), resume_step=6, value=2.0)
  assert steps_of(tmp_path) == list(range(1, 13))
  assert [line['loss'] for line in read_metrics(str(tmp_path / 'metrics.jsonl'))] == [1.0] * 6 + [2.0] * 6
  assert not list(tmp_path.glob('*.partial'))


def test_a_resumed_curve_can_be_read_by_whoever_could_before(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  with MetricWriter(str(tmp_path)) as writer:
    for step in (1, 2):
      writer.write(step, 'stage1', {'loss': 1.0})
  mode = path.stat().st_mode
  truncate_metrics(str(path), 1)
  assert len(path.read_text().splitlines()) == 1
  assert path.stat().st_mode == mode


def test_a_run_begun_anew_in_the_same_workdir_starts_an_empty_curve(tmp_path):
  write_steps(tmp_path, [1, 2, 3])
  write_steps(tmp_path, [1])
  assert steps_of(tmp_path) == [1]


def test_an_unfinished_line_is_not_read(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"step": 2')
  assert read_metrics(str(path)) == [{'step': 1}]


def test_a_disabled_writer_touches_nothing(tmp_path):
  with MetricWriter(str(tmp_path / 'missing'), enabled=False) as writer:
    writer.write(1, 'stage1', {'loss': 1.0})
    assert writer.write_images(1, 'cats', [np.zeros((2, 2, 3), np.uint8)], ['cat']) == []
    writer.write_texts(1, 'answers', ['text'])
  assert not list(tmp_path.iterdir())


def test_images_and_texts_are_files(tmp_path):
  image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
  with MetricWriter(str(tmp_path)) as writer:
    [path] = writer.write_images(12, 'cats', [image], ['a réd circle'])
    writer.write_texts(12, 'answers', ['line\nbreak', 'ja'])
    with pytest.raises(InputError, match='1 captions for 2 images'):
      writer.write_images(12, 'cats', [image, image], ['one'])
  np.testing.assert_array_equal(np.asarray(load_image(path)), image)
  assert read_png_text(path)['caption'] == 'a réd circle'
  assert path == str(tmp_path / 'samples' / '00000012' / 'cats_0_a_réd_circle.png')
  lines = (tmp_path / 'samples' / '00000012' / 'answers.txt').read_text().splitlines()
  assert [json.loads(line) for line in lines] == ['line\nbreak', 'ja']


def records(path):
  """The data of each record; lengths and checksums are compared with an independent CRC-32C, bit by bit."""
  data = path.read_bytes()
  while data:
    length, length_crc = struct.unpack('<QI', data[:12])
    body, crc = data[12 : 12 + length], struct.unpack('<I', data[12 + length : 16 + length])[0]
    assert masked_crc(data[:8]) == length_crc
    assert masked_crc(body) == crc
    yield body
    data = data[16 + length :]


def crc32c(data):
  """By polynomial division, from the definition: x^32 + ... 0x1EDC6F41, bits reflected, inverted before and after."""
  remainder = 0xFFFFFFFF
  for byte in data:
    remainder ^= int(f'{byte:08b}'[::-1], 2) << 24
    for _ in range(8):
      remainder = (remainder << 1 ^ (0x1EDC6F41 if remainder >> 31 else 0)) & 0xFFFFFFFF
  return int(f'{remainder ^ 0xFFFFFFFF:032b}'[::-1], 2)


def masked_crc(data):
  crc = crc32c(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(workdir):
  return [body for path in sorted((workdir / 'tensorboard').iterdir()) for body in records(path)]


def with_time(event, seconds=1.5):
  assert event[0] == 9
  return event[:1] + struct.pack('<d', seconds) + event[9:]


def test_crc_has_the_value_of_its_standard():
  assert crc32c(b'123456789') == 0xE3069283  # RFC 3720, appendix B.4 and every catalogue.


def test_events_have_the_bytes_that_protobuf_writes(tmp_path):
  """Expected: `SerializeToString` of tensorboardX 2.6.5's Event messages with wall_time 1.5."""
  with MetricWriter(str(tmp_path)) as writer:
    writer.write(300, 'stage1', {'loss/text': 0.25})
    writer.write_texts(1, 'ans', ['dé'])
  version, scalar, text = [with_time(event).hex() for event in events(tmp_path)]
  assert bytes.fromhex(version).endswith(b'\x1a\rbrain.Event:2')
  assert scalar == '09000000000000f83f10ac022a120a100a096c6f73732f74657874150000803e'
  assert text == ('09000000000000f83f10012a230a210a03616e73421008071204120208014206302e2064c3a94a080a060a0474657874')


def test_tensorboard_reads_it(tmp_path):
  event_pb2 = pytest.importorskip('tensorboardX.proto.event_pb2')
  image = np.zeros((4, 5, 3), np.uint8)
  with MetricWriter(str(tmp_path)) as writer:
    writer.write(300, 'stage1', {'loss': 0.25})
    writer.write_images(300, 'cats', [image], ['cat'])
  write_steps(tmp_path, [201], resume_step=200)
  parsed = [event_pb2.Event.FromString(body) for body in events(tmp_path)]
  assert [event.step for event in parsed] == [0, 300, 300, 300, 0, 201, 201]
  assert parsed[1].summary.value[0].simple_value == 0.25
  value = parsed[2].summary.value[0]
  assert (value.tag, value.image.height, value.image.width, value.image.colorspace) == ('cats/0', 4, 5, 3)
  assert value.image.encoded_image_string.startswith(b'\x89PNG')
  # What the first run wrote at step 201 and later is not shown.
  assert parsed[5].session_log.status == event_pb2.SessionLog.START


def test_wandb_missing_is_one_line(tmp_path, monkeypatch):
  real = builtins.__import__

  def refuse(name, *arguments, **keywords):
    if name == 'wandb':
      raise ImportError(name)
    return real(name, *arguments, **keywords)

  monkeypatch.setattr(builtins, '__import__', refuse)
  with pytest.raises(InputError, match='pip install wandb'):
    MetricWriter(str(tmp_path), wandb_project='janus')
  assert not list(tmp_path.iterdir())


def test_format_line():
  metrics = {'data_wait': 0.012345, 'skipped': 0, 'tokens_per_second': 123456.7, 'mfu': 0.41234, 'loss': 2.34567}
  assert format_line(120, 'stage2', metrics) == 'step 120 stage2  loss 2.35  tok/s 123,457  mfu 0.412'
  everything = metrics | {'skipped': 12, 'skipped_records': 12345, 'learning_rate': 1.2345e-05, 'grad_norm': 123.45}
  everything |= {f'loss/{kind}': 12.345 for kind in ('understanding', 'text', 'generation')}
  lines = format_line(270_000, 'stage2_imagenet', everything).splitlines()
  names = ['loss', 'und', 'text', 'gen', 'lr', 'grad', 'tok/s', 'mfu']
  assert len(lines) == 2
  assert max(map(len, lines)) <= 100
  assert ' '.join(lines).split()[3::2] == [*names, 'skipped', 'skipped_records']


def test_progress_is_plain_lines_in_a_file_and_a_bar_on_a_terminal():
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  for stream, has_bar in ((io.StringIO(), False), (Terminal(), True)):
    with Progress(10, initial=4, stream=stream) as progress:
      progress.update('stage2')
      progress.log('a line')
    assert ('/10' in stream.getvalue()) == has_bar
    assert ('\r' in stream.getvalue()) == has_bar
    assert 'a line\n' in stream.getvalue()
  quiet = io.StringIO()
  with Progress(10, stream=quiet, enabled=False) as progress:
    progress.update()
    progress.log('a line')
  assert quiet.getvalue() == ''
