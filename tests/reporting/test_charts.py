"""Charts: what is drawn where, what is left out, and that their text is text."""

import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from janus_jax.errors import InputError
from janus_jax.reporting import charts
from janus_jax.reporting.charts import Axis, Boundary, Row, Series, interval_chart, line_chart, style_of, to_svg

STEPS, LOSS = Axis('steps'), Axis('nats per target', log=True)


def drawn(figure, axis='y') -> list[str]:
  """The labels of the ticks that lie inside of the axis."""
  (axes,) = figure.axes
  axis = getattr(axes, f'{axis}axis')
  low, high = axis.get_view_interval()
  return [label.get_text() for at, label in zip(axis.get_ticklocs(), axis.get_ticklabels()) if low <= at <= high]


def series(*points, number=0, **fields) -> Series:
  return Series(f's{number}', points, **fields)


def pixels(line) -> np.ndarray:
  return line.get_transform().transform(line.get_xydata())


@pytest.mark.parametrize('log', [False, True])
def test_a_curve_is_drawn_to_scale(log):
  points = ((0, 1.0), (10, 10.0), (20, 100.0), (40, None), (50, float('nan')), *([(15, 0.0)] if log else []))
  (line,) = line_chart('t', [series(*points)], STEPS, Axis('y', log)).axes[0].lines
  found = pixels(line)
  assert found.shape == (3, 2)
  np.testing.assert_allclose(found[2, 0] - found[1, 0], found[1, 0] - found[0, 0])
  # Larger is higher up: 1, 10, 100 are evenly spaced on a log axis and as 1 : 10 on a linear one.
  steps = np.diff(found[:, 1])
  assert steps[0] > 0
  np.testing.assert_allclose(steps[1] / steps[0], 1 if log else 10)


def test_a_band_lies_inside_of_the_chart():
  figure = line_chart('t', [series((0, 2.0), (9, 3.0), band=((0, 1.0, 4.0), (9, 2.5, 30.0)))], STEPS, LOSS)
  (band,) = figure.axes[0].collections
  low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
  assert (low, high) == (1.0, 30.0)
  bottom, top = figure.axes[0].get_ylim()
  assert bottom < low < high < top


def test_charts_without_a_value_other_than_zero_are_left_out():
  assert line_chart('t', [], STEPS, LOSS) is None
  assert line_chart('t', [series((1, None), (2, math.inf))], STEPS, STEPS) is None
  assert line_chart('t', [series((1, 0.0), (2, 0.0)), series((1, 0.0), number=1)], STEPS, STEPS) is None
  assert line_chart('t', [series((5, 3.0))], STEPS, LOSS) is not None
  assert interval_chart('t', [Row('a', 0.0, (0.0, 0.0), (0.0, 0.0))], STEPS) is None
  assert interval_chart('t', [Row('a', None, None, ())], STEPS) is None


@pytest.mark.parametrize(
  ('low', 'high'), [(3.0, 3.0), (0.98, 1.02), (1.1, 1.9), (2.2, 4.7), (6.0, 11.0), (0.4, 6.0), (0.09, 1.01), (2e-3, 50)]
)
def test_a_logarithmic_axis_has_two_labels_or_more(low, high):
  labels = drawn(line_chart('t', [series((1, low), (2, high))], STEPS, LOSS))
  assert 2 <= len(set(labels)) <= 9
  assert '' not in labels


@pytest.mark.parametrize(
  ('high', 'expected'),
  [
    (10, ['0', '2', '4', '6', '8', '10']),
    (0.5, ['0', '0.1', '0.2', '0.3', '0.4', '0.5']),
    (2490, ['0', '500', '1k', '1.5k', '2k', '2.5k']),
  ],
)
def test_ticks_are_round(high, expected):
  assert drawn(line_chart('t', [series((0, 1.0), (high, 2.0))], STEPS, LOSS), 'x') == expected


def test_text_is_text_and_no_formula():
  curve, ends = Series('_c', ((1, 2.0), (3, 0.25))), [Boundary('stage <1>', 3)]
  figure, other = (line_chart('<a> & $b$', [curve], Axis('a$_{9$'), LOSS, ends) for _ in range(2))
  svg = to_svg(figure)
  found = ('&lt;a&gt; &amp; $b$', '_c 0.25', 'a$_{9$', 'nats per target', 'stage &lt;1&gt;')
  assert [text for text in found if f'>{text}</text>' not in svg] == []
  assert '<script' not in svg
  assert svg == to_svg(figure) == to_svg(other)


def rows() -> list[Row]:
  return [
    Row('base', 10.0, (8.0, 12.0), (9.0, 10.0, 11.0), is_baseline=True),
    Row('gone', None, None, ()),
    Row('single', 12.5, None, (12.5,)),
  ]


def test_a_chart_of_intervals():
  figure = interval_chart('a metric', rows(), Axis('% right'))
  (axes,) = figure.axes
  svg = to_svg(figure)
  assert [text for text in ('a metric', '% right', 'base', 'gone', 'no value', '12.5') if f'>{text}<' not in svg] == []
  means = {line.get_marker(): line for line in axes.lines if line.get_marker() in charts.MARKS}
  assert {mark: tuple(map(float, *line.get_data()[:1])) for mark, line in means.items()} == {'o': (10.0,), '^': (12.5,)}
  assert pixels(means['o'])[0, 0] < pixels(means['^'])[0, 0]
  assert pixels(means['o'])[0, 1] > pixels(means['^'])[0, 1]  # The first row is at the top.
  (bar,) = [line for line in axes.lines if line.get_linestyle() == '-' and len(line.get_xdata()) == 2]
  assert list(bar.get_xdata()) == [8.0, 12.0]
  (baseline,) = [line for line in axes.lines if line.get_linestyle() == '--' and len(line.get_xdata()) == 2]
  assert list(baseline.get_xdata()) == [10.0, 10.0]
  assert [label.get_fontweight() for label in axes.get_yticklabels()] == ['bold', 'normal', 'normal']


@pytest.mark.parametrize(
  ('interval', 'ends'), [((0.0, 100.0), (0, 100)), ((1.0, 40.0), (0, 42)), ((90.0, 99.0), (89, 100))]
)
def test_an_axis_ends_where_its_quantity_does(interval, ends):
  row = Row('a', sum(interval) / 2, interval, interval)
  low, high = interval_chart('t', [row], Axis('% right', limits=(0, 100))).axes[0].get_xlim()
  assert ends[0] <= low < interval[0] + 1e-9
  assert interval[1] - 1e-9 < high <= ends[1]


def test_boundaries_are_dotted_lines_with_the_marks_of_those_that_end_there():
  curves = [series((1, 4.0), (10, 2.0)), series((1, 4.0), (10, 1.0), number=1)]
  ends = [
    Boundary('stage2', 10, (0, 1)),
    Boundary('stage1', 4, (0,)),
    Boundary('a stage of a rather long name', 8, (1,)),
  ]
  figure = line_chart('losses', curves, STEPS, LOSS, ends)
  lines = figure.axes[0].lines
  assert [line.get_xdata()[0] for line in lines if line.get_linestyle() == ':'] == [4, 8, 10]
  marks = [
    (line.get_xdata()[0], line.get_marker(), line.get_ydata()[0]) for line in lines if len(line.get_xdata()) == 1
  ]
  assert [(x, mark) for x, mark, _ in marks] == [(4, 'o'), (8, 's'), (10, 'o'), (10, 's')]
  assert marks[2][2] > marks[3][2]
  # A name that would run into another one is left out: the marks say enough.
  assert [text.get_text() for text in figure.axes[0].texts] == ['stage1', 'stage2']
  assert len({line.get_color() for line in lines[:2]}) == 2
  assert to_svg(figure).count('stroke-dasharray') > 3


def test_a_long_title_has_several_lines():
  title = 'understanding: loss on held-out data at the end of each stage, and whatever else there is to say of it'
  figure = line_chart(title, [series((1, 2.0), (2, 1.0))], STEPS, LOSS)
  assert figure.get_suptitle().split() == title.split()
  assert figure._suptitle.get_window_extent().x1 < figure.bbox.x1
  assert figure._suptitle.get_window_extent().y0 > figure.axes[0].bbox.y1


def test_a_png_has_the_colours_of_the_curves(tmp_path):
  path = tmp_path / 'chart.png'
  charts.save_chart(
    line_chart('t', [series((0, 1.0), (9, 2.0)), series((0, 2.0), (9, 1.0), number=1)], STEPS, LOSS), str(path)
  )
  found = {tuple(colour) for colour in np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3).tolist()}
  assert {(0, 0, 0), (0x00, 0x72, 0xB2), (255, 255, 255)} <= found


def test_styles_of_up_to_two_hundred_variants_differ():
  styles = [style_of(number) for number in range(200)]
  assert len({tuple(style.values()) for style in styles}) == 200
  # Without colour, thirty of them.
  assert len({(style['dashes'], style['marker']) for style in styles[:30]}) == 30


def test_where_matplotlib_is_missing_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  with pytest.raises(InputError, match=r'charts need matplotlib .*: pip install janus_jax\[report\]$'):
    line_chart('t', [series((1, 2.0))], STEPS, LOSS)


def test_importing_the_layer_needs_no_matplotlib():
  modules = 'charts, image_grid, intervals, page, statistics'
  code = f'import sys; sys.modules["matplotlib"] = None; from janus_jax.reporting import {modules}'
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize(
  ('value', 'text'), [(0.0025, '0.0025'), (12, '12'), (3210, '3.21k'), (1.5e6, '1.5M'), (-2e3, '-2k'), (0, '0')]
)
def test_numbers_are_short(value, text):
  assert charts.short(value) == text
