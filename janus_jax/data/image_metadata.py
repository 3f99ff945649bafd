"""Image files without their metadata: bytes that are no pixels, nor say how to read them, can then cost none.

Pillow parses texts, profiles and tags while it opens a file, and refuses the whole file for a text that is too large, a
checksum that differs, a profile that is cut, a keyword that it takes for a setting of its own. Whatever is not as
expected here is left as it is, for Pillow to judge.
"""

import re
import struct
import zlib
from collections.abc import Iterator

PNG, JPEG = b'\x89PNG\r\n\x1a\n', b'\xff\xd8'
PNG_CHUNKS = (b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND')
# JPEG markers that stand alone, and where the entropy-coded data begins.
ALONE, START_OF_SCAN = (0x01, *range(0xD0, 0xD9)), 0xDA
# TIFF 6.0, and its technical notes: size, samples, compression, colours, orientation, strips, tiles.
TIFF_TAGS = frozenset(
  (*range(254, 260), 262, 266, 273, 274, *range(277, 282), 284, 292, 293, 317, 320, *range(322, 326))
  + (332, 338, 339, *range(340, 342), 347, *range(512, 522), *range(529, 533))
)
AVIF_EXIF = re.compile(rb'(infe.{8})Exif', re.DOTALL)


def without_metadata(data: bytes) -> bytes:
  """The content of an image file, less what decoding does not need. EXIF stays, as it says which way is up.

  An AVIF file has that elsewhere (ISO 23008-12, `irot` and `imir`), and EXIF that differs is to be ignored.
  """
  if data.startswith(PNG):
    return b''.join(_png_chunks(data))
  if data.startswith(JPEG):
    return b''.join(_jpeg_segments(data))
  if data[:4] in (b'II*\0', b'MM\0*'):
    return _tiff_of_pixels(data)
  if data[4:8] == b'ftyp' and data[8:12] in (b'avif', b'avis'):
    return AVIF_EXIF.sub(rb'\1free', data)
  return data


def _png_chunks(data: bytes) -> Iterator[bytes]:
  """The chunks of PNG 1.2 that pixels are made of, and EXIF whose checksum is right."""
  yield PNG
  start, pixels = len(PNG), False
  while start + 8 <= len(data):
    length, kind = struct.unpack_from('>I4s', data, start)
    end = start + length + 12
    if end > len(data):  # The file is cut off: in its pixels, or where it does not matter.
      if kind == b'IDAT' or not pixels:
        yield data[start:]
      return
    exif_is_whole = kind == b'eXIf' and zlib.crc32(data[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])
    if kind in PNG_CHUNKS or exif_is_whole:
      yield data[start:end]
    pixels |= kind == b'IDAT'
    start = end


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
  """All but the comments and the application segments that are neither EXIF nor say what the channels are."""
  yield JPEG
  start = len(JPEG)
  while start + 4 <= len(data) and data[start] == 0xFF:
    marker = data[start + 1]
    if marker == 0xFF:  # A fill byte.
      start += 1
      continue
    size = 0 if marker in ALONE else int.from_bytes(data[start + 2 : start + 4])
    end = start + 2 + size
    if marker == START_OF_SCAN or end > len(data) or size == 1:
      break
    segment = data[start:end]
    if not (marker == 0xFE or 0xE0 <= marker <= 0xEF) or _says_how_to_read(marker, segment[4:]):
      yield segment
    start = end
  yield data[start:]


def _says_how_to_read(marker: int, content: bytes) -> bool:
  """True of the application segments of JFIF and Adobe, as libjpeg reads them, and of EXIF."""
  jfif = marker == 0xE0 and content.startswith(b'JFIF\0') and len(content) >= 14
  adobe = marker == 0xEE and content.startswith(b'Adobe') and len(content) >= 12
  return jfif or adobe or (marker == 0xE1 and content.startswith(b'Exif\0\0'))


def _tiff_of_pixels(data: bytes) -> bytes:
  """The first image of a TIFF, with the tags that its pixels need; strips and tiles stay where they are."""
  order = '<' if data.startswith(b'II') else '>'
  try:
    (start,) = struct.unpack_from(f'{order}I', data, 4)
    (count,) = struct.unpack_from(f'{order}H', data, start)
    entries = [data[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    kept = [entry for entry in entries if struct.unpack_from(f'{order}H', entry)[0] in TIFF_TAGS]
  except struct.error:
    return data
  directory = struct.pack(f'{order}H', len(kept)) + b''.join(kept) + bytes(4)
  return data[:start] + directory + data[start + len(directory) :]
