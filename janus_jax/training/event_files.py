"""TensorBoard event files: scalars, images and texts.

Written here because the format is small and settled, and the libraries are heavy: `tensorboardX` imports torch where
there is one (seconds, before the first step), `tensorboard` brings a web server and gRPC, `clu` TensorFlow.

A file is a sequence of records: length (uint64), masked CRC of it, data, masked CRC of it (tensorflow/core/lib/io/
record_writer.h). Data is a message `Event` (tensorflow/core/util/event.proto) in protobuf's wire format.
"""

import os
import socket
import struct
import time

# A field of a message: (number, value). An int becomes a varint, a float fixed32, bytes are a string or a message.
_Field = tuple[int, int | float | bytes]

_DT_STRING = 7
_SESSION_START = 1


class EventFile:
  """A new file of events. Each is flushed, so that a process that is killed loses none."""

  def __init__(self, directory: str, purge_from: int | None = None):
    """
    Args:
      directory: created if missing; TensorBoard shows all its event files as one run.
      purge_from: events of older files at this step and later are no longer shown: where a run resumed.

    Raises:
      OSError: nothing can be written there.
    """
    os.makedirs(directory, exist_ok=True)
    # Viewers order files by this name.
    name = f'events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}'
    self._file = open(os.path.join(directory, name), 'xb')  # noqa: SIM115, closed by close()
    self._write((3, b'brain.Event:2'))
    if purge_from is not None:
      self._write((2, purge_from), (7, _message((1, _SESSION_START))))

  def scalar(self, step: int, name: str, value: float) -> None:
    self._value(step, name, (2, float(value)))

  def image(self, step: int, name: str, png: bytes, height: int, width: int) -> None:
    """An RGB image, encoded as PNG."""
    self._value(step, name, (4, _message((1, height), (2, width), (3, 3), (4, png))))

  def text(self, step: int, name: str, text: str) -> None:
    """A text, which TensorBoard shows as Markdown."""
    tensor = _message((1, _DT_STRING), (2, _message((2, _message((1, 1))))), (8, text.encode()))
    metadata = _message((1, _message((1, b'text'))))
    self._value(step, name, (8, tensor), (9, metadata))

  def close(self) -> None:
    self._file.close()

  def _value(self, step: int, name: str, *fields: _Field) -> None:
    value = _message((1, name.encode()), *fields)
    self._write((2, step), (5, _message((1, value))))

  def _write(self, *fields: _Field) -> None:
    data = b'\x09' + struct.pack('<d', time.time()) + _message(*fields)  # Field 1, a double: wall time.
    length = struct.pack('<Q', len(data))
    self._file.write(length + _masked_crc(length) + data + _masked_crc(data))
    self._file.flush()


def _message(*fields: _Field) -> bytes:
  return b''.join(_encoded(number, value) for number, value in fields)


def _encoded(number: int, value: int | float | bytes) -> bytes:
  if isinstance(value, bytes):
    return _varint(number << 3 | 2) + _varint(len(value)) + value
  if isinstance(value, float):
    return _varint(number << 3 | 5) + struct.pack('<f', value)
  return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
  parts = []
  while value > 0x7F:
    parts.append(value & 0x7F | 0x80)
    value >>= 7
  return bytes([*parts, value])


def _crc_entry(byte: int) -> int:
  """Entry of the table for CRC-32C (Castagnoli), reflected."""
  for _ in range(8):
    byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
  return byte


_CRC_TABLE = tuple(map(_crc_entry, range(256)))


def _masked_crc(data: bytes) -> bytes:
  crc = 0xFFFFFFFF
  for byte in data:
    crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
  crc ^= 0xFFFFFFFF
  return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
