import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from janus_jax.data import prompts
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import InputError

BOS, EOS, PAD = '<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>', '<｜▁pad▁｜>'  # noqa: RUF001
SYSTEM = (
  'You are a helpful language and vision assistant. You are able to understand the visual content that the user '
  'provides, and assist the user with a variety of tasks using natural language.'
)
PRO = prompts.TEMPLATES['deepseek']
NUM_IMAGE_TOKENS = 4


def _write_tokenizer(path, roles=('<|User|>', '<|Assistant|>')):
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
  )
  backend.train_from_iterator([SYSTEM, 'Describe the picture of a cat.'], trainer)
  backend.add_special_tokens([BOS, EOS, PAD, '<begin_of_image>', '<end_of_image>', '<image_placeholder>', *roles])
  bos = (BOS, backend.token_to_id(BOS))
  backend.post_processor = processors.TemplateProcessing(single=f'{BOS} $A', special_tokens=[bos])
  backend.save(str(path))


@pytest.fixture
def tokenizer(tmp_path):
  _write_tokenizer(tmp_path / 'tokenizer.json')
  return Tokenizer.from_directory(tmp_path)


@pytest.fixture
def processor(tokenizer):
  """`transformers`' processor over the same file."""
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  reference = transformers.PreTrainedTokenizerFast(
    tokenizer_file=tokenizer.path,
    bos_token=BOS,
    eos_token=EOS,
    pad_token=PAD,
    padding_side='left',
    extra_special_tokens={
      'image_token': '<image_placeholder>',
      'boi_token': '<begin_of_image>',
      'eoi_token': '<end_of_image>',
    },
  )
  image_processor = transformers.JanusImageProcessorPil(size={'height': 32, 'width': 32})
  return transformers.JanusProcessor(
    image_processor, reference, use_default_system_prompt=True, num_image_tokens=NUM_IMAGE_TOKENS
  )


def _understanding_ids(tokenizer, turns, num_images, **options):
  options = {'num_image_tokens': NUM_IMAGE_TOKENS, 'max_length': 10**6, **options}
  return prompts.understanding_ids(tokenizer, PRO, turns, num_images=num_images, **options)


# Literal strings: what DeepSeek's conversation.py renders for the same turns.
@pytest.mark.parametrize(
  ('name', 'turns', 'system', 'expected'),
  [
    (
      'deepseek',
      ['<image_placeholder>\nWhat is it?', ''],
      SYSTEM,
      f'{SYSTEM}\n\n<|User|>: <image_placeholder>\nWhat is it?\n\n<|Assistant|>:',
    ),
    ('deepseek', [' a cat \n', ''], '', '<|User|>: a cat\n\n<|Assistant|>:'),
    (
      'deepseek',
      ['Q1', 'A1', 'Q2', ''],
      SYSTEM,
      f'{SYSTEM}\n\n<|User|>: Q1\n\n<|Assistant|>: A1{EOS}<|User|>: Q2\n\n<|Assistant|>:',
    ),
    ('deepseek', ['Q', 'A'], '', f'<|User|>: Q\n\n<|Assistant|>: A{EOS}'),
    ('deepseek', ['Q'], '', '<|User|>: Q'),
    ('deepseek', ['Q1', ' ', 'Q2', ''], '', '<|User|>: Q1\n\n<|Assistant|>:<|User|>: Q2\n\n<|Assistant|>:'),
    ('deepseek_old', ['Q1', 'A1', 'Q2', ''], '', f'User: Q1\n\nAssistant: A1{EOS}User: Q2\n\nAssistant:'),
  ],
)
def test_rendered_text(name, turns, system, expected):
  assert prompts.render_prompt(prompts.TEMPLATES[name], turns, system) == expected


def test_system_prompt():
  assert prompts.SYSTEM_PROMPT == SYSTEM


# The text that `transformers` is given is the chat's alone: its processor puts the system prompt before it.
@pytest.mark.parametrize(
  ('turns', 'num_images', 'chat'),
  [
    (['What is it?'], 0, '<|User|>: What is it?\n\n<|Assistant|>:'),
    (['What is it?'], 1, '<|User|>: <image_placeholder>\nWhat is it?\n\n<|Assistant|>:'),
    (['Alike?'], 2, '<|User|>: <image_placeholder>\n<image_placeholder>\nAlike?\n\n<|Assistant|>:'),
    (
      ['<image_placeholder> is A.\n<image_placeholder> is B. Alike?'],
      2,
      '<|User|>: <image_placeholder> is A.\n<image_placeholder> is B. Alike?\n\n<|Assistant|>:',
    ),
    (
      ['<image_placeholder>\nA cat?', 'Yes.', 'And <image_placeholder>?'],
      2,
      '<|User|>: <image_placeholder>\nA cat?\n\n<|Assistant|>: Yes.'
      f'{EOS}<|User|>: And <image_placeholder>?\n\n<|Assistant|>:',
    ),
    (['A <begin_of_image> that a user typed'], 0, '<|User|>: A <begin_of_image> that a user typed\n\n<|Assistant|>:'),
  ],
)
def test_understanding_ids_equal_transformers(turns, num_images, chat, tokenizer, processor):
  images = [np.zeros((32, 32, 3), np.uint8)] * num_images or None
  expected = processor(text=[chat], images=images, return_tensors='np').input_ids[0].tolist()
  ids = _understanding_ids(tokenizer, turns, num_images)
  assert ids == expected
  assert ids.count(tokenizer.special.image_placeholder) == num_images * NUM_IMAGE_TOKENS


def test_each_image_is_framed(tokenizer):
  special = tokenizer.special
  ids = _understanding_ids(tokenizer, ['<image_placeholder>'], 1, num_image_tokens=3)
  start = ids.index(special.begin_of_image)
  image = [special.begin_of_image, *[special.image_placeholder] * 3, special.end_of_image]
  assert ids[start : start + 5] == image
  assert ids[0] == special.bos


def test_generation_ids_equal_transformers(tokenizer, processor):
  text = '<|User|>: a cat\n\n<|Assistant|>:'
  expected = processor(text=[text], generation_mode='image', return_tensors='np').input_ids[0].tolist()
  ids = prompts.generation_ids(tokenizer, PRO, ' a cat\n', max_length=100)
  assert ids == expected
  assert ids == tokenizer.encode(text + '<begin_of_image>')


def test_unconditional_ids(tokenizer):
  special = tokenizer.special
  ids = prompts.generation_ids(tokenizer, PRO, 'a cat', max_length=100)
  unconditional = prompts.unconditional_ids(ids, special.pad)
  assert len(unconditional) == len(ids)
  assert (unconditional[0], unconditional[-1]) == (special.bos, special.begin_of_image)
  assert set(unconditional[1:-1]) == {special.pad}
  # The pad token itself, read from the file: a wrong id here leaves pictures almost right, which no one would notice.
  assert tokenizer.decode(unconditional[1:3], skip_special=False) == PAD * 2


def test_left_padding_equals_transformers(tokenizer, processor):
  texts = ['<|User|>: a cat\n\n<|Assistant|>:', '<|User|>: a cat of the user\n\n<|Assistant|>:']
  expected = processor(text=texts, generation_mode='image', return_tensors='np', padding=True)
  rows = [prompts.generation_ids(tokenizer, PRO, text, max_length=100) for text in ('a cat', 'a cat of the user')]
  ids, mask = prompts.left_pad(rows, tokenizer.special.pad)
  np.testing.assert_array_equal(ids, expected.input_ids)
  np.testing.assert_array_equal(mask, expected.attention_mask.astype(bool))
  assert (ids.dtype, mask.dtype) == (np.int32, bool)


def test_left_padding_to_a_length():
  ids, mask = prompts.left_pad([[1, 2], [3]], pad_id=9, length=3)
  np.testing.assert_array_equal(ids, [[9, 1, 2], [9, 9, 3]])
  np.testing.assert_array_equal(mask, [[False, True, True], [False, False, True]])
  with pytest.raises(ValueError, match='row 0 has 2 ids: expected at most 1'):
    prompts.left_pad([[1, 2], [3]], pad_id=9, length=1)


@pytest.mark.parametrize(
  ('turns', 'num_images', 'reason'),
  [
    ([], 0, '0 turns: expected an odd number'),
    (['Q', 'A'], 0, '2 turns: expected an odd number'),
    (['  \n'], 1, 'question 1 of 1 is empty'),
    (['Q1', 'A1', ''], 0, 'question 2 of 2 is empty'),
    (['<image_placeholder> or <image_placeholder>?'], 1, '2 <image_placeholder> in the text but 1 images'),
    (['<image_placeholder>?'], 0, '1 <image_placeholder> in the text but 0 images'),
    (['<image_placeholder>?', 'A', 'Q'], 2, '1 <image_placeholder> in the text but 2 images'),
  ],
)
def test_bad_conversations(turns, num_images, reason, tokenizer):
  with pytest.raises(InputError, match=reason):
    _understanding_ids(tokenizer, turns, num_images)


@pytest.mark.parametrize('prompt', ['', ' \n\t'])
def test_empty_prompts(prompt, tokenizer):
  with pytest.raises(InputError, match='the prompt is empty'):
    prompts.generation_ids(tokenizer, PRO, prompt, max_length=100)


def test_length_limit_is_exact(tokenizer):
  length = len(_understanding_ids(tokenizer, ['Q'], 1))
  assert len(_understanding_ids(tokenizer, ['Q'], 1, max_length=length)) == length
  with pytest.raises(InputError, match=f'the prompt has {length} tokens: expected at most {length - 1}'):
    _understanding_ids(tokenizer, ['Q'], 1, max_length=length - 1)
  with pytest.raises(InputError, match='expected at most 3'):
    prompts.generation_ids(tokenizer, PRO, 'a cat', max_length=3)


@pytest.mark.parametrize(
  ('roles', 'sft_format', 'expected'),
  [
    (True, None, 'deepseek'),
    (True, 'deepseek', 'deepseek'),
    (True, 'deepseek_old', 'deepseek_old'),
    (False, None, 'deepseek_old'),
    (False, 'deepseek_old', 'deepseek_old'),
    (False, 'deepseek', 'deepseek_old'),  # Janus-1.3B as it was until January 2025.
  ],
)
def test_template_of_a_checkpoint(roles, sft_format, expected, tmp_path):
  _write_tokenizer(tmp_path / 'tokenizer.json', ('<|User|>', '<|Assistant|>') if roles else ())
  config = {'sft_format': sft_format} if sft_format else {'processor_class': 'JanusProcessor'}
  (tmp_path / 'processor_config.json').write_text(json.dumps(config))
  tokenizer = Tokenizer.from_directory(tmp_path)
  assert prompts.find_template(tmp_path, tokenizer) == prompts.TEMPLATES[expected]


def test_template_without_a_processor_config(tokenizer, tmp_path):
  assert prompts.find_template(tmp_path, tokenizer) == PRO


@pytest.mark.parametrize(
  ('content', 'reason'),
  [
    ('{"sft_format": "llama-2"}', r"sft_format is 'llama-2': expected one of \['deepseek', 'deepseek_old'\]"),
    ('{"sft_format": ["deepseek"]}', 'sft_format is'),
    ('{', 'expected JSON'),
    ('[]', 'holds a list: expected a JSON object'),
  ],
)
def test_bad_processor_configs(content, reason, tokenizer, tmp_path):
  (tmp_path / 'processor_config.json').write_text(content)
  with pytest.raises(InputError, match=rf'processor_config.json: {reason}'):
    prompts.find_template(tmp_path, tokenizer)
