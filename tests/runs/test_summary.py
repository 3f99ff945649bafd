"""What the log says before the first step and after the last one."""

import json
import pathlib
import re
import shlex

import pytest

from janus_jax.data.packing import MeanSize
from janus_jax.models.config import PRESETS, ComputeConfig
from janus_jax.runs import summary
from janus_jax.runs.config import default_config, parse_config, replaced, set_stages
from janus_jax.training import run_config

ROOT = pathlib.Path(summary.__file__).parent.parent
MODELS = [PRESETS['test_tiny']] * 2
SHAPES = {'language_model/a': (1000, 2000), 'language_model/b': (500,), 'gen_head/kernel': (100, 1000)}


def config(trainable=(('gen_head',), ('gen_head', 'language_model'))):
  found = default_config()
  source = {'sources': {'text': {'a': 1}}, 'ratio': (0, 1, 0), 'batch_size': 4, 'learning_rate': 1e-3}
  set_stages(found, {f's{i}': {**source, 'steps': 10 + i, 'trainable': names} for i, names in enumerate(trainable)})
  found.run = tuple(found.stages)
  return parse_config(found)


def test_the_table_has_what_trains_in_each_stage_in_lines_of_100_characters():
  text = summary.start_summary(
    config(), ComputeConfig(), MODELS, SHAPES, {'data': 4, 'fsdp': 1, 'tensor': 2}, '/work/run'
  )
  assert max(map(len, text.splitlines())) <= 100
  rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
  assert rows['parameters'] == ['all', 's0', 's1']
  assert rows['language_model'] == ['2.0M', '-', '2.0M']
  assert rows['gen_head'] == ['100.0K', '100.0K', '100.0K']
  assert rows['all'] == ['2.1M', '100.0K', '2.1M']
  assert rows['steps'] == ['10', '11']
  assert all(part in text for part in ('8: data 4 x tensor 2', 'W&B', '/work/run'))


@pytest.mark.parametrize(
  ('tokens', 'length', 'is_said'),
  [((20, 40), 4096, True), ((20, 40), 256, False), ((900, 900), 4096, False), ((20, 900), 4096, False)],
)
def test_rows_that_examples_cannot_fill_are_said_where_shorter_ones_hold_them(tokens, length, is_said):
  said = summary.short_rows(config().run_stages, [MeanSize(count, 0, 0) for count in tokens], length)
  assert bool(said) == is_said
  assert not is_said or (said.startswith('s0: rows are at most 8% full') and '--config.sequence_length=320 ' in said)


def test_workers_are_those_of_the_recipe_or_one_for_each_core_up_to_eight(monkeypatch):
  automatic = replaced(config(), {'workers': -1})
  for cores, expected in ((2, 2), (64, 8)):
    monkeypatch.setattr(run_config, 'cpu_cores', lambda cores=cores: cores)
    assert automatic.num_workers == expected
    assert f', {expected} worker processes' in summary.start_summary(
      automatic, ComputeConfig(), MODELS, SHAPES, {}, 'run'
    )
  assert replaced(automatic, {'workers': 3}).num_workers == 3


@pytest.mark.parametrize(
  ('data', 'preset', 'rank', 'layout'),
  [('toy', 'toy', 0, 'deepseek'), ('files', 'janus_pro_1b', 0, 'huggingface'), ('toy', 'toy', 4, 'peft')],
)
def test_the_box_has_what_was_reached_and_commands_with_flags_that_exist(tmp_path, data, preset, rank, layout):
  lines = [{'step': 9, 'loss': 2.0}, {'step': 12, 'loss': 0.51234}, {'step': 12, 'held_out/text': 1.25}]
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  changes = {'data.name': data, **{f'stages.{name}.lora.rank': rank for name in config().run}}
  text = summary.end_summary(replaced(config(), changes), str(tmp_path), '/a place/run', PRESETS[preset])
  assert all(part in text for part in ('complete: 12 steps in /a place/run', 'loss 0.512', 'held_out/text 1.25'))
  commands = [shlex.split(line) for line in text.splitlines() if 'janus_jax.' in line]
  verbs = [command[2].removeprefix('janus_jax.') for command in commands]
  assert verbs == ['generate', *(['evaluate'] if data == 'toy' else []), 'convert']
  assert commands[-1][-1] == f'--format={layout}'
  for verb, command in zip(verbs, commands):
    source = (ROOT / f'{verb}.py').read_text()
    for flag in command[3:]:
      assert f"'{re.match('--([a-z_]+)=', flag)[1]}'" in source, flag
    assert any(flag.endswith('=/a place/run') for flag in command[3:])
