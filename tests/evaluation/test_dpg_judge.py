"""DPG-Bench's judge: questions and answers, of networks of random weights."""

import os

import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.evaluation import dpg_judge, judges
from janus_jax.evaluation.benchmarks import BENCHMARKS
from janus_jax.evaluation.rows import read_rows
from janus_jax.evaluation.scores import score_rows

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
import judge_networks  # noqa: E402  (it needs both)
from judge_networks import noise  # noqa: E402

QUESTIONS = [
  {'item_id': item, 'proposition_id': str(number), 'dependency': '0', 'tuple': 'entity - whole (cat)'}
  | {'question_natural_language': text}
  for item in ('a1', 'b2')
  for number, text in enumerate(('Is there a cat?', 'Is a cat red?', 'Is there a cat?'), 1)
]


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
  root = tmp_path_factory.mktemp('networks')
  return {
    kind: str(getattr(judge_networks, f'write_{kind}')(root / kind)) for kind in ('clip', 'vilt', 'blip', 'llava')
  }


def images_of(root, data=None):
  return judges.Images(str(root), data, allow_partial=False)


def test_each_question_is_asked_once_about_each_quarter(tmp_path):
  for item in ('a1', 'b2'):
    noise(0).save(tmp_path / f'{item}.png')
  rows = dpg_judge.list_dpg(images_of(tmp_path, QUESTIONS))
  assert len(rows) == 2 * 4 * 2
  assert [row['crop'] for row in rows[:8:2]] == [[0, 0, 32, 32], [32, 0, 64, 32], [0, 32, 32, 64], [32, 32, 64, 64]]
  with pytest.raises(InputError, match=r'expected --data=dpg_bench\.csv'):
    dpg_judge.list_dpg(images_of(tmp_path))
  (tmp_path / 'b2.png').unlink()
  with pytest.raises(InputError, match=r'prompt b2 \(1 of 2\) has no image'):
    dpg_judge.list_dpg(images_of(tmp_path, QUESTIONS))
  noise(0).resize((64, 32)).save(tmp_path / 'b2.png')
  with pytest.raises(InputError, match=r'b2\.png has 64 x 32 pixels: expected a square of four images'):
    dpg_judge.list_dpg(images_of(tmp_path, QUESTIONS))
  with pytest.raises(InputError, match="no question of the data is about 'b2'"):
    dpg_judge.list_dpg(images_of(tmp_path, QUESTIONS[:3]))


def test_other_networks_are_refused(networks, tmp_path):
  with pytest.raises(InputError, match='clip is a clip: expected a model for visual question answering'):
    dpg_judge.load_dpg_judge(networks['clip'])
  caption = judge_networks.write_blip(tmp_path / 'caption', transformers.BlipForConditionalGeneration)
  with pytest.raises(InputError, match=r'BlipForQuestionAnswering lacks \d+ parameters, such as text_encoder'):
    dpg_judge.load_dpg_judge(str(caption))


@pytest.mark.parametrize('text', ['yes', 'Yes.', ' YES\n', '"Yes"', '**yes**'])
def test_yes_is_yes(text):
  assert dpg_judge.normalized(text) == 'yes'


def test_a_chat_model_is_asked_by_its_template(networks, monkeypatch):
  asked = {}

  def generate(self, input_ids, **arguments):
    asked.update(arguments, ids=input_ids)
    return torch.cat([input_ids, torch.tensor([[8, 18, 3]])], dim=1)  # 'yes', a full stop, the end.

  monkeypatch.setattr(transformers.LlavaForConditionalGeneration, 'generate', generate)
  judge = dpg_judge.load_dpg_judge(networks['llava'])
  assert judge.names == 'LlavaForConditionalGeneration llava (bfloat16, cpu)'  # As the checkpoint is stored.
  noise(0).save(os.path.join(networks['llava'], 'x.png'))
  row = {'file': 'x.png', 'crop': [32, 0, 64, 32], 'question': 'is there a cat?'}
  assert judge.judge(networks['llava'], row) == {'answer': 'yes'}
  words = transformers.AutoTokenizer.from_pretrained(networks['llava']).decode(asked['ids'][0])
  assert words == 'USER : <image> <image> <image> <image> is there a cat ? <unk> yes or no . ASSISTANT :'
  assert asked['do_sample'] is False
  processor = transformers.AutoImageProcessor.from_pretrained(networks['llava'])
  expected = processor(noise(0).crop((32, 0, 64, 32)), return_tensors='pt')['pixel_values'].to(torch.bfloat16)
  torch.testing.assert_close(asked['pixel_values'], expected, rtol=0, atol=0)


@pytest.mark.parametrize('kind', ['vilt', 'blip', 'llava'])
def test_any_network_that_answers_questions_judges(kind, networks, tmp_path):
  for item in ('a1', 'b2'):
    noise(ord(item[0])).save(tmp_path / f'{item}.png')
  rows = BENCHMARKS['dpg'].judge(images_of(tmp_path, QUESTIONS), {'vqa': networks[kind]}, str(tmp_path / 'out'))
  assert rows == read_rows(str(tmp_path / 'out' / 'vqa_answers.jsonl'))
  words = {*judge_networks.WORDS, 'two', 'user', 'assistant', ':', '<unk>'}
  assert {word for row in rows for word in row['answer'].split()} <= words
  _, scores = score_rows('dpg', BENCHMARKS['dpg'].prepare(rows, QUESTIONS, False)[0], 'clean')
  yes = np.mean([row['answer'] == 'yes' for row in rows for _ in range(1 + (row['question'] == 'Is there a cat?'))])
  assert scores[0]['metrics']['DPG-Bench score'] == pytest.approx(100 * yes)


def test_the_likeliest_answer_is_said(networks):
  judge = dpg_judge.load_dpg_judge(networks['vilt'])
  network = transformers.ViltForQuestionAnswering.from_pretrained(networks['vilt'])
  processor = transformers.ViltProcessor.from_pretrained(networks['vilt'])
  noise(1).save(os.path.join(networks['vilt'], 'x.png'))
  row = {'file': 'x.png', 'crop': [32, 0, 64, 32], 'question': 'is a cat red?'}
  inputs = processor(images=noise(1).crop((32, 0, 64, 32)), text=row['question'], return_tensors='pt')
  expected = ('no', 'yes', 'two')[int(network(**inputs).logits[0].argmax())]
  assert judge.judge(networks['vilt'], row) == {'answer': expected}
