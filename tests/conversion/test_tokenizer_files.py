"""The files beside the weights: they load in transformers, agree with the model, and survive round trips."""

import dataclasses
import json

import numpy as np
import pytest
from conversion.fixtures import (
  ASSISTANT,
  BOI,
  BOS,
  EOI,
  EOS,
  IMAGE,
  JANUS_TOKENS,
  PAD,
  USER,
  deepseek_tokenizer_files,
  dump,
  make_tokenizer,
  write_files,
)

from janus_jax.conversion.configs import janus_to_huggingface
from janus_jax.conversion.special_tokens import SpecialTokens, extend_tokenizer, special_token_ids
from janus_jax.conversion.tokenizer_files import read_tokenizer_files, tokenizer_files_for
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS, JanusConfig

SYSTEM = (
  'You are a helpful language and vision assistant. You are able to understand the visual content that the user '
  'provides, and assist the user with a variety of tasks using natural language.'
)
# The tokenizer that make_tokenizer gives has 300 entries before its special tokens.
CONFIG = dataclasses.replace(PRESETS['test_tiny'], image_token_id=305)


@pytest.fixture(scope='module')
def tokenizer_json() -> bytes:
  return make_tokenizer((BOS, EOS, *JANUS_TOKENS))


@pytest.fixture
def image():
  pillow_image = pytest.importorskip('PIL.Image')
  return pillow_image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8))


def user(*content: dict | str) -> dict:
  return {
    'role': 'user',
    'content': [{'type': 'text', 'text': part} if isinstance(part, str) else part for part in content],
  }


def assistant(text: str) -> dict:
  return {'role': 'assistant', 'content': [{'type': 'text', 'text': text}]}


def export(directory, files: dict[str, bytes], config: JanusConfig = CONFIG) -> str:
  """Writes what a huggingface export has beside its weights."""
  files = tokenizer_files_for('huggingface', files, config)
  return write_files(directory, {**files, 'config.json': dump(janus_to_huggingface(config, 'float32'))})


def saved_by_transformers(directory, tokenizer_json: bytes, config: JanusConfig) -> str:
  """A directory as transformers itself writes it."""
  transformers = pytest.importorskip('transformers')
  tokenizers = pytest.importorskip('tokenizers')
  backend = tokenizers.Tokenizer.from_str(tokenizer_json.decode())
  backend.post_processor = tokenizers.processors.TemplateProcessing(f'{BOS} $A', special_tokens=[(BOS, 300)])
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    bos_token=BOS,
    eos_token=EOS,
    pad_token=PAD,
    model_max_length=16384,
    extra_special_tokens={'image_token': IMAGE, 'boi_token': BOI, 'eoi_token': EOI},
  )
  side = config.vision_encoder.image_size
  image_processor = transformers.JanusImageProcessorPil(
    image_mean=[0.5] * 3, image_std=[0.5] * 3, size={'height': side, 'width': side}, min_size=7
  )
  processor = transformers.JanusProcessor(
    image_processor,
    tokenizer,
    chat_template='{% for m in messages %}{{ m.role }}{% for c in m.content %}{{ c.text or "' + IMAGE + '" }}'
    '{% endfor %}{% endfor %}',
    use_default_system_prompt=True,
    num_image_tokens=config.vision_encoder.num_tokens,
  )
  processor.save_pretrained(directory)
  generation = transformers.GenerationConfig(bos_token_id=300, eos_token_id=301, pad_token_id=302, guidance_scale=5)
  generation.save_pretrained(directory)
  transformers.JanusConfig(**janus_to_huggingface(config, 'float32')).save_pretrained(directory)
  return str(directory)


def test_files_of_transformers_pass_through_orbax_unchanged(tmp_path, tokenizer_json, image):
  transformers = pytest.importorskip('transformers')
  source = saved_by_transformers(tmp_path / 'source', tokenizer_json, CONFIG)
  files = read_tokenizer_files(source)
  assert {'tokenizer.json', 'tokenizer_config.json', 'processor_config.json', 'chat_template.jinja'} <= set(files)
  assert 'config.json' not in files
  stored = read_tokenizer_files(write_files(tmp_path / 'orbax', tokenizer_files_for('orbax', files, CONFIG)))
  assert stored == files
  assert tokenizer_files_for('huggingface', stored, CONFIG) == files
  ours = transformers.AutoProcessor.from_pretrained(export(tmp_path / 'export', stored))
  theirs = transformers.AutoProcessor.from_pretrained(source)
  calls = [
    lambda p: p(text='three red circles', return_tensors='np'),
    lambda p: p(text='three red circles', generation_mode='image', return_tensors='np'),
    lambda p: p(text=f'{IMAGE}\nHow many?', images=[image], return_tensors='np'),
    lambda p: p.apply_chat_template(
      [user({'type': 'image', 'image': image}, 'How many?')], tokenize=True, return_dict=True, return_tensors='np'
    ),
  ]
  for call in calls:
    got, expected = call(ours), call(theirs)
    assert set(got) == set(expected)
    for name in expected:
      np.testing.assert_array_equal(got[name], expected[name])


def test_deepseek_files_pass_through_orbax_unchanged(tokenizer_json):
  files = deepseek_tokenizer_files(tokenizer_json, CONFIG)
  stored = tokenizer_files_for('orbax', files, CONFIG)
  assert tokenizer_files_for('deepseek', stored, CONFIG) == files


def test_a_deepseek_directory_becomes_one_that_transformers_loads(tmp_path, tokenizer_json, image):
  transformers = pytest.importorskip('transformers')
  directory = export(tmp_path, deepseek_tokenizer_files(tokenizer_json, CONFIG))
  processor = transformers.AutoProcessor.from_pretrained(directory)
  assert isinstance(processor, transformers.JanusProcessor)
  prompt = processor.apply_chat_template([user({'type': 'image'}, 'How many?')], add_generation_prompt=True)
  assert prompt == f'{USER}: {IMAGE}\nHow many?\n\n{ASSISTANT}:'
  inputs = processor(text=prompt, images=[image], return_tensors='np')
  backend = processor.tokenizer.backend_tokenizer

  def ids(text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids

  image_ids = [303, *[305] * CONFIG.vision_encoder.num_tokens, 304]  # BOI, placeholders, EOI.
  expected = [300, *ids(f'{SYSTEM}\n\n{USER}: '), *image_ids, *ids(f'\nHow many?\n\n{ASSISTANT}:')]
  assert inputs['input_ids'].tolist() == [expected]
  # A 20 x 40 image becomes 16 x 32, centred on the grey of int(0.5 * 255), then normalised by 0.5.
  pixels = inputs['pixel_values'].reshape(3, 32, 32)
  np.testing.assert_allclose(pixels[:, :8], 127 / 127.5 - 1, atol=1e-6)
  np.testing.assert_allclose(pixels[:, 24:], 127 / 127.5 - 1, atol=1e-6)
  assert pixels[:, 8:24].std() > 0.1

  prompt_inputs = processor(
    text=f'{USER}: three red circles\n\n{ASSISTANT}:', generation_mode='image', return_tensors='np'
  )
  assert prompt_inputs['input_ids'].tolist() == [[300, *ids(f'{USER}: three red circles\n\n{ASSISTANT}:'), 303]]
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  padded = tokenizer(['red', 'How many red circles are there?'], padding=True)['input_ids']
  assert padded[0][0] == 302  # Padding is on the left.
  assert padded[0][-1] == ids('red')[-1]
  assert tokenizer.model_max_length == 16384
  assert len(tokenizer) == 308
  # transformers 4 would add "<unk>" to the vocabulary if this were absent.
  assert json.loads(read_tokenizer_files(directory)['tokenizer_config.json']).get('unk_token', 'absent') is None
  generation = transformers.GenerationConfig.from_pretrained(directory)
  assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (300, 301, 302)
  assert generation.generation_kwargs == {'boi_token_id': 303}
  assert generation.guidance_scale == 5
  assert generation.top_k == 0  # transformers' own default keeps the 50 likeliest codes.


def render(template: bytes, messages: list[dict], add_generation_prompt: bool) -> str:
  utilities = pytest.importorskip('transformers.utils.chat_template_utils')
  rendered, _ = utilities.render_jinja_template(
    [messages], chat_template=template.decode(), add_generation_prompt=add_generation_prompt
  )
  return rendered[0]


def test_chat_template_renders_deepseeks_format(tokenizer_json):
  """The default system prompt is not the template's, but JanusProcessor's."""
  files = deepseek_tokenizer_files(tokenizer_json, CONFIG)
  template = tokenizer_files_for('huggingface', files, CONFIG)['chat_template.jinja']
  image = {'type': 'image'}
  turns = [user(' Q1 '), assistant('A1'), user('Q2')]
  two_turns = f'{USER}: Q1\n\n{ASSISTANT}: A1{EOS}{USER}: Q2'
  assert render(template, turns, add_generation_prompt=True) == f'{two_turns}\n\n{ASSISTANT}:'
  assert render(template, turns, add_generation_prompt=False) == two_turns
  # Turns may be plain strings, an empty last turn asks for an answer as DeepSeek's code does, roles may be capital.
  plain = [{'role': 'User', 'content': 'a red circle'}, {'role': 'Assistant', 'content': ''}]
  assert render(template, plain, add_generation_prompt=False) == f'{USER}: a red circle\n\n{ASSISTANT}:'
  system = {'role': 'system', 'content': SYSTEM}
  assert render(template, [system, *turns], add_generation_prompt=False) == f'{SYSTEM}\n\n{two_turns}'
  rendered = render(template, [user(image, image, 'one', 'two')], add_generation_prompt=False)
  assert rendered == f'{USER}: {IMAGE}\n\n{IMAGE}\none two'
  assert render(template, [user('one', image)], add_generation_prompt=False) == f'{USER}: one\n{IMAGE}'


def test_janus_1_3b_has_plain_roles_and_no_placeholder_in_its_tokenizer(tmp_path):
  """DeepSeek's processor appends `<image_placeholder>` when it loads such a tokenizer; an export has it."""
  transformers = pytest.importorskip('transformers')
  base = make_tokenizer((BOS, EOS, PAD, BOI, EOI))
  assert special_token_ids(base) == SpecialTokens(300, 301, 302, 303, 304, 305, None, None)
  files = deepseek_tokenizer_files(base, CONFIG, sft_format='deepseek_old')
  directory = export(tmp_path, files)
  processor = transformers.AutoProcessor.from_pretrained(directory)
  assert processor.tokenizer.convert_tokens_to_ids(IMAGE) == 305
  prompt = processor.apply_chat_template([user('Q1'), assistant('A1'), user('Q2')], add_generation_prompt=True)
  assert prompt == f'User: Q1\n\nAssistant: A1{EOS}User: Q2\n\nAssistant:'
  # Back in DeepSeek's layout the format is the old one again, and no token is announced that is not there.
  back = tokenizer_files_for('deepseek', read_tokenizer_files(directory), CONFIG)
  assert json.loads(back['processor_config.json'])['sft_format'] == 'deepseek_old'
  assert json.loads(back['special_tokens_map.json'])['additional_special_tokens'] == [IMAGE]


def test_plain_roles_where_the_source_says_so(tokenizer_json):
  files = deepseek_tokenizer_files(tokenizer_json, CONFIG, sft_format='deepseek_old')
  template = tokenizer_files_for('huggingface', files, CONFIG)['chat_template.jinja']
  assert render(template, [user('Q1')], add_generation_prompt=True) == 'User: Q1\n\nAssistant:'


@pytest.mark.parametrize('name', ['chat_template.json', 'tokenizer_config.json'])
def test_a_chat_template_elsewhere_is_not_overruled(tmp_path, tokenizer_json, name):
  source = read_tokenizer_files(saved_by_transformers(tmp_path, tokenizer_json, CONFIG))
  template = source.pop('chat_template.jinja').decode()
  assert 'chat_template.jinja' in tokenizer_files_for('huggingface', source, CONFIG)
  source[name] = dump({**json.loads(source.get(name, b'{}')), 'chat_template': template})
  assert tokenizer_files_for('huggingface', source, CONFIG) == source


def test_files_of_transformers_become_deepseeks(tmp_path, tokenizer_json):
  source = read_tokenizer_files(saved_by_transformers(tmp_path, tokenizer_json, CONFIG))
  files = tokenizer_files_for('deepseek', source, CONFIG)
  expected = deepseek_tokenizer_files(tokenizer_json, CONFIG)
  assert set(files) == set(expected)
  assert json.loads(files['processor_config.json']) == json.loads(expected['processor_config.json'])
  assert json.loads(files['preprocessor_config.json']) == {
    **json.loads(expected['preprocessor_config.json']),
    'min_size': 7,  # As the source was saved.
  }
  tokens = json.loads(files['special_tokens_map.json'])
  assert (tokens['bos_token'], tokens['eos_token'], tokens['pad_token']) == (BOS, EOS, PAD)
  assert tokens['additional_special_tokens'] == [IMAGE, USER, ASSISTANT]
  settings = json.loads(files['tokenizer_config.json'])
  assert settings['add_bos_token'] is True
  assert settings['model_max_length'] == 16384
  assert files['tokenizer.json'] == source['tokenizer.json']


def test_a_base_tokenizer_alone_becomes_a_whole_processor(tmp_path, image):
  """DeepSeek-LLM's tokenizer, its own tokenizer_config beside it, extended: what a composed model starts from."""
  transformers = pytest.importorskip('transformers')
  base = make_tokenizer((BOS, EOS))
  files = {
    'tokenizer.json': extend_tokenizer(base, CONFIG.language_model.vocab_size),
    'tokenizer_config.json': dump({'chat_template': 'wrong', 'pad_token': EOS, 'model_max_length': 4096}),
    'generation_config.json': dump({'temperature': 0.7, 'do_sample': True}),
  }
  config = dataclasses.replace(CONFIG, image_token_id=special_token_ids(files['tokenizer.json']).image_placeholder)
  processor = transformers.AutoProcessor.from_pretrained(export(tmp_path, files, config))
  inputs = processor(text=f'{IMAGE}', images=[image], return_tensors='np')['input_ids'][0].tolist()
  assert inputs.count(config.image_token_id) == config.vision_encoder.num_tokens
  assert inputs[0] == 300
  assert processor.tokenizer.pad_token == PAD
  assert processor.tokenizer.model_max_length == 4096
  assert 'wrong' not in processor.chat_template
  assert transformers.GenerationConfig.from_pretrained(tmp_path).temperature is None


def test_without_a_tokenizer_only_the_image_processor_is_written(tmp_path):
  transformers = pytest.importorskip('transformers')
  files = tokenizer_files_for('deepseek', {}, CONFIG)
  assert set(files) == {'preprocessor_config.json'}
  released = json.loads(deepseek_tokenizer_files(b'', CONFIG)['preprocessor_config.json'])
  assert json.loads(files['preprocessor_config.json']) == {**released, 'min_size': 14}
  directory = export(tmp_path, {})
  assert set(read_tokenizer_files(directory)) == {'preprocessor_config.json'}
  assert transformers.AutoImageProcessor.from_pretrained(directory).size == {'height': 32, 'width': 32}


def test_sizes_follow_the_model(tmp_path, tokenizer_json):
  """Files of a model whose image size was changed since: sizes are corrected, everything else stays."""
  vision = dataclasses.replace(CONFIG.vision_encoder, image_size=64)
  vq = dataclasses.replace(CONFIG.vq, image_size=64)
  larger = dataclasses.replace(CONFIG, vision_encoder=vision, vq=vq)
  deepseek = deepseek_tokenizer_files(tokenizer_json, CONFIG)
  assert tokenizer_files_for('deepseek', deepseek, larger)['tokenizer.json'] == tokenizer_json
  for name in ('processor_config.json', 'preprocessor_config.json'):
    expected = deepseek_tokenizer_files(tokenizer_json, larger)[name]
    assert json.loads(tokenizer_files_for('deepseek', deepseek, larger)[name]) == json.loads(expected)
  source = read_tokenizer_files(saved_by_transformers(tmp_path, tokenizer_json, CONFIG))
  written = json.loads(tokenizer_files_for('huggingface', source, larger)['processor_config.json'])
  expected = json.loads(source['processor_config.json'])
  expected['num_image_tokens'] = 64
  expected['image_processor']['size'] = {'height': 64, 'width': 64}
  assert written == expected


def test_files_that_contradict_the_model_are_refused(tokenizer_json):
  files = deepseek_tokenizer_files(tokenizer_json, CONFIG)
  with pytest.raises(InputError, match=r'tokenizer\.json: <image_placeholder> has id 305: expected .* 500'):
    tokenizer_files_for('huggingface', files, PRESETS['test_tiny'])
  llama = dataclasses.replace(CONFIG.language_model, vocab_size=306)
  with pytest.raises(InputError, match=r'tokenizer\.json: has a token with id 307: expected ids below vocab_size, 306'):
    tokenizer_files_for('huggingface', files, dataclasses.replace(CONFIG, language_model=llama))
  with pytest.raises(InputError, match=r'processor_config\.json: not JSON'):
    tokenizer_files_for('huggingface', {**files, 'processor_config.json': b'{'}, CONFIG)
  with pytest.raises(InputError, match=r'tokenizer\.json: not JSON'):
    tokenizer_files_for('deepseek', {**files, 'tokenizer.json': b'\xff'}, CONFIG)
