"""What aspect buckets keep of images and squares cut away: arithmetic, without a model.

    python tests/benchmarks/aspects.py [--side=24 --objects=100000]

For images of common aspects: their bucket, the percentage of pixels that is kept, and the percentage of objects that
the crop cuts off, in part or whole. Objects are as large as those of the toy world beside the short side of the image,
of all its sizes equally often, and lie anywhere within the image.
"""

import argparse

import numpy as np

from janus_jax.data.aspects import aspect_buckets, nearest_bucket
from janus_jax.toy.shapes import World

ASPECTS = ((1, 1), (5, 4), (4, 3), (3, 2), (16, 10), (16, 9), (2, 1), (3, 1), (2, 3), (3, 4))


def kept_sides(width: float, height: float, rows: int, columns: int) -> tuple[float, float]:
  """Width and height of the largest box with so many rows and columns in an image."""
  return min(width, height * columns / rows), min(height, width * rows / columns)


def cut_off(
  sides: tuple[float, float], kept: tuple[float, float], radii: np.ndarray, rng: np.random.Generator
) -> float:
  """The fraction of objects of these radii that do not lie wholly within the middle of an image."""
  inside = np.ones(len(radii), bool)
  for side, part in zip(sides, kept):
    centres = rng.uniform(radii, side - radii)
    inside &= np.abs(centres - side / 2) + radii <= part / 2 + 1e-9
  return 1 - inside.mean()


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--side', type=int, default=24, help='codes along a side of the square')
  parser.add_argument('--objects', type=int, default=100_000)
  arguments = parser.parse_args()
  side, rng, world = arguments.side, np.random.default_rng(0), World()
  sizes = np.array([world.radius(size) / world.size for size in world.sizes])
  radii = sizes[rng.integers(len(sizes), size=arguments.objects)]
  print('| aspect | rows x columns | codes | pixels kept: square, bucket | objects cut off: square, bucket |')
  print('|---|---|---|---|---|')
  for across, down in ASPECTS:
    width, height = across / min(across, down), down / min(across, down)
    grids = (side, side), nearest_bucket(across, down, aspect_buckets(side))
    boxes = [kept_sides(width, height, *grid) for grid in grids]
    pixels = ', '.join(f'{box[0] * box[1] / (width * height):.1%}' for box in boxes)
    objects = ', '.join(f'{cut_off((width, height), box, radii, rng):.1%}' for box in boxes)
    rows, columns = grids[1]
    print(f'| {across}:{down} | {rows} x {columns} | {rows * columns} | {pixels} | {objects} |')


if __name__ == '__main__':
  main()
