"""Large images as tiles: grids against a search over all, pixels against the image, texts that say how tiles lie."""

import numpy as np
import pytest
from PIL import Image

from janus_jax.data.images import GREY, understanding_pixels
from janus_jax.data.sources.records import Fields, UnderstandingRecord
from janus_jax.data.tiles import choose_grid, cut_tiles, tile_text, with_tiles
from janus_jax.data.tokenizer import IMAGE_PLACEHOLDER as PH
from janus_jax.errors import InputError, RecordError

SIZE = 16


def vl2_grids(width: int, height: int, size: int, most: int) -> list[tuple[int, int]]:
  """DeepSeek-VL2's rule, by a loop: the largest effective area, then the least waste; all that are equal."""
  candidates = [(m * size, n * size) for m in range(1, 100) for n in range(1, 100) if m * n <= most]
  best, found = (-1, float('inf')), []
  for wide, high in candidates:
    scale = min(wide / width, high / height)
    effective = min(int(width * scale) * int(height * scale), width * height)
    waste = wide * high - effective
    if effective > best[0] or (effective == best[0] and waste < best[1]):
      best, found = (effective, waste), []
    if (effective, waste) == best:
      found.append((high // size, wide // size))
  return found


@pytest.mark.parametrize('most', [1, 2, 4, 9])
def test_the_grid_is_that_of_deepseek_vl2(most):
  rng = np.random.default_rng(most)
  for width, height in rng.integers(1, 200, (300, 2)).tolist():
    assert choose_grid(width, height, SIZE, most) in vl2_grids(width, height, SIZE, most), (width, height)


@pytest.mark.parametrize(
  ('width', 'height', 'most', 'grid'),
  [
    (10, 16, 9, (1, 1)),  # No larger than a square.
    (32, 16, 4, (1, 2)),
    (16, 64, 4, (4, 1)),
    (64, 64, 4, (2, 2)),
    (64, 64, 3, (1, 1)),  # Three in a row show no more of it than one.
    (64, 64, 9, (3, 3)),
    (48, 32, 9, (2, 3)),
  ],
)
def test_grids_by_hand(width, height, most, grid):
  assert choose_grid(width, height, SIZE, most) == grid


def test_tiles_are_the_image():
  pixels = np.random.default_rng(0).integers(0, 256, (2 * SIZE, 3 * SIZE, 3), np.uint8)
  tiles = cut_tiles(Image.fromarray(pixels), (2, 3), SIZE)
  rows = [np.concatenate(tiles[3 * row : 3 * row + 3], axis=1) for row in range(2)]
  np.testing.assert_array_equal(np.concatenate(rows), pixels)


def test_what_an_image_leaves_empty_is_grey():
  wide = Image.new('RGB', (4 * SIZE, SIZE), (255, 0, 0))
  first, second = cut_tiles(wide, (1, 2), SIZE)
  for tile in (first, second):
    assert (tile[SIZE // 4 : -SIZE // 4] == (255, 0, 0)).all()
    assert (tile[: SIZE // 4] == GREY).all()
    assert (tile[-SIZE // 4 :] == GREY).all()


def test_prompts_say_how_tiles_lie():
  assert tile_text((1, 1)) == PH
  assert tile_text((2, 3)) == f'{PH}\nIts parts, 2 rows of 3: {PH * 6}'
  large, small = Image.new('RGB', (32, 16)), Image.new('RGB', (8, 8))
  turns, squares = with_tiles(['What?', 'A dog.', 'Where?'], [large, small], SIZE, most=4)
  assert turns == [f'{PH}\nIts parts, 1 row of 2: {PH}{PH}\n{PH}\nWhat?', 'A dog.', 'Where?']
  assert [square.shape for square in squares] == [(SIZE, SIZE, 3)] * 4
  np.testing.assert_array_equal(squares[0], understanding_pixels(large, SIZE))
  turns, _ = with_tiles([f'Is {PH} in {PH}?'], [small, large], SIZE, most=4)
  assert turns == [f'Is {PH} in {PH}\nIts parts, 1 row of 2: {PH}{PH}?']


def test_one_tile_is_what_is_asked_without():
  image = Image.new('RGB', (64, 40), (9, 99, 199))
  turns, (square,) = with_tiles(['What?'], [image], SIZE)
  assert turns == [f'{PH}\nWhat?']
  np.testing.assert_array_equal(square, understanding_pixels(image, SIZE))


def test_odd_tiles_are_refused():
  with pytest.raises(InputError, match='tiles is 0: expected 1'):
    with_tiles(['What?'], [], SIZE, most=0)
  with pytest.raises(InputError, match='tiles is 0: expected 1'):
    Fields(tiles=0)


@pytest.mark.parametrize('template', ['chat', 'raw'])
def test_records_have_tiles(template):
  pixels = np.random.default_rng(0).integers(0, 256, (SIZE, 2 * SIZE, 3), np.uint8)
  item = {'image': pixels, 'caption': 'A dog.'}
  fields = Fields(answer='caption', questions=('What?',), tiles=4)
  record = UnderstandingRecord(fields, SIZE, template=template).record(item, np.random.default_rng(0))
  seen = f'{PH}\nIts parts, 1 row of 2: {PH}{PH}'
  said = {'turns': [f'{seen}\nWhat?', 'A dog.']} if template == 'chat' else {'text': f'{seen}What?A dog.'}
  images = record.pop('images')
  assert record == said
  np.testing.assert_array_equal(np.concatenate(images[1:], axis=1), pixels)
  broken = UnderstandingRecord(asking(fields, f'Is {PH} in {PH}?'), SIZE)
  with pytest.raises(RecordError, match=r'2 .* in the text but 1 images'):
    broken.record(item, np.random.default_rng(0))


def asking(fields: Fields, question: str) -> Fields:
  return Fields(answer=fields.answer, questions=(question,), tiles=fields.tiles)
