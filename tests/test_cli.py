"""Behaviour of all commands: Ctrl-C, numbers in recipes, flags in --help."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
INTERRUPTED = """
import gc, signal, sys, time
from janus_jax import cli

def main():
  {how}
  time.sleep(60)

cli.run(main)
"""
SEND = 'signal.raise_signal(signal.SIGINT)'
# jax has such a callback: what is raised in one is printed and forgotten.
IN_A_CALLBACK = f'gc.callbacks.append(lambda *_: gc.callbacks.clear() or {SEND}); gc.collect()'


@pytest.mark.parametrize('how', [SEND, IN_A_CALLBACK])
def test_ctrl_c_ends_with_one_line(how):
  command = [sys.executable, '-c', INTERRUPTED.format(how=how)]
  result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=50)
  assert (result.returncode, result.stderr) == (130, 'interrupted\n')


LOADING = f"""
import sys, types
sys.modules['__main__'].__spec__ = types.SimpleNamespace(name='janus_jax.train')
from janus_jax import cli
import signal
try:
  {SEND}
except BaseException:
  print('lost')
"""


def test_ctrl_c_ends_a_command_whose_modules_still_load():
  """What is raised in a module that others import may be lost there, too."""
  result = subprocess.run([sys.executable, '-c', LOADING], capture_output=True, text=True, cwd=ROOT, timeout=50)
  assert (result.returncode, result.stdout, result.stderr) == (130, '', 'interrupted\n')


WHOLE = """
from janus_jax.runs.config import default_config, set_stages

def get_config():
  config = default_config()
  config.optimizer.max_grad_norm = 1
  common = {'learning_rate': 1, 'steps': 3, 'batch_size': 1, 'ratio': (0, 1, 0), 'sources': {'text': {'captions': 1}}}
  set_stages(config, {'stage': {**common, 'trainable': ('gen_head',), 'weight_decay': 0}})
  config.run = ('stage',)
  return config
"""
SHOW = """
from janus_jax import cli

config = cli.define_config()
cli.run(lambda: print([config.value.stages.stage[name] for name in ('weight_decay', 'learning_rate', 'steps')]))
"""


def test_whole_numbers_of_a_recipe_may_become_fractions_on_the_command_line(tmp_path):
  """ml_collections keeps to the type that a field has."""
  (tmp_path / 'recipe.py').write_text(WHOLE)
  flags = [f'--config={tmp_path}/recipe.py', '--config.stages.stage.weight_decay=0.1']
  result = subprocess.run([sys.executable, '-c', SHOW, *flags], capture_output=True, text=True, cwd=ROOT, timeout=50)
  assert (result.returncode, result.stdout) == (0, '[0.1, 1.0, 3]\n'), result.stderr


def test_help_lists_the_fields_of_a_recipe_wherever_it_is_named(tmp_path):
  (tmp_path / 'recipe.py').write_text(WHOLE)
  command, recipe = [sys.executable, '-c', SHOW], f'--config={tmp_path}/recipe.py'
  options = {'capture_output': True, 'text': True, 'cwd': ROOT, 'timeout': 50}
  before, after, without = (
    subprocess.run([*command, *flags], **options) for flags in ([recipe, '--help'], ['--help', recipe], ['--help'])
  )
  assert [result.returncode for result in (before, after, without)] == [0, 0, 0], before.stderr
  assert before.stdout == after.stdout
  lines = before.stdout.splitlines()
  for field in ('optimizer.max_grad_norm=1.0', 'stages.stage.steps=3', "run=('stage',)"):
    assert f'  --config.{field}' in lines
  assert '--config=FILE --help lists the fields' in without.stdout


HELP = """
from janus_jax import cli
from janus_jax.inference.requests import ImageSettings

cli.define_model()
cli.define_settings(ImageSettings, 'seed', 'weights')
cli.define_settings(ImageSettings, 'temperature', stored={'temperature': 0.8})
cli.run(lambda: None)
"""


def test_help_lists_flags_of_settings_with_their_defaults_and_descriptions():
  result = subprocess.run([sys.executable, '-c', HELP, '--help'], capture_output=True, text=True, cwd=ROOT, timeout=50)
  assert result.returncode == 0, result.stderr
  listed = ' '.join(result.stdout.split())
  assert '--checkpoint: ' in listed
  assert '--seed: The same seed gives the same results' in listed
  assert '--weights: <full|int8|int8_products>: What kernels are stored in;' in listed
  assert "(default: 'full')" in listed
  assert (
    '--temperature: Divides the logits; 0 takes the most likely token. Default: as a workdir says, else 0.8.' in listed
  )
