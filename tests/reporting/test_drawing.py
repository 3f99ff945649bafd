"""Drawings come out alike as SVG and as pixels."""

import itertools
import math
import re

import numpy as np
import pytest

from janus_jax.ablation.plots import Curve, Row, interval_chart, loss_chart
from janus_jax.reporting.drawing import (
  MARKS,
  SCALE,
  Drawing,
  Line,
  Mark,
  Text,
  dashed,
  outline,
  style_of,
  to_pixels,
  to_svg,
)
from janus_jax.reporting.statistics import Estimate


def test_dashes_are_as_long_as_they_should_be():
  pieces = list(dashed([(0, 0), (9, 0), (9, 10)], (4, 2)))
  assert pieces == [[(0, 0), (4, 0)], [(6, 0), (9, 0), (9, 1)], [(9, 3), (9, 7)], [(9, 9), (9, 10)]]
  assert sum(math.dist(a, b) for piece in pieces for a, b in itertools.pairwise(piece)) == 13


@pytest.mark.parametrize('shape', MARKS)
def test_marks_lie_around_their_points(shape):
  corners = np.array(outline(Mark((5, 7), shape, '#000000', 2)))
  np.testing.assert_allclose((corners.min(0) + corners.max(0)) / 2, (5, 7), atol=0.3)
  assert 1.9 < corners[:, 0].max() - 5 < 3


def test_pixels_show_what_is_drawn():
  drawing = Drawing(40, 20, (Line(((2, 10), (38, 10)), '#0072b2', 2), Mark((20, 10), 'square', '#d55e00', 3)))
  pixels = to_pixels(drawing)
  assert pixels.shape == (20 * SCALE, 40 * SCALE, 3)
  assert tuple(pixels[10 * SCALE, 5 * SCALE]) == (0x00, 0x72, 0xB2)
  assert tuple(pixels[10 * SCALE, 20 * SCALE]) == (0xD5, 0x5E, 0x00)
  assert tuple(pixels[2, 2]) == (255, 255, 255)


def test_svg_escapes_text():
  assert '&lt;a&gt; &amp; b' in to_svg(Drawing(9, 9, (Text((1, 2), '<a> & b', bold=True),)))


def rows() -> list[Row]:
  return [
    Row('base', Estimate(10.0, 2.0, 3), (9.0, 10.0, 11.0), style_of(0)),
    Row('gone', None, (), style_of(1)),
    Row('single', Estimate(12.0, None, 1), (12.0,), style_of(2)),
  ]


def test_a_chart_of_intervals():
  drawing = interval_chart('a metric', rows(), 'base')
  texts = [thing.text for thing in drawing.things if isinstance(thing, Text)]
  assert {'a metric', 'base', 'gone', 'no value', '12'} <= set(texts)
  marks = [thing for thing in drawing.things if isinstance(thing, Mark)]
  assert [mark.shape for mark in marks] == ['circle', 'triangle']
  assert marks[0].at[0] < marks[1].at[0]
  bar = next(thing for thing in drawing.things if isinstance(thing, Line) and thing.width == 2)
  assert bar.points[0][0] < marks[0].at[0] < bar.points[1][0]


def test_a_chart_of_losses_marks_where_each_variant_ends_its_stages():
  one = Curve('one', ((1, 4.0), (10, 2.0)), (('stage1', 4), ('stage2', 10)), style_of(0))
  two = Curve('two', ((1, 4.0), (10, 1.0), (11, math.nan)), (('stage1', 8), ('stage2', 10)), style_of(1))
  drawing = loss_chart('losses', [one, two])
  dotted = [thing for thing in drawing.things if isinstance(thing, Line) and thing.dash == (1, 3)]
  assert len(dotted) == 3  # Stage II ends for both at once.
  curves = [thing for thing in drawing.things if isinstance(thing, Line) and thing.width == 1.6]
  assert {curve.dash for curve in curves} == {style_of(0).dash, style_of(1).dash}
  # Higher losses lie higher, on a logarithmic axis.
  points = next(thing for thing in curves if thing.dash == style_of(1).dash).points
  assert points[0][1] < points[1][1]
  assert re.search('polyline', to_svg(drawing))
  assert loss_chart('nothing', [Curve('one', (), (), style_of(0))]) is None
