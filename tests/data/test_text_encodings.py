"""Text of every form that files have, and what is said of others."""

import bz2
import codecs
import gzip
import io
import lzma

import pytest

from janus_jax.data.text_encodings import decode_text, split_lines, write_plain
from janus_jax.errors import InputError, RecordError

TEXT = 'One.\r\n\r\nZwei: ä, 三, 🙂\n' * 300
FORMS = {
  'plain': TEXT.encode(),
  'utf-8-sig': TEXT.encode('utf-8-sig'),
  **{codec: mark + TEXT.encode(codec) for codec, mark in (
    ('utf-16-le', codecs.BOM_UTF16_LE), ('utf-16-be', codecs.BOM_UTF16_BE),
    ('utf-32-le', codecs.BOM_UTF32_LE), ('utf-32-be', codecs.BOM_UTF32_BE),
  )},
  'gzip': gzip.compress(TEXT.encode(), mtime=0),
  'gzip twice': gzip.compress(TEXT[:100].encode(), mtime=0) + gzip.compress(TEXT[100:].encode(), mtime=0),
  'gzip of utf-16': gzip.compress(TEXT.encode('utf-16'), mtime=0),
}  # fmt: skip


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('chunk', [1, 3, 1 << 20])
def test_text_is_read_whatever_its_form(form, chunk, monkeypatch):
  monkeypatch.setattr('janus_jax.data.text_encodings.CHUNK', chunk)
  assert decode_text(FORMS[form], 'x') == TEXT
  copied = io.BytesIO()
  write_plain(io.BytesIO(FORMS[form]), copied, 'x')
  assert copied.getvalue().removeprefix(codecs.BOM_UTF8).decode() == TEXT


@pytest.mark.parametrize('content', [b'', codecs.BOM_UTF8, codecs.BOM_UTF16_LE, gzip.compress(b'', mtime=0)])
def test_nothing_is_empty_text(content):
  assert decode_text(content, 'x') == ''


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('Grüße'.encode('latin-1'), r'^x: byte 0xfc at offset 2: expected UTF-8$'),
    (codecs.BOM_UTF8 + b'ab\xff', r'^x: byte 0xff at offset 5: expected UTF-8$'),
    ('ab'.encode('utf-16-le'), r'^x: byte 0x00 at offset 1: expected text in UTF-8$'),
    (codecs.BOM_UTF16_LE + b'a\0\0\xdcb\0', r'^x: byte 0x00 at offset 4: expected UTF-16-LE, as its byte order mark'),
    (codecs.BOM_UTF16_BE + b'\0a\0', r'^x: byte 0x00 at offset 4: expected UTF-16-BE, as its byte order mark says$'),
    (gzip.compress(TEXT.encode(), mtime=0)[:-20], r'^x: Compressed file ended .*: expected a whole gzip file$'),
    (gzip.compress(TEXT.encode(), mtime=0)[:12] + b'\xff' * 50, r'^x: .*: expected a whole gzip file$'),
    (gzip.compress(b'\xff', mtime=0), r'^x: byte 0xff at offset 0: expected UTF-8$'),
    (b'\x28\xb5\x2f\xfd and more', r'^x: compressed by zstd: expected text or gzip; decompress it \(zstd -d\)$'),
    (bz2.compress(b'a'), r'^x: compressed by bzip2: '),
    (lzma.compress(b'a'), r'^x: compressed by xz: '),
    (b'PK\x03\x04', r'^x: a zip archive: '),
    (b'version https://git-lfs.github.com/spec/v1\noid', r'^x: a Git-LFS pointer, .*`git lfs pull`'),
  ],
)
def test_what_is_no_text_is_named(content, message):
  with pytest.raises(RecordError, match=message) as error:
    decode_text(content, 'x')
  assert error.value.reason == 'text'


@pytest.mark.parametrize('chunk', [1, 2, 5, 1 << 20])
def test_a_wrong_byte_is_found_wherever_chunks_end(chunk, monkeypatch):
  monkeypatch.setattr('janus_jax.data.text_encodings.CHUNK', chunk)
  content = codecs.BOM_UTF16_LE + 'abc'.encode('utf-16-le') + b'\0\xdc' + 'd'.encode('utf-16-le')
  with pytest.raises(InputError, match='byte 0x00 at offset 8: expected UTF-16-LE'):
    write_plain(io.BytesIO(content), io.BytesIO(), 'x')


def test_lines_end_in_three_ways_and_no_others():
  assert split_lines('a\nb\r\nc\rd\x0be\u2028f\x85g\n\n') == ['a', 'b', 'c', 'd\x0be\u2028f\x85g', '']
  assert split_lines('') == split_lines('\n')[1:] == []
