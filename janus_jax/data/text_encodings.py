"""Text in files: UTF-8 with or without a byte order mark, UTF-16 and UTF-32 with one, or gzip of these."""

import codecs
import gzip
import io
import re
import shutil
import zlib
from typing import BinaryIO

from janus_jax.data.pointers import check_content
from janus_jax.errors import InputError, RecordError

HEAD = 64  # Bytes by which the form of a file is known.
CHUNK = 1 << 20  # Bytes that are decoded at a time.
# UTF-32's begins as UTF-16's does.
MARKS = (
  (codecs.BOM_UTF32_LE, 'UTF-32-LE'),
  (codecs.BOM_UTF32_BE, 'UTF-32-BE'),
  (codecs.BOM_UTF16_LE, 'UTF-16-LE'),
  (codecs.BOM_UTF16_BE, 'UTF-16-BE'),
)
GZIP = b'\x1f\x8b'
UNREADABLE = (
  (re.compile(rb'\x28\xb5\x2f\xfd'), 'compressed by zstd: expected text or gzip; decompress it (zstd -d)'),
  (re.compile(rb'BZh[1-9]1AY&SY'), 'compressed by bzip2: expected text or gzip; decompress it (bunzip2)'),
  (re.compile(rb'\xfd7zXZ\x00'), 'compressed by xz: expected text or gzip; decompress it (unxz)'),
  (re.compile(rb'\x04\x22\x4d\x18'), 'compressed by lz4: expected text or gzip; decompress it (lz4 -d)'),
  (re.compile(rb'PK\x03\x04'), 'a zip archive: expected text; unpack it'),
  (re.compile(rb'7z\xbc\xaf\x27\x1c'), 'a 7z archive: expected text; unpack it'),
)


def is_plain(head: bytes, where: str) -> bool:
  """True if a file is UTF-8 as it is, by its first HEAD bytes; else `write_plain` makes it so.

  Raises:
    InputError: it is compressed by something else than gzip, an archive or a Git LFS pointer.
  """
  check_content(head, where)
  for magic, what in UNREADABLE:
    if magic.match(head):
      raise InputError(f'{where}: {what}')
  return not head.startswith((GZIP, *(mark for mark, _ in MARKS)))


def write_plain(source: BinaryIO, target: BinaryIO, where: str) -> None:
  """Copies text of any of the forms as UTF-8, a chunk at a time; messages call the source `where`.

  Raises:
    InputError: it is damaged, cut off, or not of the encoding that its byte order mark names.
  """
  is_gzip = source.read(len(GZIP)) == GZIP
  source.seek(0)
  try:
    _transcode(io.BufferedReader(gzip.GzipFile(fileobj=source) if is_gzip else source), target, where)
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise InputError(f'{where}: {error}: expected a whole gzip file') from None


def _transcode(source: io.BufferedReader, target: BinaryIO, where: str) -> None:
  head = source.peek(HEAD)
  if is_plain(head, where) or head.startswith(GZIP):
    return shutil.copyfileobj(source, target)
  mark, encoding = next((mark, encoding) for mark, encoding in MARKS if head.startswith(mark))
  offset = len(source.read(len(mark)))
  decoder, final = codecs.getincrementaldecoder(encoding)(), False
  while not final:
    chunk = source.read(CHUNK)
    final, kept = not chunk, len(decoder.getstate()[0])
    try:
      target.write(decoder.decode(chunk, final).encode())
    except UnicodeDecodeError as error:
      raise _wrong(error, offset - kept, where, f'{encoding}, as its byte order mark says') from None
    offset += len(chunk)


def decode_text(content: bytes, where: str) -> str:
  """The text of a whole file, or of a member of one, without its byte order mark.

  Raises:
    RecordError: it is of no known encoding (the message names byte and offset), compressed otherwise, or damaged.
  """
  try:
    if not is_plain(content[:HEAD], where):
      target = io.BytesIO()
      write_plain(io.BytesIO(content), target, where)
      content = target.getvalue()
  except RecordError:
    raise
  except InputError as error:
    raise RecordError('text', str(error)) from None
  return decode_utf8(content, where)


def decode_utf8(content: bytes, where: str, offset: int = 0) -> str:
  """The text of the part of a UTF-8 file that begins at `offset`, without a byte order mark.

  Raises:
    RecordError: it is not UTF-8, or has NUL bytes, as UTF-16 without a byte order mark has.
  """
  if content.startswith(codecs.BOM_UTF8):
    content, offset = content[3:], offset + 3
  try:
    text = content.decode()
  except UnicodeDecodeError as error:
    raise _wrong(error, offset, where, 'UTF-8') from None
  if (index := content.find(0)) >= 0:
    raise RecordError('text', f'{where}: byte 0x00 at offset {offset + index}: expected text in UTF-8')
  return text


def _wrong(error: UnicodeDecodeError, offset: int, where: str, expected: str) -> RecordError:
  found = f'byte 0x{error.object[error.start]:02x} at offset {offset + error.start}'
  return RecordError('text', f'{where}: {found}: expected {expected}')


def split_lines(text: str) -> list[str]:
  """Lines without their ends, which are LF, CR LF or CR; an end of the last line begins no other."""
  lines = re.split('\r\n|\r|\n', text)
  return lines if lines[-1] else lines[:-1]
