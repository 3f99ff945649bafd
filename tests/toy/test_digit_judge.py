import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from janus_jax.toy import digits, scenes, shapes, test_set
from janus_jax.toy.digit_judge import NONE, DigitJudge
from janus_jax.toy.shapes import GROUND, Object, Scene, World

pytest.importorskip('sklearn')


@pytest.fixture(scope='module', params=[24, 32, 48])
def size(request):
  return request.param


@pytest.fixture(scope='module')
def judge(size):
  return DigitJudge.fit(size)


def test_reads_scans_that_it_was_not_fitted_on_and_refuses_hardly_any(size, judge):
  images, labels = digits.load_digits(size, 'test')
  read = judge.predict(images)
  right = (
    judge.classifier.predict((GROUND - images.mean(-1, dtype=np.float32)).reshape(len(images), -1) / 255) == labels
  )
  assert right.mean() >= 0.98
  assert (read[right] != labels[right]).mean() <= 0.01


def soft(images):
  rng = np.random.default_rng(0)
  return ndimage.gaussian_filter(images, (0, 0.5, 0.5, 0)) + rng.uniform(-6, 6, images.shape)


def with_speck(images):
  changed = images.copy()
  changed[:, 3, 4:6] = (220, 30, 40)
  return changed


@pytest.mark.parametrize('change', [soft, with_speck, lambda images: images * 0.93], ids=['soft', 'speck', 'dimmer'])
def test_reads_what_decoders_leave_of_digits(size, judge, change):
  images, labels = digits.load_digits(size, 'test')
  assert (judge.predict(as_pixels(change(images.astype(np.float32)))) == labels).mean() >= 0.97


def as_pixels(images):
  return np.rint(images.clip(0, 255)).astype(np.uint8)


def halved(images, rng):
  """Two digits side by side, each at half its width."""
  width = images.shape[1] // 2
  narrow = [np.asarray(Image.fromarray(as_pixels(image)).resize((width, 2 * width))) for image in images]
  return np.concatenate([narrow, rng.permutation(narrow)], axis=2)


def smaller(images, rng):
  """Two digits side by side, each at half its size."""
  width = images.shape[1] // 2
  small = np.array([np.asarray(Image.fromarray(as_pixels(image)).resize((width, width))) for image in images])
  pairs = np.full_like(images, GROUND)
  pairs[:, width // 2 : width // 2 + width] = np.concatenate([small, rng.permutation(small)], axis=2)
  return pairs


def coloured(images, rng):
  return GROUND + (images - GROUND) * np.array([0.1, 1, 1])


def of_shapes(images, rng):
  world = World(size=images.shape[1], grid=min(images.shape[1] // 4, 8))
  return shapes.render_scene(world, [scenes.scene_at(world, 'train', index) for index in range(len(images))])


def of_black_shapes(images, rng):
  world = World(size=images.shape[1], grid=min(images.shape[1] // 4, 8))
  middle = world.grid // 2
  return shapes.render_scene(
    world, [Scene((Object(s, 'black', z, middle, middle),)) for s in world.shapes for z in world.sizes] * 6
  )


def halves(images, rng):
  middle, chosen = images.shape[1] // 2, rng.integers(4, size=len(images))
  changed = images.copy()
  for image, side in zip(changed, chosen, strict=True):
    part = slice(0, middle) if side % 2 else slice(middle, None)
    image[(part,) if side < 2 else (slice(None), part)] = GROUND
  return changed


NO_DIGITS = {
  'blank': lambda images, rng: np.full_like(images, GROUND) + rng.uniform(-6, 6, images.shape),
  'nearly blank': lambda images, rng: GROUND + 0.3 * (images - GROUND),
  'at half the contrast': lambda images, rng: GROUND + 0.5 * (images - GROUND),
  'black': lambda images, rng: np.full_like(images, 30),
  'static': lambda images, rng: rng.uniform(0, 255, images.shape),
  'grey static': lambda images, rng: np.repeat(rng.uniform(30, GROUND, (*images.shape[:3], 1)), 3, axis=-1),
  'blots': lambda images, rng: np.repeat(
    np.where(ndimage.gaussian_filter(rng.normal(size=images.shape[:3]), (0, 2, 2)) > 0, 30, GROUND)[..., None], 3, -1
  ),
  'noise of 60': lambda images, rng: images + rng.normal(0, 60, images.shape),
  'shapes': of_shapes,
  'black shapes': of_black_shapes,
  'two narrow': halved,
  'two small': smaller,
  'inverted': lambda images, rng: 272 - images,
  'half erased': halves,
  'red': coloured,
  'pink ground': lambda images, rng: np.minimum(images, np.array([255, 192, 203])),
  'ground 60 darker': lambda images, rng: np.minimum(images, GROUND - 60),
  'moved away': lambda images, rng: np.roll(images, images.shape[1] // 4, axis=2),
}


@pytest.mark.parametrize('name', NO_DIGITS)
def test_what_is_no_digit_is_none(size, judge, name):
  images = digits.load_digits(size, 'test')[0][:96].astype(np.float32)
  read = judge.predict(as_pixels(NO_DIGITS[name](images, np.random.default_rng(0))))
  assert (read == NONE).mean() >= 46 / 48


def test_a_blank_image_is_not_the_digit_that_was_asked_for():
  cases = [test_set.GenerationCase('digit', 'seen', 'the digit', digit) for digit in range(10)]
  blank = np.full((10, 24, 24, 3), GROUND, np.uint8)
  verdicts = test_set.judge_images(World(), DigitJudge.fit(24), cases, blank)
  assert [(verdict.right, verdict.reason) for verdict in verdicts] == [(False, 'not a digit')] * 10
