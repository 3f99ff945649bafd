import itertools

import numpy as np
import pytest
from recipes import recipe

from janus_jax.data import examples, packing
from janus_jax.data.examples import CODE, GENERATION_LOSS, IMAGE, TASKS, TEXT, Example
from janus_jax.data.mixture import make_mixture
from janus_jax.data.packing import BatchShape, MeanSize, batch_shape, fill_batch, fill_row, make_batch, size_of
from janus_jax.errors import RecordError
from janus_jax.runs import report_data

NUM_CODES, SIZE, GENERATION_SIZE = 4, 3, 2
FIELDS = ('tokens', 'token_types', 'targets', 'loss_ids', 'weights')


def random_example(rng, length, images=0, generation_images=0):
  """Not a plausible example, but one in which no two values are alike by accident."""
  token_types, loss_ids = np.full(length, TEXT, np.uint8), rng.integers(0, 3, length, dtype=np.uint8)
  tokens, targets = (rng.integers(1, 2**30, length, dtype=np.int32) for _ in range(2))
  if images:
    token_types[:images] = IMAGE
  if generation_images:
    token_types[-NUM_CODES:], loss_ids[-NUM_CODES:] = CODE, GENERATION_LOSS
    tokens[-NUM_CODES:] = targets[-NUM_CODES:] = np.arange(NUM_CODES)
  return Example(
    tokens,
    token_types,
    targets,
    loss_ids,
    rng.random(length, np.float32),
    rng.integers(1, 256, (images, SIZE, SIZE, 3), dtype=np.uint8),
    rng.integers(1, 256, (generation_images, GENERATION_SIZE, GENERATION_SIZE, 3), dtype=np.uint8),
  )


def random_examples(rng, count):
  for _ in range(count):
    images, generation_images = rng.permutation([0, 0, 1, 2])[:2] if rng.random() < 0.8 else (0, 0)
    yield random_example(rng, int(rng.integers(NUM_CODES + 1, 16)), int(images), min(int(generation_images), 1))


def pack_all(stream, shape):
  """Batches of (examples, rows), as the pipeline makes them; what is left at the end is dropped."""
  waiting, stream = [], iter(stream)
  size = lambda example: example if isinstance(example, tuple) else size_of(example)  # noqa: E731
  try:
    while True:
      yield fill_batch(waiting, lambda: next(stream), size, shape)
  except StopIteration:
    return


def arrays(taken, rows, shape, generation_size=GENERATION_SIZE):
  return make_batch(taken, rows, shape, num_codes=NUM_CODES, image_size=SIZE, generation_size=generation_size)


def test_a_batch_holds_each_example_once_in_a_segment_of_its_own():
  rng = np.random.default_rng(0)
  shape = BatchShape(4, 32, 7, 3)
  for taken, rows in pack_all(random_examples(rng, 300), shape):
    batch = arrays(taken, rows, shape)
    remaining = {name: value.copy() for name, value in batch.items()}
    segments, images, generation_images = [0] * 4, 0, 0
    for example, row in zip(taken, rows):  # Rows keep the order of the stream, images that of the rows.
      segments[row] += 1
      where = np.flatnonzero(batch['segments'][row] == segments[row])
      n, j, g = size_of(example)
      np.testing.assert_array_equal(where, np.arange(where[0], where[0] + n))
      np.testing.assert_array_equal(batch['positions'][row, where], np.arange(n))
      first_code = np.where(example.token_types == CODE, generation_images * NUM_CODES, 0)
      first_target = np.where(example.loss_ids == GENERATION_LOSS, generation_images * NUM_CODES, 0)
      np.testing.assert_array_equal(batch['tokens'][row, where], example.tokens + first_code)
      np.testing.assert_array_equal(batch['targets'][row, where], example.targets + first_target)
      for name in ('token_types', 'loss_ids', 'weights'):
        np.testing.assert_array_equal(batch[name][row, where], getattr(example, name))
      np.testing.assert_array_equal(batch['pixels'][0, images : images + j], example.pixels)
      if g:
        # The way a step finds a code's image: the place it is given, over the codes of an image.
        places = batch['targets'][row, where][example.loss_ids == GENERATION_LOSS]
        np.testing.assert_array_equal(places % NUM_CODES, np.arange(NUM_CODES))
        for image in batch['generation_pixels'][0, places // NUM_CODES]:
          np.testing.assert_array_equal(image, example.generation_pixels[0])
      for name in (*FIELDS, 'segments', 'positions'):
        remaining[name][row, where] = 0
      remaining['pixels'][0, images : images + j] = 0
      remaining['generation_pixels'][0, generation_images : generation_images + g] = 0
      images, generation_images = images + j, generation_images + g
    for name, value in remaining.items():
      assert not value.any(), f'{name} has something in the padding'
    assert images <= shape.images
    assert generation_images <= shape.generation_images


def test_shapes_and_types():
  rng = np.random.default_rng(0)
  shape = BatchShape(2, 20, 3, 1)
  batch = arrays([random_example(rng, 7, 1, 0)], [1], shape)
  assert {name: (value.dtype.name, value.shape) for name, value in batch.items()} == {
    **dict.fromkeys(('tokens', 'positions', 'segments', 'targets'), ('int32', (2, 20))),
    **dict.fromkeys(('token_types', 'loss_ids'), ('uint8', (2, 20))),
    'weights': ('float32', (2, 20)),
    'pixels': ('uint8', (1, 3, SIZE, SIZE, 3)),
    'generation_pixels': ('uint8', (1, 1, GENERATION_SIZE, GENERATION_SIZE, 3)),
  }


def test_codes_given_stay_codes():
  """And take no room for images to draw."""
  rng = np.random.default_rng(0)
  taken = [random_example(rng, 9, 0, 1) for _ in range(4)]
  taken = [Example(*(getattr(e, f) for f in FIELDS), e.pixels, e.generation_pixels[:0]) for e in taken]
  shape = BatchShape(2, 20, 0, 0)
  assert [packing.size_of(e) for e in taken] == [(9, 0, 0)] * 4
  batch = arrays(taken, [0, 0, 1, 1], shape, generation_size=None)
  assert 'generation_pixels' not in batch
  for row in range(2):
    for name in ('tokens', 'targets'):
      expected = np.concatenate([getattr(e, name) for e in taken[2 * row : 2 * row + 2]])
      np.testing.assert_array_equal(batch[name][row, :18], expected)


def best_by_trying(sizes, room):
  """The most tokens of any choice of examples that fits and has the first one that does."""
  first = next((i for i, size in enumerate(sizes) if all(n <= r for n, r in zip(size, room))), None)
  if first is None:
    return 0
  others = [size for i, size in enumerate(sizes) if i != first]
  totals = [
    np.sum([sizes[first], *chosen], axis=0)
    for count in range(len(others) + 1)
    for chosen in itertools.combinations(others, count)
  ]
  return max(total[0] for total in totals if (total <= room).all())


def test_a_row_is_as_full_as_can_be_and_has_the_oldest_that_fits():
  rng = np.random.default_rng(0)
  for _ in range(150):
    sizes = [(int(rng.integers(1, 40)), int(rng.integers(0, 3)), int(rng.integers(0, 2))) for _ in range(8)]
    room = (int(rng.integers(20, 90)), int(rng.integers(0, 5)), int(rng.integers(0, 4)))
    chosen = fill_row(sizes, room)
    assert chosen == sorted(set(chosen))
    total = np.sum([sizes[i] for i in chosen], axis=0) if chosen else np.zeros(3)
    assert (total <= room).all()
    assert total[0] == best_by_trying(sizes, room)
    fitting = [i for i, size in enumerate(sizes) if all(n <= r for n, r in zip(size, room))]
    assert chosen[:1] == fitting[:1] or fitting[0] in chosen


def test_of_rows_that_are_equally_full_the_oldest_examples_win():
  assert fill_row([(3, 0, 0), (4, 0, 0), (4, 0, 0), (3, 0, 0)], (7, 0, 0)) == [0, 1]


def test_no_example_waits_for_more_rows_than_examples_wait():
  """The oldest goes first, whatever would fill a row better."""
  rng, waited = np.random.default_rng(0), []
  waiting, batch, count = [], 0, itertools.count()

  def read():
    return (7 if next(count) % 5 else int(rng.integers(1, 4)), batch)

  for batch in range(200):
    taken, _ = fill_batch(waiting, read, lambda item: (item[0], 0, 0), BatchShape(1, 14, 0, 0))
    waited += [batch - since for _, since in taken]
  assert 0 < max(waited) <= packing.WAITING


@pytest.mark.parametrize(
  ('per_row', 'expected'),
  [
    # 4 x 100 positions hold 10 examples of 40 tokens: 5 images and 2 to generate, and a little more.
    ((0.0, 0.0), (6, 3)),
    ((1.75, 0.2), (7, 1)),
  ],
)
def test_rooms_follow_from_the_mixture_unless_they_are_given(per_row, expected):
  shape = batch_shape(4, 100, MeanSize(40.0, 0.5, 0.2), *per_row)
  assert shape == BatchShape(4, 100, *expected)
  assert batch_shape(4, 100, MeanSize(40.0, 0.0, 0.0), *per_row) == BatchShape(4, 100, 0, 0)


@pytest.mark.parametrize(
  ('size', 'message'),
  [
    ((21, 0, 0), '21 tokens: expected at most 20, which a row holds .sequence_length'),
    ((5, 3, 0), '3 understanding images: expected at most 2, .* .images_per_row'),
    ((9, 0, 1), '1 images to generate: expected at most 0'),
  ],
)
def test_an_example_that_no_batch_holds(size, message):
  with pytest.raises(RecordError, match=message) as caught:
    packing.check_fits(size, BatchShape(3, 20, 2, 0))
  assert caught.value.reason == packing.LONG
  packing.check_fits((20, 2, 0), BatchShape(3, 20, 2, 0))


def sizes_like(ratio, rng, count, lengths):
  kinds = make_mixture(ratio, {kind: {'a': 1} for kind in TASKS}).tasks
  for i in range(count):
    kind = kinds[i % len(kinds)]
    yield int(rng.integers(*lengths[kind])), int(kind == 'understanding'), int(kind == 'generation')


def filled(sizes, shape) -> tuple[float, float, float]:
  """The fractions of positions, of slots for images and of those for images to generate that are used."""
  totals = [
    np.sum(taken, axis=0) / (shape.rows * shape.length, max(shape.images, 1), max(shape.generation_images, 1))
    for taken, _ in pack_all(sizes, shape)
  ]
  return tuple(np.mean(totals, axis=0))


def share_of_tokens_by_grain(sizes, shape):
  import grain

  elements = [{'t': np.ones(n, np.int8), 'j': np.ones(j, np.int8), 'g': np.ones(g, np.int8)} for n, j, g in sizes]
  dataset = grain.experimental.FirstFitPackIterDataset(
    grain.MapDataset.source(elements).to_iter_dataset(),
    length_struct={'t': shape.length, 'j': shape.images, 'g': shape.generation_images},
    num_packing_bins=shape.rows,
    shuffle_bins=False,
  )
  rows = [row['t'].mean() for row in dataset]
  return float(np.mean(rows[: len(rows) // shape.rows * shape.rows - shape.rows]))


SMALL = {'understanding': (92, 109), 'text': (14, 27), 'generation': (73, 74)}
LARGE = {'understanding': (620, 900), 'text': (50, 3000), 'generation': (590, 670)}


@pytest.mark.parametrize(
  ('ratio', 'rows', 'length', 'lengths', 'gain'),
  [
    ((1, 0, 3), 8, 256, SMALL, 0.0),
    ((5, 1, 4), 8, 256, SMALL, 0.01),
    ((1, 0, 3), 8, 4096, LARGE, 0.02),
    ((2, 3, 5), 8, 4096, LARGE, 0.03),
  ],
)
def test_packing_beside_grains(ratio, rows, length, lengths, gain):
  """Why there is a packer of our own: Grain's never looks ahead, and every row has room for the same images."""
  sizes = list(sizes_like(ratio, np.random.default_rng(0), 1000, lengths))
  shape = batch_shape(rows, length, MeanSize(*np.mean(sizes, axis=0)))
  per_row = BatchShape(rows, length, -(-shape.images // rows), -(-shape.generation_images // rows))
  ours, theirs = filled(sizes, shape)[0], share_of_tokens_by_grain(sizes, per_row)
  assert ours >= theirs + gain, (ours, theirs)


# The spread of the lengths of the text in examples of the reports' sources (standard deviation of their logarithm), to
# the means that recipes assume (runs/report_data.py): long tails of documents and conversations, short class names.
SPREADS = {'imagenet': 0.4, 'sharegpt4v': 0.4, 'captions': 0.4, 'interleaved': 0.8, 'text': 1.2}
SPREADS |= {'sft': 0.9, 'sft_text': 0.9}
IMAGES = {'understanding': (1, report_data.UNDERSTOOD), 'text': (0, 0), 'generation': (1, report_data.GENERATED)}


def report_sizes(mixture, rng):
  """Sizes of a stage's examples without end; documents are split at 4,096 positions, other examples cut."""
  parts = []
  for index in itertools.count():
    kind, source = mixture.source_at(index)
    images, positions = IMAGES[kind]
    images *= 2 if source == 'interleaved' else 1
    mean, spread = report_data.TOKENS[source] - images * positions, SPREADS.get(source, 0.6)
    text = lambda mean=mean, spread=spread: round(rng.lognormal(np.log(mean) - spread**2 / 2, spread)) + 1  # noqa: E731
    if kind == 'text':
      if not parts:
        whole, rest = divmod(text(), 4096)
        parts = [4096] * whole + [rest] * bool(rest)
      yield parts.pop(0), 0, 0
    else:
      tokens = min(text() + images * positions, 4096)
      yield tokens, images * (kind == 'understanding'), int(kind == 'generation')


@pytest.mark.parametrize(
  ('recipe_name', 'stage'),
  [
    ('janus_1_3b', 'stage1'),
    ('janus_1_3b', 'stage2_imagenet'),
    ('janus_1_3b', 'stage2'),
    ('janus_1_3b', 'stage3'),
    # The 7B's stages have the mixtures of the 1B's.
    ('janus_pro_1b', 'stage1'),
    ('janus_pro_1b', 'stage2'),
    ('janus_pro_1b', 'stage3'),
  ],
)
@pytest.mark.parametrize('rows', [1, 4, 16])
def test_rows_and_slots_are_used_in_the_reports_stages(recipe_name, stage, rows):
  """Rooms come from the mean of a sample, as a run has them."""
  config = recipe(recipe_name, 'ROOT').stages[stage]
  mixture = make_mixture(config.ratio, config.sources.to_dict())
  sample = itertools.islice(report_sizes(mixture, np.random.default_rng(1)), 512)
  shape = batch_shape(rows, 4096, MeanSize(*np.mean(list(sample), axis=0)))
  sizes = itertools.islice(report_sizes(mixture, np.random.default_rng(0)), 1500 if rows == 1 else 2500)
  positions, understanding, generation = filled(sizes, shape)
  print(f'{recipe_name} {stage} {rows}: {positions:.1%} {understanding:.1%} {generation:.1%} {shape}')
  assert positions >= (0.92 if rows == 1 else 0.95)
  if rows > 1:
    assert min(understanding, generation) >= (0.85 if stage in ('stage1', 'stage3') else 0.7)


def test_statistics():
  rng = np.random.default_rng(0)
  taken = list(random_examples(rng, 5))
  batch = arrays(taken, [0, 0, 1, 1, 2], BatchShape(4, 40, 4, 2))
  stats = packing.statistics(batch)
  tokens = sum(len(example.tokens) for example in taken)
  losses = np.concatenate([example.loss_ids for example in taken])
  assert stats == {
    'packing': tokens / 160,
    'tokens': tokens,
    'examples': 5,
    'targets/understanding': (losses == examples.UNDERSTANDING_LOSS).sum(),
    'targets/text': (losses == examples.TEXT_LOSS).sum(),
    'targets/generation': (losses == GENERATION_LOSS).sum(),
  }
