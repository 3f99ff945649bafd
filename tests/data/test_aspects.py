"""Aspect buckets against a search over all grids, what they cut away, and the words and records of them."""

import dataclasses
import math

import numpy as np
import pytest
from conversion.fixtures import ASSISTANT, BOI, USER
from data.single_examples import make, make_spec
from PIL import Image

from janus_jax.data import examples, prompts
from janus_jax.data.aspects import aspect_buckets, nearest_bucket, parse_aspect, requested_grid, with_grid
from janus_jax.data.images import covering_pixels
from janus_jax.data.sources.records import Fields, GenerationRecord
from janus_jax.errors import InputError, RecordError

SIDES = range(1, 49)


@pytest.mark.parametrize('side', SIDES)
def test_buckets_are_the_fullest_grids_of_their_rows_or_columns(side):
  """Against all grids that are allowed."""
  allowed = [
    (rows, columns)
    for rows in range(1, 2 * side + 1)
    for columns in range(1, 2 * side + 1)
    if rows * columns <= side**2 and max(rows, columns) <= 2 * min(rows, columns)
  ]
  found = aspect_buckets(side)
  assert len(set(found)) == len(found)
  assert set(found) <= set(allowed)
  assert (side, side) in found
  assert {(columns, rows) for rows, columns in found} == set(found)
  assert list(found) == sorted(found)
  for rows, columns in found:
    short, long = sorted((rows, columns))
    # No longer one has as short a side; so none of as many rows beside it, either.
    assert long == max(c for r, c in allowed if r == short and c >= r)
    assert rows * columns > side**2 - short
  assert len({rows for rows, _ in found}) == len(found)
  # None is missing: a short side without a bucket would need one wider than 2.
  missing = set(range(1, side + 1)) - {min(grid) for grid in found}
  assert all(side**2 // short > 2 * short for short in missing)


def test_buckets_of_the_released_models_by_hand():
  wide = [(17, 33), (18, 32), (19, 30), (20, 28), (21, 27), (22, 26), (23, 25)]
  assert aspect_buckets(24) == (*wide, (24, 24), *[(columns, rows) for rows, columns in reversed(wide)])
  assert aspect_buckets(6) == ((5, 7), (6, 6), (7, 5))


@pytest.mark.parametrize('side', [1, 2, 6, 24, 32, 48])
def test_the_nearest_bucket_keeps_most_of_an_image(side):
  """Of a continuous crop, the part that is kept, by its two sides."""
  rng, buckets = np.random.default_rng(side), aspect_buckets(side)

  def kept(width: float, height: float, rows: int, columns: int) -> float:
    scale = max(columns / width, rows / height)  # So that it covers the bucket.
    return columns / (width * scale) * (rows / (height * scale))

  for width, height in rng.integers(1, 3000, (300, 2)).tolist():
    found = nearest_bucket(width, height, buckets)
    best = max(kept(width, height, *grid) for grid in buckets)
    assert kept(width, height, *found) == pytest.approx(best, rel=1e-12)
    assert nearest_bucket(height, width, buckets) == found[::-1]
    assert nearest_bucket(7 * width, 7 * height, buckets) == found
  assert nearest_bucket(500, 500, buckets) == (side, side)
  assert nearest_bucket(1, 9000, buckets) == buckets[-1]


def test_of_buckets_that_cut_alike_the_square_is_taken():
  assert nearest_bucket(3, 2, [(4, 9), (6, 6)]) == (6, 6)
  assert nearest_bucket(3, 2, [(6, 6), (4, 9)]) == (6, 6)


@pytest.mark.parametrize(
  'text', ['0:1', '1:0', '0:0', '5:1', '1:5', '201:100', 'x', '', '3', '3:', ':2', '3:2:1', '-3:-2']
)
@pytest.mark.parametrize('form', ['{}', '{} ', '{}\n'])
def test_odd_aspects_are_refused_in_a_line(text, form):
  with pytest.raises(InputError) as error:
    parse_aspect(form.format(text))
  assert str(error.value) == f'aspect is {form.format(text)!r}: expected WIDTH:HEIGHT from 1:2 to 2:1'


@pytest.mark.parametrize('text', ['3:2\n', ' 3:2', '1.5:1', '3/2', '٣:٢', '1e1:9', '9' * 5000 + ':1'])
def test_aspects_are_two_plain_integers(text):
  with pytest.raises(InputError, match=r'^aspect is .*: expected WIDTH:HEIGHT from 1:2 to 2:1$'):
    parse_aspect(text)


def test_aspects_are_width_before_height():
  assert parse_aspect('16:9') == (16, 9)
  assert requested_grid('3:2', 24) == (19, 30)
  assert requested_grid('2:3', 24) == (30, 19)
  assert requested_grid('2:1', 24) == (17, 33)
  assert requested_grid('1:1', 24) == (24, 24)


@pytest.mark.parametrize('template', [None, prompts.TEMPLATES['deepseek']])
def test_a_prompt_says_how_codes_lie_unless_in_a_square(template):
  plain = prompts.generation_text(template, ' a cat\n')
  assert prompts.generation_text(template, ' a cat\n', (24, 24)) == plain
  words = 'a cat\nThe image, 19 rows of 30:'
  assert with_grid(' a cat\n', (19, 30)) == words
  expected = f'{words}{BOI}' if template is None else f'{USER}: {words}\n\n{ASSISTANT}:{BOI}'
  assert prompts.generation_text(template, ' a cat\n', (19, 30)) == expected


@pytest.fixture
def spec(tmp_path):
  return dataclasses.replace(make_spec(tmp_path), generation_size=None, num_codes=36)


@pytest.mark.parametrize('grid', [(5, 7), (7, 5), (6, 6), None])
@pytest.mark.parametrize('form', [{}, {'template': 'raw'}])
def test_an_image_of_a_bucket_is_an_example(spec, grid, form):
  count = math.prod(grid or (6, 6))
  codes = np.arange(count)
  record = {'prompt': 'a cat', 'codes': codes, **form} | ({'grid': grid} if grid else {})
  example = make('generation', record, spec)
  template = None if form else spec.template
  ids = spec.tokenizer.encode(prompts.generation_text(template, 'a cat', grid))
  assert example.tokens.tolist() == [*ids, *codes[:-1]]
  assert example.targets[example.loss_ids == examples.GENERATION_LOSS].tolist() == codes.tolist()
  if not form:
    assert ids == prompts.generation_ids(spec.tokenizer, spec.template, 'a cat', max_length=99, grid=grid)
  dropped = make('generation', record, spec, guidance_dropout=1.0)
  assert dropped.tokens[: len(ids)].tolist() == prompts.unconditional_ids(ids, spec.tokenizer.special.pad)


@pytest.mark.parametrize(
  ('grid', 'count', 'message'),
  [
    ((4, 9), 36, r'^grid: \(4, 9\): expected one of 5 x 7, 6 x 6, 7 x 5 \(rows x columns\)$'),
    ((5, 5), 25, r'^grid: \(5, 5\): expected one of'),
    ((7, 7), 49, r'^grid: \(7, 7\): expected one of'),
    ((5, 7), 36, r'^codes: int64\[36\]: expected int32\[35\]$'),
    ((6, 6), 35, r'^codes: int64\[35\]: expected int32\[36\]$'),
  ],
)
def test_other_grids_are_bad_records(spec, grid, count, message):
  with pytest.raises(RecordError, match=message) as error:
    make('generation', {'prompt': 'a cat', 'codes': np.arange(count), 'grid': grid}, spec)
  assert error.value.reason == 'codes'


def test_a_row_needs_room_for_the_codes_there_are(spec):
  n = len(prompts.generation_ids(spec.tokenizer, spec.template, 'a cat', max_length=99, grid=(5, 7)))
  record = {'prompt': 'a cat', 'codes': np.arange(35), 'grid': (5, 7)}
  assert len(make('generation', record, dataclasses.replace(spec, max_length=n + 34)).tokens) == n + 34
  with pytest.raises(RecordError, match=f'the example has {n + 34} tokens'):
    make('generation', record, dataclasses.replace(spec, max_length=n + 33))


@pytest.mark.parametrize('grid', [np.array([5, 7]), [5, 7], (5, 7)])
def test_a_grid_is_read_beside_the_codes(grid):
  fields = Fields(codes='codes', grid='layout')
  record = GenerationRecord(fields, 24).record(
    {'prompt': 'x', 'codes': [1, 2], 'layout': grid}, np.random.default_rng(0)
  )
  assert record['grid'] == (5, 7)


@pytest.mark.parametrize('grid', [b'57', 57, [5], [5, 7, 9], [5.0, 7.0], [True, 7], 'ab'])
def test_what_is_no_grid_makes_a_bad_record(grid):
  transform = GenerationRecord(Fields(codes='codes', grid='grid'), 24)
  with pytest.raises(RecordError, match=r'grid: .*: expected rows and columns') as error:
    transform.record({'prompt': 'x', 'codes': [1, 2], 'grid': grid}, np.random.default_rng(0))
  assert error.value.reason == 'codes'
  with pytest.raises(RecordError, match='grid: missing: the item has codes, prompt'):
    transform.record({'prompt': 'x', 'codes': [1, 2]}, np.random.default_rng(0))


def test_pixels_have_no_grid():
  with pytest.raises(InputError, match=r"^grid is 'grid': expected codes beside it"):
    Fields(grid='grid')


@pytest.mark.parametrize(('height', 'width'), [(48, 64), (64, 48), (30, 90), (90, 30), (56, 56), (1, 50)])
@pytest.mark.parametrize('shape', [(40, 56), (56, 40), (48, 48)])
def test_the_middle_of_an_image_covers_its_bucket(height, width, shape):
  """Columns say where they come from: the largest box of the bucket's ratio, centred, nothing stretched."""
  ramp = np.broadcast_to(np.linspace(0, 255, width), (height, width))
  rows = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
  pixels = np.stack([ramp, rows, ramp * 0], axis=-1).round().astype(np.uint8)
  found = covering_pixels(Image.fromarray(pixels), shape)
  assert found.shape == (*shape, 3)
  scale = max(shape[0] / height, shape[1] / width)
  for axis, channel in ((1, 0), (0, 1)):
    size = (height, width)[axis]
    kept = shape[axis] / scale / size
    middle = found[shape[0] // 2] if axis else found[:, shape[1] // 2]
    ends = middle[[1, -2], channel] / 255
    expected = np.array([0.5 - kept / 2, 0.5 + kept / 2])
    assert np.abs(ends - expected).max() <= 1.5 / size + 2 / shape[axis]


def test_an_image_of_the_buckets_size_stays_as_it_is():
  pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
  np.testing.assert_array_equal(covering_pixels(Image.fromarray(pixels), (40, 56)), pixels)
  wider = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
  np.testing.assert_array_equal(covering_pixels(Image.fromarray(wider), (40, 56)), wider[:, 2:58])


def test_a_record_of_pixels_takes_the_shape_that_cuts_least():
  shapes = tuple((4 * rows, 4 * columns) for rows, columns in aspect_buckets(6))
  transform = GenerationRecord(Fields(), 24, shapes=shapes)
  for size, shape in (((40, 30), (20, 28)), ((30, 40), (28, 20)), ((40, 39), (24, 24)), ((400, 30), (20, 28))):
    item = {'prompt': 'x', 'image': np.zeros((size[1], size[0], 3), np.uint8)}
    assert transform.record(item, np.random.default_rng(0))['image'].shape == (*shape, 3)
  plain = GenerationRecord(Fields(), 24).record(
    {'prompt': 'x', 'image': np.zeros((30, 40, 3), np.uint8)}, None or np.random.default_rng(0)
  )
  assert plain['image'].shape == (24, 24, 3)
