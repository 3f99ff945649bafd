"""The writer of pages: everything is escaped and inside of the file, and a phone can show it."""

import base64
import html
import io
import re

import numpy as np
import pytest
from html_pages import parse
from PIL import Image

from janus_jax.reporting import page
from janus_jax.reporting.charts import Axis, Series, line_chart
from janus_jax.reporting.page import Html, element

EVIL = '<script>alert("1")</script><img src=x onerror=alert(1)>'


def test_all_text_is_escaped_wherever_it_enters():
  pixels = np.zeros((2, 2, 3), np.uint8)
  parts = [
    page.note(EVIL),
    page.table([EVIL], [[EVIL]]),
    page.folded(EVIL, EVIL),
    page.image_tag(pixels, EVIL),
    element('p', EVIL, title=EVIL),
  ]
  found = parse(page.page(EVIL, [(EVIL, parts)]))
  assert found.tags['script'] == 0
  assert found.tags['img'] == 1
  assert found.events == []
  assert found.text.count(EVIL) == 12


def test_what_is_made_of_pieces_is_no_piece():
  assert element('p', f'{element("b", "x")}') == '<p>&lt;b&gt;x&lt;/b&gt;</p>'
  assert element('p', element('b', 'x') + '<i>') == '<p>&lt;b&gt;x&lt;/b&gt;&lt;i&gt;</p>'
  assert element('p', title=Html('"><i>')) == '<p title="&quot;&gt;&lt;i&gt;"></p>'
  assert element('td', None, 3, class_='a"b', alt='', title=None) == '<td class="a&quot;b" alt="">None3</td>'


def test_a_page_forbids_scripts_and_requests():
  text = page.page('t', [('', [page.note('x')])])
  (policy,) = re.findall('<meta http-equiv="Content-Security-Policy" content="([^"]*)">', html.unescape(text))
  rules = dict(rule.split(maxsplit=1) for rule in policy.split('; '))
  assert rules == {'default-src': "'none'", 'img-src': 'data:', 'style-src': "'unsafe-inline'"}
  assert not re.search(r'https?:|url\(|@import', text)


def test_sections_without_content_are_left_out():
  found = parse(page.page('t', [('one', [page.table(('a',), []), page.grid([], 9), page.charts([None])]), ('two', [])]))
  assert (found.tags['h1'], found.tags['h2'], found.tags['table'], found.tags['div']) == (1, 0, 0, 0)


def test_cells_are_put_into_cells_once():
  text = page.table(('a', 'b'), [('x', element('td', 'y', class_='number')), (element('b', 'z'), 3)])
  assert '<tr><td>x</td><td class="number">y</td></tr><tr><td><b>z</b></td><td>3</td></tr>' in text
  assert text.startswith('<div class="scroll"><table>')


@pytest.mark.parametrize(('right', 'kind'), [(True, 'pixels right'), (False, 'pixels wrong'), (None, 'pixels')])
def test_images_are_inside_of_the_page(right, kind):
  pixels = np.random.default_rng(0).integers(256, size=(3, 4, 3)).astype(np.uint8)
  text = page.image_tag(pixels, 'alt', right)
  assert f'class="{kind}"' in text
  content = base64.b64decode(re.search('src="data:image/png;base64,([^"]*)"', text)[1])
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)


def test_charts_are_inside_of_the_page():
  chart = line_chart('a <title>', [Series('s', ((1, 2.0), (2, 1.0)))], Axis('x'), Axis('y'))
  text = page.charts([None, chart])
  (content,) = re.findall('src="data:image/svg.xml;base64,([^"]*)"', text)
  assert b'&lt;title&gt;' in base64.b64decode(content)
  assert 'alt="a &lt;title&gt;"' in text


NARROW = 400 - 2 * 16  # Between the margins of a phone's page.


def test_nothing_is_wider_than_a_phone():
  # Lengths that are the least of something, or its width: a number of pixels, unless all of the width is less.
  lengths = re.findall(r'(?<!max-)(?:min-)?width:\s*([^;}]*)|minmax\((.*?), 1fr\)', page.STYLE)
  for width, least in lengths:
    if least:
      assert least.startswith('min(100%,')
    elif width != '100%':
      assert float(width.removesuffix('px')) <= NARROW / 2, width
  assert re.search(r'\.scroll \{[^}]*overflow-x: auto', page.STYLE)
  assert re.search(r'pre \{[^}]*overflow-x: auto', page.STYLE)
  assert re.search(r'img \{[^}]*max-width: 100%', page.STYLE)
  assert re.search(r'body \{[^}]*overflow-wrap: anywhere', page.STYLE)
  assert 'width=device-width' in page.page('t', [])


def test_wrong_is_told_from_right_without_colour():
  assert re.search(r'img\.right \{[^}]*solid', page.STYLE)
  assert re.search(r'img\.wrong \{[^}]*dashed', page.STYLE)


def test_an_empty_piece_is_html():
  assert isinstance(page.table(('a',), []), Html)
