"""Measures of images against their originals, and of a set of images against another set."""

from collections.abc import Sequence

import numpy as np
import scipy.linalg


def psnr(images: np.ndarray, originals: np.ndarray) -> float:
  """Mean over the images of the peak signal-to-noise ratio in dB: 10 log10(255^2 / mean squared error).

  Args:
    images: uint8[N, h, w, 3].
    originals: uint8[N, h, w, 3]. Where one is met to the bit, its error counts as that of one level in one value.
  """
  # One at a time: as float64, all of them could take more memory than there is.
  errors = [np.square(image.astype(np.float64) - original).mean() for image, original in zip(images, originals)]
  return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 1 / originals[0].size))))


def gradient_energy(images: np.ndarray) -> float:
  """Mean squared difference of neighbours in uint8[N, h, w, 3], along rows and along columns: large in sharp images."""
  values = (image.astype(np.float64) for image in images)
  return float(np.mean([sum(np.square(np.diff(value, axis=axis)).mean() for axis in (0, 1)) for value in values]))


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
  """Squared Fréchet distance of the Gaussians with the means and covariances of two sets of features, float[N, D] each.

  |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), as FID has it (arXiv 1706.08500, equation 6).
  """
  (mean, covariance), (other_mean, other_covariance) = map(_gaussian, (features, others))
  root = scipy.linalg.sqrtm(covariance @ other_covariance)
  traces = np.trace(covariance) + np.trace(other_covariance) - 2 * np.trace(root.real)
  return float(np.square(mean - other_mean).sum() + max(traces, 0.0))


def _gaussian(features: np.ndarray) -> Sequence[np.ndarray]:
  values = features.astype(np.float64)
  return values.mean(axis=0), np.cov(values, rowvar=False)
