"""VLMEvalKit's model: rows as the harness hands them over, prompts of its adapter, answers of each question alone."""

import json
import pathlib
import sys
import types

import numpy as np
import pytest
from e2e import forks
from PIL import Image
from plugins.harnesses import base_model

from janus_jax.errors import InputError
from janus_jax.evaluation.prompt_styles import THINK, trained_prompt, vlmevalkit_prompt
from janus_jax.inference import answering
from janus_jax.plugins import vlmevalkit
from janus_jax.plugins.model import Conversation

pandas = pytest.importorskip('pandas')
ROOT = pathlib.Path(__file__).parents[2]
TYPES = {'POPE': 'Y/N', 'MME': 'Y/N', 'MMBench_DEV_EN': 'MCQ', 'GQA_TestDev_Balanced': 'VQA', 'MMVet': 'VQA'}


class Dataset:
  """What run.py hands over of a dataset: a method that writes the images of a row to files."""

  force_use_dataset_prompt = False

  def __init__(self, name, directory, questions):
    self.dataset_name, self.directory = name, directory
    self.data = pandas.DataFrame([{'index': number, **row} for number, row in enumerate(questions)])

  def dump_image(self, line):
    paths = [str(self.directory / f'{seed}.png') for seed in line['seeds']]
    for seed, path in zip(line['seeds'], paths):
      Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)).save(path)
    return paths

  def build_prompt(self, line):
    images = [{'type': 'image', 'value': path} for path in self.dump_image(line)]
    return [*images, {'type': 'text', 'value': f'{line["question"]} In a word.'}]


@pytest.fixture
def build(checkpoint):
  def build(prompt='trained'):
    options = {'checkpoint': checkpoint, 'dtype': 'float32', 'max_new_tokens': 10, 'prompt': prompt}
    return vlmevalkit.model_class(base_model())(dataset_type=TYPES.get, options=options)

  return build


def ask(model, dataset):
  """Row by row, as VLMEvalKit's inference.py does."""
  model.set_dump_image(dataset.dump_image)
  for number in range(len(dataset.data)):
    row, name = dataset.data.iloc[number], dataset.dataset_name
    custom = model.use_custom_prompt(name)
    message = model.build_prompt(row, dataset=name) if custom else dataset.build_prompt(row)
    yield model.generate(message=message, dataset=name)


QUESTIONS = [
  {'question': 'Is there a dog? Please answer yes or no.', 'seeds': [1]},
  {'question': 'Is there a very large cat beside it? Please answer yes or no.', 'seeds': [1]},
  {'question': 'Is it red?', 'seeds': [2]},
]


def expected(model, dataset, benchmark, prompt):
  """Each question alone."""
  rows = [dataset.data.iloc[number] for number in range(len(dataset.data))]
  images = [[Image.open(path) for path in dataset.dump_image(row)] for row in rows]
  prompts = [prompt(benchmark, row, len(row['seeds'])) for row in rows]
  asked = [Conversation([each.text], pictures, each.system) for each, pictures in zip(prompts, images)]
  return [model._model.answer([each])[0].strip() for each in asked]


@pytest.mark.parametrize(('prompt', 'style'), [('trained', trained_prompt), ('vlmevalkit', vlmevalkit_prompt)])
def test_answers_asked_for_one_by_one_are_made_together(build, tmp_path, recorded, prompt, style):
  model, dataset = build(prompt), Dataset('POPE', tmp_path, QUESTIONS)
  batches = recorded(answering, 'prefill')
  found = list(ask(model, dataset))
  assert sum(len(args[1].pixels) for args, _ in batches) == 2  # Of three questions about two images.
  assert found == expected(model, dataset, 'pope', style)
  assert len(set(found)) == 3


def test_a_run_that_goes_on_looks_ahead_from_where_it_is(build, tmp_path):
  model, dataset = build(), Dataset('GQA_TestDev_Balanced', tmp_path, QUESTIONS)
  model.set_dump_image(dataset.dump_image)
  second = model.generate(dataset.build_prompt(dataset.data.iloc[1]), 'GQA_TestDev_Balanced')
  assert [key[-1][1] for key in model._answers] == [f'{row["question"]} In a word.' for row in QUESTIONS[1:]]
  # A question that came before, and one of no dataset, are answered alone.
  first = model.generate(dataset.build_prompt(dataset.data.iloc[0]), 'GQA_TestDev_Balanced')
  assert len(model._answers) == 1
  assert model.generate(dataset.build_prompt(dataset.data.iloc[1])) == second != first


def test_a_process_answers_its_own_rows(build, tmp_path, monkeypatch):
  model, dataset = build(), Dataset('POPE', tmp_path, QUESTIONS)
  model.set_dump_image(dataset.dump_image)
  monkeypatch.setenv('RANK', '1')
  monkeypatch.setenv('WORLD_SIZE', '2')
  texts = [message[-1]['value'] for message in model._messages(dataset)]
  assert [text.split('\n')[1] for text in texts] == ['Is there a very large cat beside it?']


@pytest.mark.parametrize(
  ('name', 'benchmark', 'row'),
  [
    ('POPE', 'pope', {'question': 'Is it? Please answer yes or no.'}),
    ('MME', 'mme', {'question': 'Is it? Please answer yes or no.'}),
    ('MMBench_DEV_EN', 'mmbench', {'question': 'What?', 'hint': 'h', 'A': 'a', 'B': 'b', 'C': float('nan')}),
    ('MMVet', 'mmvet', {'question': 'Why?'}),
    ('GQA_TestDev_Balanced', None, {'question': 'Why?'}),
  ],
)
def test_prompts_are_those_of_its_adapter(build, tmp_path, name, benchmark, row):
  model, dataset = build('vlmevalkit'), Dataset(name, tmp_path, [{**row, 'seeds': [1, 2]}])
  model.set_dump_image(dataset.dump_image)
  line = dataset.data.iloc[0]
  assert model.use_custom_prompt(name) == (benchmark is not None)
  if benchmark is None:
    return
  message = model.build_prompt(line, name)
  assert [part['type'] for part in message] == ['image', 'image', 'text']
  asked = model._conversation([message], name)
  prompt = vlmevalkit_prompt(benchmark, line, 2)
  assert (asked.turns, asked.system) == ([prompt.text], prompt.system)
  assert asked.system == (THINK if name == 'MMVet' else '')
  assert len(asked.images) == 2


def test_turns_of_a_chat(build):
  model = build()
  turns = [('user', 'One?'), ('assistant', 'Yes, a large dog beside it.'), ('user', 'Two?')]
  chat = [{'role': role, 'content': [{'type': 'text', 'value': words}]} for role, words in turns]
  alone = model._model.answer([Conversation([words for _, words in turns], [])])
  assert model.chat_inner(chat) == alone[0].strip() != model.chat_inner(chat[2:])


def test_run_py_gets_the_model_and_what_follows_the_dashes(tmp_path):
  """A checkout that has nothing but what is asked of it."""
  (tmp_path / 'run.py').write_text(
    'import json, sys\n'
    'from vlmeval.config import supported_VLM\n'
    'given = supported_VLM["mine"].keywords\n'
    'print(json.dumps([sys.argv[1:], given["options"], given["dataset_type"]("POPE")]))\n'
  )
  for name, content in {
    '__init__': '',
    'vlm.__init__': '',
    'config': 'supported_VLM = {}\n',
    'dataset': 'DATASET_TYPE = {"POPE": "Y/N"}.get\n',
    'vlm.base': 'class BaseModel:\n  pass\n',
  }.items():
    path = tmp_path / 'vlmeval' / f'{name.replace(".", "/")}.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
  given = [f'--root={tmp_path}', '--checkpoint=nowhere', '--name=mine', '--weights=int8']
  command = [sys.executable, '-m', 'janus_jax.plugins.vlmevalkit', *given, '--', '--data', 'POPE', '--work-dir', 'out']
  found = forks.run(command, cwd=ROOT)
  assert found.returncode == 0, found.stderr
  arguments, options, kind = json.loads(found.stdout)
  assert arguments == ['--data', 'POPE', '--work-dir', 'out', '--model', 'mine']
  assert options | {'checkpoint': 'nowhere', 'prompt': 'trained', 'weights': 'int8', 'dtype': 'bfloat16'} == options
  assert kind == 'Y/N'


def test_what_a_checkout_lacks_is_one_line(tmp_path, monkeypatch):
  with pytest.raises(InputError, match='expected a checkout of VLMEvalKit'):
    vlmevalkit.register(str(tmp_path), 'name', {})
  (tmp_path / 'run.py').touch()
  (tmp_path / 'vlmeval').mkdir()
  for name in [name for name in sys.modules if name.split('.')[0] == 'vlmeval']:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, 'vlmeval', types.ModuleType('vlmeval'))
  monkeypatch.setattr(sys, 'path', list(sys.path))
  with pytest.raises(InputError, match=r'vlmeval.*: expected what its requirements.txt lists to be installed'):
    vlmevalkit.register(str(tmp_path), 'name', {})
