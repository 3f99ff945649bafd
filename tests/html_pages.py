"""Reads a page of HTML: whether its tags nest, what it shows, and what it would fetch or run."""

import collections
import html.parser

VOID = ('meta', 'img', 'br')
LINKS = ('src', 'href', 'srcset', 'data', 'action')


class Parser(html.parser.HTMLParser):
  """Every attribute that could fetch something or run it, the text, and the tags."""

  def __init__(self):
    super().__init__()
    self.open, self.links, self.events, self.text, self.tags = [], [], [], [], collections.Counter()

  def handle_starttag(self, tag, attrs):
    self.tags[tag] += 1
    self.links += [value for name, value in attrs if name in LINKS]
    self.events += [name for name, _ in attrs if name.startswith('on')]
    self.text += [value for name, value in attrs if name in ('alt', 'title')]
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def parse(page: str) -> Parser:
  parser = Parser()
  parser.feed(page)
  parser.close()
  assert parser.open == []
  return parser
