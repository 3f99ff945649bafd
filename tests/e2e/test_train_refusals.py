"""What a run refuses before it begins, and that nothing is left of it."""

import dataclasses
import functools
import json
import shutil
import sys

import jax
import numpy as np
import pytest
import tokenizers

pytest.importorskip('sklearn')

from e2e import forks
from e2e.small_run import ROOT, recipe
from ml_collections import ConfigDict

import janus_jax
from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.conversion.tokenizer_files import tokenizer_files_for
from janus_jax.errors import InputError
from janus_jax.runs import setup
from janus_jax.runs.config import parse_config
from janus_jax.runs.loading import load_tokenizer
from janus_jax.training import loop


class StartedError(Exception):
  """The run has got as far as its first step."""


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('stages.stage2.batch_size', 12, r'^stages\.stage2\.batch_size is 12: expected a multiple of 8 \(mesh axes data'),
    ('stages.stage2.accumulation', 3, r'^stages\.stage2\.batch_size is 8: expected a multiple of 24 .* accumulation 3'),
    ('stages.stage2.trainable', ('aligner',), r"^stages\.stage2\.trainable: 'aligner' matches no parameter"),
    ('shared_encoder', True, r'^stages\.stage1\.trainable has vision_aligner: expected neither with shared_encoder'),
    (
      'stages.stage2.carry_moments',
      True,
      r'^stages\.stage2\.carry_moments is True: expected the parameters that train in stage1, which runs before it; '
      r'\d+ train in one of the two alone, such as language_model/',
    ),
    ('stages.stage1.carry_moments', True, r'^stages\.stage1\.carry_moments is True: expected False, as no stage runs'),
    ('sequence_length', 36, r'^sequence_length is 36: expected at least 37, as an image to generate takes in stages\.'),
    (
      'sequence_length',
      513,
      r'^sequence_length is 513: expected at most 512, the positions of the model: --config.sequence_length=512$',
    ),
    ('optimizer.b2', float('nan'), r'^optimizer\.b2 is nan: expected a number from 0 to below 1$'),
    ('streams', 4, r'^streams is 4: expected a multiple of 8, the parts into which the mesh splits the rows'),
  ],
)
def test_a_wrong_config_leaves_no_workdir(start, data, tmp_path, field, value, message):
  config = recipe(start, data)
  config.stages.stage1.carry_moments = config.stages.stage2.carry_moments = False
  config.update_from_flattened_dict({field: value})
  with pytest.raises(InputError, match=message):
    setup.train(parse_config(config), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_tokens_beyond_the_table_are_refused_before_the_run(start, data, tmp_path):
  """They were embedded as NaN, and answered with garbage; a table with more rows than tokens is as it was."""
  model = open_checkpoint(start).config
  spec = functools.partial(setup.example_spec, recipe(start, data).sequence_length, holds_codes=True)
  tokenizer, template = load_tokenizer(start)
  rows = tokenizer.largest_id + 1
  for vocab_size in (rows, rows + 100):
    llama = dataclasses.replace(model.language_model, vocab_size=vocab_size)
    assert spec(dataclasses.replace(model, language_model=llama), tokenizer, template).tokenizer is tokenizer
  broken = tmp_path / 'start'
  shutil.copytree(start, broken)
  backend = tokenizers.Tokenizer.from_file(f'{start}/tokenizer.json')
  backend.add_tokens([f'word{i}' for i in range(model.language_model.vocab_size)])
  backend.save(str(broken / 'tokenizer.json'))
  message = r'tokenizer\.json: has a token with id 717: expected ids below .*384'
  with pytest.raises(InputError, match=message):
    setup.train(parse_config(recipe(str(broken), data)), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
  tokenizer, template = load_tokenizer(str(broken))
  janus = dataclasses.replace(janus_jax.load(start), tokenizer=tokenizer, template=template)
  with pytest.raises(InputError, match=message):
    janus_jax.answer(janus, [[]], ['What?'])
  with pytest.raises(InputError, match=message):
    tokenizer_files_for('orbax', open_checkpoint(str(broken)).tokenizer_files, model)


def test_a_policy_that_leaves_no_record_leaves_no_workdir(start, tmp_path, monkeypatch):
  """It shows with the data open, and the corrected config begins in the same place."""
  (tmp_path / 'books.jsonl').write_text('\n'.join(json.dumps({'text': 'a red square ' * 200}) for _ in range(4)))
  entry = {'kind': 'text', 'format': 'json_lines', 'path': str(tmp_path / 'books.jsonl')}
  config = recipe(start, '')
  config.data.name, config.data.precompute_codes, config.run = 'files', False, ('stage2',)
  config.data.sources = {'books': {**entry, 'long': 'skip'}}
  config.stages.stage2.ratio, config.stages.stage2.steps = (0, 1, 0), 1
  config.stages.stage2.sources = ConfigDict({'text': {'books': 1}})
  with pytest.raises(
    InputError,
    match=r'source text/books: none of its first \d+ records can be used\. The last: .*data\.sources\.books\.long',
  ):
    setup.train(parse_config(config), str(tmp_path / 'run'))
  # The index of the file is kept for the next start.
  assert {path.name for path in (tmp_path / 'run').iterdir()} <= {'data'}
  config.data.sources.books.long = 'split'

  def step(state, batch, *arguments, **options):
    assert (np.asarray(batch['tokens']) != 0).any()
    raise StartedError

  monkeypatch.setattr(loop, 'jit_train_step', lambda mode: step)  # It gets a batch; nothing new would be compiled.
  with pytest.raises(StartedError):
    setup.train(parse_config(config), str(tmp_path / 'run'))


def test_one_line_for_wrong_commands(tmp_path):
  workdir = f'--workdir={tmp_path / "w"}'
  tiny = [workdir, '--config=configs/tiny.py']
  wrong = [
    ([], 2, '--workdir'),
    ([workdir], 2, '--config is missing: expected --config=VALUE'),
    (tiny, 1, 'init_from is empty'),
    ([*tiny, '--config.sed=1'], 2, 'config.sed is unknown: did you mean config.seed?'),
    ([*tiny, '--config.optimizer.eps=0'], 1, 'error: optimizer.eps is 0.0: expected'),
    ([*tiny, '--config.init_from=nowhere'], 1, 'nowhere: no such directory'),
  ]
  for arguments, code, message in wrong:
    result = forks.run([sys.executable, '-m', 'janus_jax.train', *arguments], cwd=ROOT, timeout=120)
    assert result.returncode == code, result.stderr
    assert message in result.stderr, arguments
    assert 'Traceback' not in result.stderr, arguments
  assert not (tmp_path / 'w').exists()
  assert jax.device_count() == 8  # What the recipe above counts on.
