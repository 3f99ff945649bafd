import pytest

from janus_jax.data.worlds import digits
from janus_jax.evaluation.digits import DigitJudge

pytest.importorskip('sklearn')


@pytest.mark.parametrize('size', [24, 32])
def test_reads_scans_that_it_was_not_fitted_on(size):
  images, labels = digits.load(size, 'test')
  assert (DigitJudge.fit(size).predict(images) == labels).mean() >= 0.98


def test_reads_dimmer_digits_too():
  images, labels = digits.load(24, 'test')
  assert (DigitJudge.fit(24).predict((images * 0.93).astype('uint8')) == labels).mean() >= 0.95
