"""Images in a grid: where they stand, and how right and wrong ones are framed."""

import numpy as np
import pytest

from janus_jax.reporting.image_grid import BORDER, GAP, HEAD, LABEL, RIGHT, WRONG, JudgedImage, image_grid


def judged(value: int, right: bool, size: int = 16) -> JudgedImage:
  return JudgedImage(np.full((size, size, 3), value, np.uint8), right)


@pytest.mark.parametrize(('size', 'height', 'scale'), [(16, 64, 4), (24, 64, 3), (384, 64, 1)])
def test_images_are_enlarged_by_a_whole_number(size, height, scale):
  grid = image_grid([('a', [[judged(7, True, size), judged(9, False, size)]])], height=height)
  side = size * scale + 2 * BORDER
  assert grid.shape == (side + GAP, LABEL + 2 * (side + GAP), 3)
  assert (grid[BORDER : side - BORDER, LABEL + BORDER : LABEL + side - BORDER] == 7).all()
  left = LABEL + side + GAP
  assert (grid[BORDER : side - BORDER, left + BORDER : left + side - BORDER] == 9).all()


def test_groups_stand_in_columns_under_their_names():
  rows = [('a', [[judged(1, True)], [judged(2, True)]]), ('b\nc', [[judged(3, True), judged(4, True)], []])]
  grid, bare = image_grid(rows, ('one', 'two')), image_grid(rows)
  assert grid.shape == (bare.shape[0] + HEAD, *bare.shape[1:])
  columns = {value: np.argwhere((grid[HEAD:, LABEL:] == value).all(-1)).min(0)[1] for value in (1, 2, 3, 4)}
  assert columns[1] == columns[3] < columns[4] < columns[2]
  assert (grid[:HEAD, LABEL:] < 128).any()
  assert (grid[HEAD:, :LABEL] < 128).any()


def test_wrong_images_have_gaps_in_their_frames():
  grid = image_grid([('', [[judged(128, True), judged(128, False)]])])
  found = {colour: int((grid == colour).all(-1).sum()) for colour in (RIGHT, WRONG)}
  assert 0.4 < found[WRONG] / found[RIGHT] < 0.6
