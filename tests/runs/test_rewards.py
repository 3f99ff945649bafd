"""Rewards: functions, programs that read and write JSON lines, the model's own opinion."""

import dataclasses
import math
import sys
import time

import jax
import numpy as np
import pytest
import reference
import small_checkpoint
from PIL import Image

import janus_jax
from janus_jax.data import prompts
from janus_jax.data.images import understanding_pixels
from janus_jax.errors import InputError
from janus_jax.runs.rewards import ANSWERS, QUESTION, CommandReward, load_function, open_reward
from janus_jax.training.preference_config import PreferenceConfig, RewardConfig
from janus_jax.training.samples import SampledAnswer, SampledImage
from janus_jax.training.step_config import StepConfig

torch = reference.torch

STEP = StepConfig(model=None)
PROGRAM = """
import json, sys
from PIL import Image
print('loading', file=sys.stderr)
for line in sys.stdin:
  asked = json.loads(line)
  image = Image.open(asked['image']).convert('RGB')
  print(json.dumps({'reward': image.getpixel((0, 0))[0] + asked['bonus']}), flush=True)
"""


def samples(count: int, size: int = 8) -> list[SampledImage]:
  """The first pixel's red says which it is."""
  found = []
  for number in range(count):
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[0, 0, 0] = number
    found.append(
      SampledImage({'prompt': f'image {number}', 'bonus': 1000 * number, 'case': object()}, [], None, pixels)
    )
  return found


def program(tmp_path, text: str, seconds: float = 60.0) -> CommandReward:
  path = tmp_path / 'program.py'
  path.write_text(text)
  return CommandReward('mine', f'{sys.executable} {path}', seconds)


def test_a_program_rates_every_image_by_its_line(tmp_path):
  reward = program(tmp_path, PROGRAM)
  expected = [1001 * number for number in range(200)]
  np.testing.assert_array_equal(reward(samples(200), None), expected)
  process = reward._process
  np.testing.assert_array_equal(reward(samples(3), None), expected[:3])
  assert reward._process is process  # It is not started again for each update.
  reward.close()
  assert process.poll() is not None


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('import sys\nsys.exit("no weights there")', r'ended after 0 of 3 rewards \(no weights there\)'),
    ('print(input() and "{\\"reward\\": 1}", flush=True)', 'ended after 1 of 3 rewards'),
    ('for _ in range(3): input(); print("good", flush=True)', 'wrote \'good.*expected {"reward": number}'),
    ('for _ in range(3): input(); print("{\\"reward\\": NaN}", flush=True)', 'a finite number for each'),
    ('for _ in range(3): input(); print("{\\"reward\\": null}", flush=True)', 'a finite number for each'),
  ],
)
def test_a_program_that_fails_is_named_with_what_it_said(text, message, tmp_path):
  with pytest.raises(InputError, match=f"reward 'mine'.*{message}"):
    program(tmp_path, text)(samples(3), None)


def test_a_program_that_takes_too_long_is_ended(tmp_path):
  reward, began = program(tmp_path, 'import time\ninput()\ntime.sleep(600)', seconds=1.0), time.monotonic()
  with pytest.raises(InputError, match='gave 0 of 3 rewards in 1 s'):
    reward(samples(3), None)
  assert reward._process is None
  assert time.monotonic() - began < 60


def test_functions_are_found_by_file_and_by_module(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('def red(records, images):\n  return [int(image[0, 0, 0]) for image in images]\nNUMBER = 1\n')
  reward = open_reward('red', RewardConfig(function=f'{path}:red'), None, STEP)
  np.testing.assert_array_equal(reward(samples(4), None), [0, 1, 2, 3])
  assert load_function('math:sqrt', 'root') is math.sqrt
  for wrong, message in (
    ('math:no_such', 'no attribute'),
    (f'{path}:NUMBER', 'is a int: expected a function'),
    ('mine.py', 'expected MODULE:FUNCTION or FILE.py:FUNCTION'),
    (f'{tmp_path}/other.py:red', 'No such file'),
  ):
    with pytest.raises(InputError, match=message):
      load_function(wrong, 'mine')


def test_other_processes_leave_functions_and_programs_to_the_first(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  (tmp_path / 'mine.py').write_text('def fail(records, images):\n  raise ValueError\n')
  for config in (RewardConfig(function=f'{tmp_path}/mine.py:fail'), RewardConfig(command='false')):
    np.testing.assert_array_equal(open_reward('mine', config, None, STEP)(samples(2), None), [0, 0])


@pytest.mark.parametrize('found', [[1.0], [1.0, float('inf')], 'no', None, [[1.0], [2.0]]])
def test_anything_but_a_number_for_each_image_is_refused(found):
  reward = open_reward('toy', RewardConfig(), lambda: lambda records, images: found, STEP)
  with pytest.raises(InputError, match=r"reward 'toy' gave .* for 2 samples: expected a finite number for each"):
    reward(samples(2), None)


def answered(*pairs: tuple[dict, str]) -> list[SampledAnswer]:
  return [SampledAnswer(record, [], [], text, None, 0) for record, text in pairs]


def test_answers_are_rewarded_by_their_records_by_functions_and_by_programs(tmp_path):
  sampled = answered(
    ({'prompt': 'How many?', 'answer': 'Two'}, ' two. '),
    ({'prompt': 'Who?', 'answer': ['the cat', 'A dog']}, 'a  dog'),
    ({'prompt': 'Where?', 'answer': 'left'}, 'left of it'),
    ({'prompt': 'How much?', 'answer': 7}, '7'),
  )
  own = dataclasses.replace(STEP, preference=PreferenceConfig(samples='answers'))
  np.testing.assert_array_equal(open_reward('answer', RewardConfig(), None, own)(sampled, None), [1, 1, 0, 1])
  path = tmp_path / 'mine.py'
  path.write_text(
    'def length(records, answers):\n  return [len(a) + len(r["prompt"]) for r, a in zip(records, answers)]\n'
  )
  reward = open_reward('length', RewardConfig(function=f'{path}:length'), None, own)
  np.testing.assert_array_equal(reward(sampled, None), [15, 10, 16, 10])
  text = 'import json, sys\nfor line in sys.stdin:\n  asked = json.loads(line)\n'
  text += '  print(json.dumps({"reward": len(asked["response"]) + len(asked["prompt"])}), flush=True)\n'
  reward = program(tmp_path, text)
  np.testing.assert_array_equal(reward(sampled, None), [15, 10, 16, 10])
  reward.close()
  for name in ('toy', 'yes'):
    with pytest.raises(InputError, match='expected one, or one called answer'):
      open_reward(name, RewardConfig(), None, own)


@pytest.fixture(scope='module')
def janus(tmp_path_factory):
  return janus_jax.load(small_checkpoint.write(tmp_path_factory.mktemp('checkpoint')))


def test_the_models_own_opinion_is_what_it_would_answer(janus):
  """Against transformers' model, which reads each answer after the question."""
  reward = open_reward('yes', RewardConfig(), None, StepConfig(janus.config, loss_chunk=10**6))
  rng, size = np.random.default_rng(1), janus.config.vq.image_size
  asked = [
    SampledImage({'prompt': prompt}, [], None, rng.integers(0, 256, (size, size, 3), np.uint8))
    for prompt in ('a cat', 'two dogs')
  ]
  found = reward(asked, janus)
  model = reference.huggingface_model(small_checkpoint.CONFIG)
  tokenizer, template = janus.tokenizer_and_template()
  for sample, ours in zip(asked, found):
    pixels = understanding_pixels(Image.fromarray(sample.pixels), janus.config.image_size)
    image = torch.from_numpy(pixels / 127.5 - 1).float().permute(2, 0, 1)[None]
    scores = []
    for answer in ANSWERS:
      question = QUESTION.format(prompt=sample.record['prompt'])
      ids = prompts.understanding_ids(
        tokenizer, template, [question], num_images=1, num_image_tokens=janus.config.num_image_tokens, max_length=999
      )
      reply = tokenizer.encode(f' {answer}', add_bos=False) + [tokenizer.special.eos]
      with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids + reply]), pixel_values=image).logits[0].log_softmax(-1)
      scores.append(sum(logits[len(ids) - 1 + i, token].item() for i, token in enumerate(reply)))
    assert ours == pytest.approx(np.exp(scores[0]) / np.exp(scores).sum(), abs=1e-5)
    assert 0 < ours < 1
