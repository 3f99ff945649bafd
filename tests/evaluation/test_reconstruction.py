"""Measures of images against originals, where they are known."""

import numpy as np
import pytest

from janus_jax.evaluation.reconstruction import frechet_distance, gradient_energy, psnr

IMAGES = np.random.default_rng(0).integers(50, 200, (3, 8, 8, 3)).astype(np.uint8)


def test_psnr_of_a_known_error():
  off = IMAGES.copy()
  off[:2] += 10
  off[2] += 1
  # 10 log10(255^2 / 100) twice, and of 1.
  assert psnr(off, IMAGES) == pytest.approx((2 * 28.1308 + 48.1308) / 3, abs=1e-3)
  assert psnr(IMAGES, IMAGES) == pytest.approx(48.1308 + 10 * np.log10(192), abs=1e-3)


def test_gradient_energy_is_of_both_directions():
  ramp = np.zeros((2, 4, 4, 3), np.uint8)
  ramp += (3 * np.arange(4, dtype=np.uint8))[:, None, None] + (4 * np.arange(4, dtype=np.uint8))[:, None]
  assert gradient_energy(ramp) == 3**2 + 4**2


def test_frechet_distance_of_gaussians():
  rng = np.random.default_rng(1)
  first = rng.normal(size=(500, 4))
  assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
  assert frechet_distance(first + [3, 0, 4, 0], first) == pytest.approx(25)
  # Commuting covariances C and 4 C: tr(C + 4 C - 2 * 2 C) = tr C.
  centred = first - first.mean(axis=0)
  assert frechet_distance(2 * centred, centred) == pytest.approx(np.trace(np.cov(centred, rowvar=False)))
