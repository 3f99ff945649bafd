"""Metadata of every container, huge, damaged or misleading: the pixels are those of the file without them."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from janus_jax.data import images
from janus_jax.errors import InputError

PICTURE = Image.fromarray(
  np.asarray(Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((40, 24)))
)
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def encoded(image_format: str, **options) -> bytes:
  stream = io.BytesIO()
  PICTURE.save(stream, image_format, **options)
  return stream.getvalue()


def decoded(data: bytes) -> np.ndarray:
  return np.asarray(images.decode_image(io.BytesIO(data), 'x'))


def chunk(kind: bytes, data: bytes, checksum: bool = True) -> bytes:
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data) ^ (not checksum))


def segment(marker: int, data: bytes) -> bytes:
  return struct.pack('>BBH', 0xFF, marker, len(data) + 2) + data


HUGE = zlib.compress(bytes(1 << 27))  # 128 MB of text, or of a profile.
PNG_CHUNKS = {
  'huge zTXt': chunk(b'zTXt', b'parameters\0\0' + HUGE),
  'huge iTXt': chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + HUGE),
  'huge tEXt': chunk(b'tEXt', b'prompt\0' + b'x' * (1 << 27)),
  'huge profile': chunk(b'iCCP', b'icc\0\0' + HUGE),
  'profile without an end': chunk(b'iCCP', b'icc'),
  'profile of another method': chunk(b'iCCP', b'icc\0\7' + HUGE[:50]),
  'text of another method': chunk(b'zTXt', b'a\0\7abc'),
  'a checksum that differs': chunk(b'tEXt', b'a\0b', checksum=False),
  'EXIF of a checksum that differs': chunk(b'eXIf', b'MM\0*', checksum=False),
  'EXIF that is none': chunk(b'eXIf', b'\xff' * 40),
  'cut colours': chunk(b'cHRM', b'\0') + chunk(b'gAMA', b'\0') + chunk(b'sRGB', b'') + chunk(b'pHYs', b'\0'),
  'a frame of an animation': chunk(b'fcTL', bytes(3)),
  'text for a flag of Pillow': chunk(b'tEXt', b'interlace\0x') + chunk(b'tEXt', b'transparency\0abc'),
  'text for a place': chunk(b'tEXt', b'bbox\0abcd'),
}


@pytest.mark.parametrize('place', ['first', 'last'])
@pytest.mark.parametrize('case', PNG_CHUNKS)
def test_chunks_of_a_png_cost_no_pixels(case, place):
  data = encoded('PNG')
  split = 33 if place == 'first' else len(data) - 12  # After the header, before the end.
  np.testing.assert_array_equal(decoded(data[:split] + PNG_CHUNKS[case] + data[split:]), PICTURE)


JPEG_SEGMENTS = {
  'profile without a number': segment(0xE2, b'ICC_PROFILE\0'),
  'profile of missing parts': segment(0xE2, b'ICC_PROFILE\0\1\5' + ICC[:99]),
  'many comments': segment(0xFE, b'x' * 65000) * 200,
  'short JFIF': segment(0xE0, b'JFIF\0'),
  'short Adobe': segment(0xEE, b'Adobe'),
  'other pictures': segment(0xE2, b'MPF\0MM\0*\0\0\0\x08\0\1\xb0\0\0\7\0\0\0\1\0\0\0\0'),
  'photoshop': segment(0xED, b'Photoshop 3.0\x008BIM\3\xed\0\0\0\0'),
  'EXIF that is none': segment(0xE1, b'Exif\0\0' + b'\xff' * 40),
  'EXIF without an end': segment(0xE1, b'Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12'),
  'fill bytes': b'\xff\xff\xff' + segment(0xFE, b'x'),
}


@pytest.mark.parametrize('case', JPEG_SEGMENTS)
def test_segments_of_a_jpeg_cost_no_pixels(case):
  data = encoded('JPEG', quality=95)
  np.testing.assert_array_equal(decoded(data[:2] + JPEG_SEGMENTS[case] + data[2:]), Image.open(io.BytesIO(data)))
  cmyk = io.BytesIO()
  PICTURE.convert('CMYK').save(cmyk, 'JPEG')
  data = cmyk.getvalue()
  expected = np.asarray(Image.open(cmyk).convert('RGB'))  # Adobe's segment says that its channels are inverted.
  np.testing.assert_array_equal(decoded(data[:2] + JPEG_SEGMENTS[case] + data[2:]), expected)


# A number that is no orientation; a rational, a double, text, bytes and a type that there is not.
@pytest.mark.parametrize(('kind', 'value'), [(3, 0), (3, 9), (5, 8), (12, 8), (2, 6), (7, 6), (99, 6)])
@pytest.mark.parametrize('image_format', ['JPEG', 'WEBP'])
def test_an_orientation_that_is_none_turns_nothing(image_format, kind, value):
  exif = Image.Exif()
  exif[0x0112] = 6
  data = encoded(image_format, exif=exif)
  for order in '<>':
    good, bad = (struct.pack(f'{order}HHIH', 0x0112, k, 1, v) for k, v in ((3, 6), (kind, value)))
    data = data.replace(good, bad)
  assert bad in data or struct.pack('<HHIH', 0x0112, kind, 1, value) in data
  assert decoded(data).shape == (24, 40, 3)


@pytest.mark.parametrize('image_format', ['PNG', 'JPEG', 'WEBP', 'TIFF', 'AVIF', 'JPEG2000', 'GIF'])
def test_random_damage_of_metadata_costs_no_pixels(image_format):
  """200 damaged profiles, tags and comments a format; the rest of the file is whole."""
  exif = Image.Exif()
  exif[0x010E] = 'MARK' * 30
  exif.get_ifd(0x8769)[0x9286] = b'MARK' * 30
  options = {'exif': exif, 'icc_profile': ICC} if image_format != 'GIF' else {'comment': b'MARK' * 30}
  if image_format == 'PNG':
    options['pnginfo'] = PngInfo()
    options['pnginfo'].add_itxt('Description', 'MARK' * 30, zip=False)
  options |= {'WEBP': {'lossless': True}, 'AVIF': {'quality': 100}}.get(image_format, {})
  whole = encoded(image_format, **options)
  plain = np.asarray(Image.open(io.BytesIO(whole)).convert('RGB'))
  spans = [range(at, at + 100) for mark in (b'MARK', ICC[36:60], b'Exif\0\0') if (at := whole.find(mark)) >= 0]
  places, rng = list(itertools.chain(*spans)), np.random.default_rng(0)
  if image_format == 'AVIF':  # What it holds first is a table of where things are.
    places = [place for place in places if place > 400]
  if not places:
    pytest.skip('no metadata in this format')
  for _ in range(200):
    data = bytearray(whole)
    for _ in range(rng.integers(1, 5)):
      data[rng.choice(places)] = rng.integers(256)
    try:
      found = decoded(bytes(data))
    except InputError as error:
      raise AssertionError(f'{error} for {bytes(data)!r}') from None
    assert found.shape in (plain.shape, plain.swapaxes(0, 1).shape)
    if found.shape == plain.shape:
      differs = [np.abs(turned.astype(int) - plain).max() for turned in (found, found[::-1], found[:, ::-1])]
      assert min(*differs, np.abs(found[::-1, ::-1].astype(int) - plain).max()) == 0


def test_tags_of_a_tiff_that_lead_nowhere_cost_no_pixels():
  exif = Image.Exif()
  exif[0x010E] = 'a description'
  data = encoded('TIFF', exif=exif, icc_profile=ICC, resolution=72.0)
  (start,) = struct.unpack_from('<I', data, 4)
  (count,) = struct.unpack_from('<H', data, start)
  places = {data[at : at + 2]: at for at in range(start + 2, start + 2 + 12 * count, 12)}
  for tag in (270, 282, 34675):
    place = places[struct.pack('<H', tag)]
    for kind in (2, 5, 7, 13, 99):
      damaged = data[: place + 2] + struct.pack('<H', kind) + b'\xff' * 8 + data[place + 12 :]
      np.testing.assert_array_equal(decoded(damaged), PICTURE)


@pytest.mark.parametrize('image_format', ['PNG', 'JPEG', 'WEBP', 'TIFF', 'GIF', 'AVIF'])
def test_what_is_cut_off_in_its_pixels_stays_refused(image_format):
  data = encoded(image_format)
  for share in (0.5, 0.9):
    with pytest.raises(InputError, match=r'^x: '):
      decoded(data[: int(share * len(data))])


def test_a_png_that_is_cut_off_after_its_pixels_is_whole():
  data = encoded('PNG')
  for tail in (b'', chunk(b'tEXt', b'a\0' + b'x' * 100)[:50]):
    np.testing.assert_array_equal(decoded(data[:-12] + tail), PICTURE)
