"""Flags with odd values and config files that fail: refused by one line that names them. No files are written."""

import contextlib
import importlib
import pathlib
import sys
from collections.abc import Iterator

import pytest
from absl import flags
from recipes import ROOT

from janus_jax import cli
from janus_jax.errors import InputError

# Numeric flags of each command, and what it cannot be called without.
COMMANDS = {
  'benchmark': ['--config=configs/tiny.py', '--mode=train'],
  'convert': ['--output=x', '--format=orbax'],
  'data_check': ['--config=configs/tiny.py', '--out=x'],
  'evaluate': ['--checkpoint=x'],
  'generate': ['--checkpoint=x', '--out=x'],
  'tokenize': ['--input=x', '--checkpoint=x', '--output=x'],
  'train': ['--config=configs/tiny.py', '--workdir=x'],
  'understand': ['--checkpoint=x', '--question=x'],
}
ODD_TEXTS = ('0', '-1', '1.5', 'nan', 'inf', '-inf', '1e40', '1' + '0' * 30, 'abc', '', 'True', '0x10', '1,2')
LEGAL_TEXTS = {
  '0': {'cfg_weight', 'temperature', 'top_k', 'seed', 'step_seconds', 'max_bad_fraction', 'process_id'},
  '1.5': {'cfg_weight', 'temperature', 'seconds', 'step_seconds'},
  '0x10': {'INTEGERS'},
}


@contextlib.contextmanager
def defined(verb: str) -> Iterator[set[str]]:
  """The flags of a command, by name; they can be defined only once in a process, so they go afterwards."""
  # Other tests may have imported commands.
  others = {name: flags.FLAGS[name] for name in flags.FLAGS if _is_ours(name)}
  for name in others:
    delattr(flags.FLAGS, name)
  before = set(flags.FLAGS)
  sys.modules.pop(f'janus_jax.{verb}', None)
  cli.CHECKS.clear()
  importlib.import_module(f'janus_jax.{verb}')
  try:
    yield set(flags.FLAGS) - before
  finally:
    for name in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, name)
    for name, flag in others.items():
      flags.FLAGS[name] = flag
    cli.CHECKS.clear()
    sys.modules.pop(f'janus_jax.{verb}')


def _is_ours(name: str) -> bool:
  """Flags that were put back belong to no module."""
  return flags.FLAGS.find_module_defining_flag(name, default='janus_jax').startswith('janus_jax')


def parse(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
  monkeypatch.setattr(sys, 'argv', ['command', *arguments])  # Where ml_collections looks.
  cli.parse(sys.argv)
  cli.check_flags()


@pytest.mark.parametrize('verb', COMMANDS)
def test_odd_numbers_of_flags_are_refused_by_name(verb, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  wrong = []
  with defined(verb) as names:
    numbers = {name for name in names if flags.FLAGS[name].parser.flag_type() in ('int', 'float')}
    assert numbers == set(cli.CHECKS), 'a flag for a number without a check'
    for name in sorted(numbers):
      for odd in ODD_TEXTS:
        text = ''
        try:
          parse(monkeypatch, *COMMANDS[verb], f'--{name}={odd}')
        except InputError as error:
          text = str(error)
        except SystemExit as error:
          text = capsys.readouterr().err.strip() if error.code == 2 else 'another exit code'
        flags.FLAGS[name].unparse()
        integers = {'INTEGERS'} if flags.FLAGS[name].parser.flag_type() == 'int' else set()
        legal = bool(LEGAL_TEXTS.get(odd, set()) & {name, *integers})
        if legal == bool(text) or '\n' in text or (text and name not in text):
          wrong.append(f'--{name}={odd}: {text or "accepted"}')
  assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('verb', [*COMMANDS, 'ablate', 'plan', 'pretrain', 'report'])
def test_flags_for_paths_know_the_home_directory(verb, monkeypatch):
  monkeypatch.setenv('HOME', '/home/somebody')
  texts = {'prompt', 'question', 'mesh', 'batch', 'stage', 'shard', 'name', 'title', 'topology', 'coordinator_address'}
  texts |= {'path', 'beside', 'seconds', 'push', 'aspect'}  # NAME=VALUE, several; ORGANISATION/NAME; WIDTH:HEIGHT.
  with defined(verb) as names:
    for name in names - texts - {'config'} - set(cli.CHECKS):
      flag = flags.FLAGS[name]
      if flag.parser.flag_type() != 'string' or getattr(flag.parser, 'enum_values', None):
        continue
      flag.parse('~/a b')
      assert flag.value in ('/home/somebody/a b', ['/home/somebody/a b']), name


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], '--config is missing: expected --config=VALUE (Recipe, a file of configs/.); --workdir is missing: expected '),
    (['--config=configs/tiny.py', '--workdir='], 'flag --workdir=: expected a path'),
    (['TINY', '--config.sed=1'], 'config.sed is unknown: did you mean config.seed?'),
    (['TINY', '--config.stages.stage2.steps=abc'], "--config.stages.stage2.steps is 'abc': expected an integer"),
    (['TINY', '--config.stages.stage2.steps=1.5'], "--config.stages.stage2.steps is '1.5': expected an integer"),
    (['TINY', '--config.optimizer.b1=x'], "--config.optimizer.b1 is 'x': expected a number"),
    (['TINY', '--config.shared_encoder=maybe'], "--config.shared_encoder is 'maybe': expected true or false"),
    (['TINY', '--config.seed.x=3'], 'config.seed.x is unknown: seed is a value without fields'),
    (['TINY', '--config.optimizer.beta=1'], 'config.optimizer.beta is unknown: optimizer here: b1, b2, '),
    (
      ['--config=configs/data/text.py', '--workdir=x', '--config.stages.stage2.steps=3'],
      'config.stages.stage2.steps is unknown: stages here: finetune; did you mean config.stages.finetune.steps?',
    ),
    (
      ['TINY', '--config.stages.WRONG.steps=3'],
      'config.stages.WRONG.steps is unknown: stages here: stage1, stage2, stage3; did you mean config.stages.stage',
    ),
    (['TINY', '--config.stages.stage2.stepz=3'], 'config.stages.stage2.stepz is unknown: stages.stage2 here: '),
    (
      ['--config=configs/data/text.py', '--workdir=x', '--config.steps=3'],
      'config.steps is unknown: did you mean config.stages.finetune.steps?',
    ),
    (['TINY', 'x'], "unexpected argument 'x': every argument is a --flag"),
    (['TINY', '--wrokdir=x'], "Unknown command line flag 'wrokdir'"),
  ],
)
def test_wrong_usage_is_one_line_for_people(arguments, message, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  tiny = ['--config=configs/tiny.py', '--workdir=x']
  with defined('train'), pytest.raises(SystemExit) as stopped:
    parse(monkeypatch, *[part for argument in arguments for part in (tiny if argument == 'TINY' else [argument])])
  said = capsys.readouterr().err
  assert (stopped.value.code, said.count('\n')) == (2, 1)
  assert said.startswith(message)


@pytest.mark.parametrize(
  ('content', 'argument', 'message'),
  [
    (None, '', 'FILE: no such file: expected a config file, such as configs/tiny.py'),
    ('def get_config(', '', "FILE, line 1: SyntaxError: '(' was never closed"),
    ('import os\nimport nothing_like_this\n', '', "FILE, line 2: ModuleNotFoundError: No module named 'nothing_like_"),
    ('def get_config():\n  return 1 / 0\n', '', 'FILE, line 2: ZeroDivisionError: division by zero'),
    ('def get_config():\n  pass\n', '', 'FILE: get_config returns NoneType: expected a ConfigDict'),
    ('x = 1\n', '', 'FILE: no function get_config: expected one that returns a config'),
    ('def get_config():\n  pass\n', ':root', "FILE: get_config cannot take the argument 'root' ("),
    ('def get_config(root):\n  pass\n', '', 'FILE: get_config cannot take no argument ('),
    (
      'from janus_jax.runs.config import default_config\n'
      'def get_config():\n  c = default_config()\n  c.seed = "x"\n  return c\n',
      '',
      'FILE, line 4: TypeError: ',
    ),
    (
      'from janus_jax.runs.config import default_config\n'
      'def get_config():\n  c = default_config()\n  c.stages.stage1.stpes = 3\n  return c\n',
      '',
      'FILE, line 4: AttributeError: "\'stage1\'", in c.stages.stage1.stpes = 3',
    ),
    (
      'from janus_jax.errors import InputError\ndef get_config():\n  raise InputError("no such world")\n',
      '',
      'FILE: no such world',
    ),
  ],
)
def test_a_config_file_that_fails_is_named_with_its_line(tmp_path, content, argument, message, monkeypatch, capsys):
  file = tmp_path / 'mine.py'
  if content is not None:
    file.write_text(content)
  with defined('train'), pytest.raises(SystemExit) as stopped:
    parse(monkeypatch, '--workdir=x', f'--config={file}{argument}')
  said = capsys.readouterr().err
  assert (stopped.value.code, said.count('\n')) == (1, 1)
  assert said.startswith(f'error: {message}'.replace('FILE', str(file)))


def test_a_config_file_in_the_home_directory(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  content = pathlib.Path(ROOT / 'configs' / 'data' / 'text.py').read_text()
  (tmp_path / 'mine.py').write_text(content)
  with defined('train'):
    parse(monkeypatch, '--workdir=~/run', '--config=~/mine.py', '--config.seed=3')
    assert flags.FLAGS.config.seed == 3
    assert flags.FLAGS.workdir == f'{tmp_path}/run'
