"""What `data_check` says of a config: whose tokens a ratio of examples is, and what is longer than a row."""

import json
import re

import numpy as np
import pytest
import tokenizers

pytest.importorskip('torch')
pytest.importorskip('transformers')

import small_checkpoint
from conversion.pretrained import save_parts

from janus_jax.runs import data_checking
from janus_jax.runs.config import TrainConfig, default_config, parse_config
from janus_jax.runs.data_checking import stage_fractions

LENGTH = 60


def config_of(tmp_path, entries: dict, sources: dict, ratio: tuple[int, int, int], **fields) -> TrainConfig:
  config = default_config()
  config.init_from = small_checkpoint.write(tmp_path / 'checkpoint')
  config.sequence_length = LENGTH
  config.data.update({'name': 'files', 'sources': entries})
  stage = {
    **{'steps': 1, 'batch_size': 4, 'learning_rate': 1e-3, 'trainable': ('gen_head',)},
    **{'ratio': ratio, 'sources': sources},
  }
  config.stages, config.run = {'only': stage}, ('only',)
  config.update(fields)
  return parse_config(config)


def text_source(tmp_path, name: str, texts: list) -> dict:
  """A JSON list with 'text' or 'talk' of each item."""
  field = 'text' if isinstance(texts[0], str) else 'talk'
  (tmp_path / f'{name}.json').write_text(json.dumps([{field: text} for text in texts]))
  entry = {'kind': 'text', 'format': 'json', 'path': str(tmp_path / f'{name}.json')}
  return entry if field == 'text' else entry | {'conversations': 'talk'}


def test_a_ratio_is_of_examples_and_not_of_tokens(tmp_path):
  """2 : 3 : 5 with documents that fill a row of 4096 is 9 : 72 : 19 of the tokens."""
  sources = {'understanding': {'a': 1}, 'text': {'b': 1}, 'generation': {'c': 3, 'd': 1, 'unused': 0}}
  (stage,) = config_of(tmp_path, {}, sources, (2, 3, 5)).run_stages
  lengths = {'understanding/a': 800.0, 'text/b': 4096.0, 'generation/c': 600.0, 'generation/d': 800.0}
  found = stage_fractions(stage, lengths)
  assert list(found) == list(lengths)
  examples, tokens = zip(*found.values())
  np.testing.assert_allclose(examples, [0.2, 0.3, 0.375, 0.125])
  # Per ten examples 1600, 12288, 3.75 * 600 and 1.25 * 800 tokens.
  np.testing.assert_allclose(tokens, np.array([1600, 12288, 2250, 1000]) / 17138)


def test_long_records_are_counted_by_what_becomes_of_them(tmp_path):
  """The toy tokenizer makes a token of each byte here: a text of n digits is n + 2 tokens."""
  entries = {
    'split': text_source(tmp_path, 'split', ['1' * 8, '1' * (2 * LENGTH)]),
    'skipped': text_source(tmp_path, 'skipped', ['1' * 8, '1' * LENGTH, '1' * LENGTH]) | {'long': 'skip'},
    'cut': text_source(tmp_path, 'cut', [['1', '2'] * 9, ['1', '2'], ['1' * LENGTH, '2']]),
  }
  config = config_of(tmp_path, entries, {'text': {'split': 2, 'skipped': 1, 'cut': 1}}, (0, 1, 0))
  (tmp_path / 'out').mkdir()
  report = data_checking.check(config, str(tmp_path / 'out'), 10)
  found = {source.name: source for source in report.sources}
  assert {name: source.long for name, source in found.items()} == {
    'split': {'split': 1},
    'skipped': {'skipped': 2},
    'cut': {'cut': 1, 'skipped': 1},
  }
  assert all(not source.skipped and not source.messages for source in found.values())
  # Pieces are examples: 10 tokens, and 122 as 60, 60 and 2.
  assert found['split'].tokens == (2, 33.0, 60)
  assert found['skipped'].tokens == (10, 10.0, 10)
  cut = found['cut'].tokens[1]
  tokens = 2 / 4 * 33 + 1 / 4 * 10 + 1 / 4 * cut
  (stage,) = report.stages
  assert stage.fractions['text/split'] == pytest.approx((0.5, 16.5 / tokens))
  assert stage.tokens == pytest.approx((0, tokens, 0))
  table = report.table()
  assert 'longer than a row: cut 1, skipped 1 of 3' in table
  assert f'    {"text/skipped":30} {"25.0%":>12} {2.5 / tokens:>12.1%}' in table
  assert f'understanding:text:generation: 0:{tokens:.0f}:0; expected_tokens is 800:1000:650' in table


@pytest.mark.parametrize('length', [LENGTH, 512])
def test_rows_that_are_mostly_padding_are_said_with_a_length_that_holds_the_examples(tmp_path, length):
  entries = {'a': text_source(tmp_path, 'a', ['1' * (2 + i % 5) for i in range(40)])}
  config = config_of(tmp_path, entries, {'text': {'a': 1}}, (0, 1, 0), sequence_length=length)
  (tmp_path / 'out').mkdir()
  last, said = data_checking.check(config, str(tmp_path / 'out'), 40).table().splitlines()[-1:-3:-1]
  assert last.startswith('examples as training sees them')
  suggested = re.fullmatch(r'rows are \d+% full: --config\.sequence_length=(\d+) holds 99 % of .*', said)
  assert bool(suggested) == (length == 512)
  assert not suggested or 8 <= int(suggested[1]) < 512 // 4


def test_bad_records_of_each_reason_are_named(tmp_path):
  """The rare reason too, behind many of another."""
  texts = ['1' * 8, *[''] * 9, '<image_placeholder>', 'x' * 9]
  entries = {'a': text_source(tmp_path, 'a', texts)}
  items = [{'text': text} for text in texts] + [{'id': '0012', 'words': 'x'}]
  (tmp_path / 'a.json').write_text(json.dumps(items))
  (tmp_path / 'out').mkdir()
  config = config_of(tmp_path, entries, {'text': {'a': 1}}, (0, 1, 0))
  (source,) = data_checking.check(config, str(tmp_path / 'out'), 100).sources
  assert source.skipped == {'text': 10, 'missing field': 1}
  assert len(source.messages) == 4
  assert source.messages[0] == f'{tmp_path}/a.json: item 1: text: empty: expected text'
  assert source.messages[-1] == f'{tmp_path}/a.json: item 12 (id 0012): text: missing: the item has id, words'


@pytest.mark.parametrize('template', ['', 'deepseek', 'deepseek_old'])
def test_a_run_from_parts_is_looked_at_with_the_roles_it_names(tmp_path, template):
  """Each a special token, or a word."""
  parts = save_parts(tmp_path)
  entries = {'talk': text_source(tmp_path, 'talk', [['1', '2', '3', '4']])}
  init_from = ','.join(f'{name}={path}' for name, path in parts.items())
  fields = {'init_from': init_from, 'template': template}
  config = config_of(tmp_path, entries, {'text': {'talk': 1}}, (0, 1, 0), **fields)
  (tmp_path / 'out').mkdir()
  report = data_checking.check(config, str(tmp_path / 'out'), 1)
  base = tokenizers.Tokenizer.from_file(f'{parts["language_model"]}/tokenizer.json')
  words = ('User', 'Assistant') if template == 'deepseek_old' else ('', '')
  turns = f'{words[0]}: 1\n\n{words[1]}:', ' 2', f'{words[0]}: 3\n\n{words[1]}:', ' 4'
  special = 1 + 2 + (0 if template == 'deepseek_old' else 4)  # Begin and ends of sentences, roles.
  assert report.sources[0].tokens[1] == special + sum(len(base.encode(turn).ids) for turn in turns)
