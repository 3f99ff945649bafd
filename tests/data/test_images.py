import errno
import io
import resource
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from janus_jax.data import images
from janus_jax.errors import InputError


def _picture(height=24, width=36, seed=0):
  """Smooth random colours: uint8[height, width, 3]."""
  rng = np.random.default_rng(seed)
  small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
  return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def _encoded(image, image_format, **options):
  stream = io.BytesIO()
  image.save(stream, image_format, **options)
  return stream.getvalue()


def _decode(data, **options):
  (stream := io.BytesIO(data)).read()  # Wherever a file stands, it is decoded from its start.
  return images.decode_image(stream, 'picture.png', **options)


def _chunk(kind, data):
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def _png_header(width, height):
  """A PNG that promises these many pixels and holds none."""
  return (
    b'\x89PNG\r\n\x1a\n' + _chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)) + _chunk(b'IDAT', b'')
  )


# What a camera stores when a viewer is to see `x`, by EXIF orientation.
STORED = {
  1: lambda x: x,
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: np.rot90(x, 1),
  7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
  8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize('image_format', ['PNG', 'TIFF'])
@pytest.mark.parametrize('orientation', STORED)
def test_exif_rotation_is_applied(image_format, orientation):
  upright = _picture()
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
  np.testing.assert_array_equal(_decode(_encoded(stored, image_format, exif=exif)), upright)


def test_damaged_exif_does_not_cost_the_picture():
  exif = Image.Exif()
  exif[0x0112] = 6
  data = _encoded(Image.fromarray(_picture()), 'WEBP', lossless=True, exif=exif.tobytes().replace(b'*', b'\x0f', 1))
  np.testing.assert_array_equal(_decode(data), _picture())


@pytest.mark.parametrize('image_format', ['PNG', 'PPM', 'TIFF'])
def test_sixteen_bit_grey_is_scaled_not_clipped(image_format):
  levels = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
  pixels = np.asarray(_decode(_encoded(Image.fromarray(levels), image_format)))
  np.testing.assert_array_equal(pixels, np.repeat((levels >> 8).astype(np.uint8)[..., None], 3, axis=-1))


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_transparency_is_laid_over_white(mode):
  """Three pixels of grey 40: opaque, a quarter opaque, invisible."""
  alpha = np.array([[255, 64, 0]], np.uint8)
  if mode == 'P':
    image = Image.new('P', (3, 1))
    image.putpalette([40] * 9)
    image.putdata([0, 1, 2])
    data = _encoded(image, 'PNG', transparency=alpha.tobytes())
  else:
    image = Image.new(mode.removesuffix('A'), (3, 1), 40 if mode == 'LA' else (40, 40, 40))
    image.putalpha(Image.fromarray(alpha))
    data = _encoded(image, 'PNG')
  np.testing.assert_array_equal(_decode(data), np.repeat([[[40], [201], [255]]], 3, axis=-1))


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'CMYK', 'YCbCr', 'RGB'])
def test_other_modes_are_what_pillow_converts_them_to(mode):
  """Plain opaque files give what DeepSeek's loader gives."""
  image = Image.fromarray(_picture()).convert(mode)
  data = _encoded(image, 'JPEG' if mode in ('CMYK', 'YCbCr') else 'PNG')
  np.testing.assert_array_equal(_decode(data), Image.open(io.BytesIO(data)).convert('RGB'))


def test_an_animation_gives_its_first_frame():
  first, second = Image.fromarray(_picture(seed=1)), Image.fromarray(_picture(seed=2))
  data = _encoded(first, 'PNG', save_all=True, append_images=[second])
  np.testing.assert_array_equal(_decode(data), first)


def _jpeg():
  return _encoded(Image.fromarray(_picture(100, 120)), 'JPEG')


BAD_FILES = {
  'missing': (None, 'No such file.*expected an image file'),
  'directory': ('directory', 'Is a directory.*expected an image file'),
  'truncated jpeg': (_jpeg()[:-400], 'damaged JPEG image'),
  'truncated png': (_encoded(Image.fromarray(_picture()), 'PNG')[:-60], 'damaged PNG image'),
  'text': (b'hello, I am not an image', r"begins with b'hello, I am not "),
  'empty': (b'', '0 bytes'),
  'no range': (_encoded(Image.fromarray(np.ones((4, 4), np.float32)), 'TIFF'), "pixels of Pillow mode 'F'"),
  # Ghostscript would run this one, were all of Pillow's readers let loose on it.
  'postscript': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n', 'begins with'),
  'bomb beyond Pillow': (_png_header(30000, 30000), 'expected at most 134217728 pixels'),
  'bomb': (_png_header(12000, 12000), '12000 x 12000 pixels: expected at most 134217728 pixels'),
}


@pytest.mark.parametrize('case', BAD_FILES)
def test_bad_files_give_one_line_with_their_name(case, tmp_path):
  data, reason = BAD_FILES[case]
  path = tmp_path / 'some.png'
  if data == 'directory':
    path.mkdir()
  elif data is not None:
    path.write_bytes(data)
  with pytest.raises(InputError, match=reason) as caught:
    images.load_image(path)
  assert str(caught.value).startswith(f'{path}: ')
  assert '\n' not in str(caught.value)


def test_size_limit_is_exact_and_adjustable():
  data = _encoded(Image.fromarray(_picture()), 'PNG')
  assert _decode(data, max_pixels=24 * 36).size == (36, 24)
  with pytest.raises(InputError, match='36 x 24 pixels: expected at most 863 pixels'):
    _decode(data, max_pixels=24 * 36 - 1)


def test_no_warning_leaks():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    before = list(warnings.filters)
    with pytest.raises(InputError, match='12000 x 12000'):
      _decode(_png_header(12000, 12000))  # Pillow warns from 9,460 x 9,460 on.
    assert warnings.filters == before


def _reason_for_refusing(data):
  """None if it decodes to RGB within the limit."""
  try:
    return None if _decode(data, max_pixels=10**6).mode == 'RGB' else 'not RGB'
  except InputError as error:
    return str(error)


def test_random_damage_gives_a_picture_or_an_input_error():
  rng = np.random.default_rng(0)
  image = Image.fromarray(_picture())
  exif = Image.Exif()
  exif[0x0112] = 6
  formats = ('PNG', 'JPEG', 'WEBP', 'TIFF', 'GIF', 'BMP', 'PPM', 'JPEG2000', 'AVIF')
  whole = [_encoded(image, image_format, exif=exif) for image_format in formats]
  reasons = []
  for trial in range(600):
    data = bytearray(whole[trial % len(whole)])
    for _ in range(rng.integers(1, 4)):
      data[rng.integers(min(len(data), 400))] = rng.integers(256)
    if rng.random() < 0.3:
      del data[rng.integers(1, len(data)) :]
    reasons.append(_reason_for_refusing(bytes(data)))
  refused = [reason for reason in reasons if reason]
  assert 100 < len(refused) < 500
  assert all(reason.startswith('picture.png: ') and '\n' not in reason for reason in refused)


def test_understanding_pixels_equal_the_original():
  """The original's steps, through torchvision as there."""
  functional = pytest.importorskip('torchvision.transforms.functional')
  rng, size = np.random.default_rng(0), 384
  for _ in range(20):
    width, height = map(int, rng.integers(20, 900, 2))
    image = Image.fromarray(_picture(height, width))
    new = [max(int(side / max(width, height) * size), 14) for side in (height, width)]
    resized = functional.resize(image, new, functional.InterpolationMode.BICUBIC, antialias=True)
    expected = Image.new('RGB', (size, size), (127, 127, 127))
    expected.paste(resized, ((size - new[1]) // 2, (size - new[0]) // 2))
    np.testing.assert_array_equal(images.understanding_pixels(image, size), expected)


def _transformers_pixels(processor, image):
  """What a `transformers` image processor feeds the model, back in uint8 units: float[size, size, 3]."""
  values = np.asarray(processor(images=[image], return_tensors='pt').pixel_values[0], np.float64)
  return (values * 0.5 + 0.5).transpose(1, 2, 0) * 255


def _sides(pixels):
  """Height and width of what is not grey padding, in one channel."""
  content = np.abs(pixels[..., 0] - 127.0) > 0.01
  return content.any(axis=1).sum(), content.any(axis=0).sum()


# Greatest difference in uint8 levels: none through Pillow; torch's own bicubic filter has other fixed-point weights.
@pytest.mark.parametrize(('name', 'bound'), [('JanusImageProcessorPil', 1e-3), ('JanusImageProcessor', 2.01)])
def test_understanding_pixels_against_transformers(name, bound):
  """Equal but for the short side, which is truncated here (and by DeepSeek) and rounded there: one pixel, if any."""
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  if name == 'JanusImageProcessor':
    pytest.importorskip('torchvision')
  size = 96
  options = {'size': {'height': size, 'width': size}, 'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}
  processor = getattr(transformers, name)(**options)
  rng, equal = np.random.default_rng(0), 0
  for _ in range(60):
    width, height = map(int, rng.integers(20, 900, 2))
    # Never the padding's grey, so that the padding can be told.
    image = Image.fromarray(_picture(height, width) // 3 + 150)
    ours, theirs = images.understanding_pixels(image, size).astype(float), _transformers_pixels(processor, image)
    short = min(width, height) / max(width, height) * size
    truncated_differs = max(int(short), 14) != max(round(short), 14)
    assert sorted(np.subtract(_sides(theirs), _sides(ours))) == [0, int(truncated_differs)]
    equal += not truncated_differs
    if not truncated_differs:
      assert np.abs(ours - theirs).max() < bound
  assert equal > 20


def test_share_of_sizes_that_rounding_makes_a_pixel_larger():
  """About 49 %: half of all short sides have a fraction above one half, less squares and those below the minimum."""
  rng, size = np.random.default_rng(0), 384
  trials, larger = 300, 0
  for _ in range(trials):
    width, height = map(int, rng.integers(20, 300, 2))
    sides = _sides(images.understanding_pixels(Image.new('RGB', (width, height), 'white'), size))
    exact = [side / max(width, height) * size for side in (height, width)]
    assert sides == tuple(max(int(side), 14) for side in exact)
    larger += sides != tuple(max(round(side), 14) for side in exact)
  assert 0.43 < larger / trials < 0.55


def test_understanding_pixels_of_a_thin_image():
  image = Image.fromarray(np.full((3, 3000, 3), 255, np.uint8))
  pixels = images.understanding_pixels(image, 384)
  white = (pixels == 255).all(axis=-1)
  assert white.sum() == 14 * 384
  assert white[185:199].all()
  assert (pixels[~white] == 127).all()
  assert images.understanding_pixels(image, 8).shape == (8, 8, 3)


@pytest.mark.parametrize(('height', 'width'), [(300, 500), (500, 300), (301, 500), (257, 257)])
def test_generation_pixels_are_resize_then_crop_away_from_the_cuts(height, width):
  size = 128
  image = Image.fromarray(_picture(height, width))
  scale = size / min(height, width)
  resized = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
  left, top = (resized.width - size) // 2, (resized.height - size) // 2
  expected = np.asarray(resized.crop((left, top, left + size, top + size))).astype(int)
  difference = np.abs(images.generation_pixels(image, size) - expected)[4:-4, 4:-4]
  assert difference.mean() < 1.5  # Half a pixel at most between the two grids, on smooth colours.
  assert difference.max() <= 8


def test_generation_pixels_of_the_right_short_side_are_cropped_untouched():
  picture = _picture(64, 101)
  np.testing.assert_array_equal(images.generation_pixels(Image.fromarray(picture), 64), picture[:, 18:82])


def test_generation_pixels_of_a_thin_image_need_no_wide_one():
  image = Image.fromarray(np.full((1, 3000, 3), 7, np.uint8))  # Resized before cropping, it would take 1.8 GB.
  peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert (images.generation_pixels(image, 384) == 7).all()
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib < 200_000


def test_to_uint8_clips_and_truncates():
  pixels = np.array([[-2.0, -1.0, -0.999], [0.0, 0.999, 1.0], [1.5, 0.5, -0.5]], np.float32)
  np.testing.assert_array_equal(images.to_uint8(pixels), [[0, 0, 0], [127, 254, 255], [255, 191, 63]])


def test_to_uint8_against_transformers():
  torch = pytest.importorskip('torch')
  processor = pytest.importorskip('transformers').JanusImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
  pixels = np.random.default_rng(0).uniform(-1.2, 1.2, (3, 64, 64)).astype(np.float32)
  theirs = np.asarray(processor.postprocess([torch.from_numpy(pixels)]).pixel_values[0])
  difference = np.abs(images.to_uint8(pixels).astype(int) - theirs)
  # The same formula in another order: values within rounding error of an integer may truncate to either side.
  assert difference.max() <= 1
  assert (difference > 0).mean() < 1e-3


def test_contact_sheet_puts_every_image_in_its_place():
  pictures = [_picture(10, 12, seed) for seed in range(5)]
  sheet = images.contact_sheet(pictures, columns=3, gap=4)
  assert sheet.shape == (24, 44, 3)
  for index, picture in enumerate(pictures):
    top, left = index // 3 * 14, index % 3 * 16
    np.testing.assert_array_equal(sheet[top : top + 10, left : left + 12], picture)
    sheet[top : top + 10, left : left + 12] = 255
  assert (sheet == 255).all()
  np.testing.assert_array_equal(images.contact_sheet(pictures[:1], columns=3), pictures[0])


def test_png_keeps_pixels_and_text(tmp_path):
  text = {'prompt': 'ein Bär\n"quoted" \\ 熊 🐻', 'seed': '7', 'guidance': '5.0', 'empty': ''}
  path = tmp_path / 'image.png'
  images.save_png(path, _picture(), text)
  assert images.read_png_text(path) == text
  np.testing.assert_array_equal(images.load_image(path), _picture())
  assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
  path = tmp_path / 'image.png'
  images.save_png(path, _picture(), {'seed': '1'})

  def full_disk(self, target, *args, **kwargs):
    with open(target, 'wb') as file:
      file.write(b'half')
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(Image.Image, 'save', full_disk)
  with pytest.raises(InputError, match=r'image\.png: cannot be written: No space left on device'):
    images.save_png(path, _picture(seed=2), {'seed': '2'})
  assert images.read_png_text(path) == {'seed': '1'}
  assert list(tmp_path.iterdir()) == [path]
  monkeypatch.undo()
  with pytest.raises(InputError, match=r'absent/image\.png: cannot be written: No such file'):
    images.save_png(tmp_path / 'absent' / 'image.png', _picture(), {})


@pytest.mark.parametrize('data', [b'', b'text', _jpeg(), _encoded(Image.fromarray(_picture()), 'PNG')[:-60]])
def test_text_of_what_is_no_png(data, tmp_path):
  path = tmp_path / 'image.png'
  path.write_bytes(data)
  with pytest.raises(InputError, match=r'image\.png: .*PNG'):
    images.read_png_text(path)
