import json
import pickle

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from janus_jax.data.tokenizer import IMAGE_PLACEHOLDER, StreamDecoder, Tokenizer
from janus_jax.errors import InputError

BOS, EOS, PAD = '<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>', '<｜▁pad▁｜>'  # noqa: RUF001
IMAGE_TOKENS = ('<begin_of_image>', '<end_of_image>', '<image_placeholder>')
ROLES = ('<|User|>', '<|Assistant|>')
TEXTS = [
  'A cat sat on the mat, and the 2 dogs sat on 13 cats.',
  'Ein Bär frißt Honig; 熊は蜂蜜を食べる。 🐻🍯 naïve café',
  '<|User|>: <image_placeholder>\nWhat is this?\n\n<|Assistant|>:',
  f'<|User|>: Hi\n\n<|Assistant|>: Hello{EOS}<|User|>: a <begin_of_image> in the text',
  '  leading,  double and trailing spaces \n\n\t',
  '',
]


def write_tokenizer(path, special_tokens, post_processor=False):
  """A byte-level BPE with DeepSeek's structure, trained on `TEXTS`; special tokens take the last ids, in order."""
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  )
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
  )
  backend.train_from_iterator(TEXTS, trainer)
  backend.add_special_tokens(list(special_tokens))
  if post_processor:
    bos_id = backend.token_to_id(BOS)
    backend.post_processor = processors.TemplateProcessing(single=f'{BOS} $A', special_tokens=[(BOS, bos_id)])
  backend.save(str(path))
  return str(path)


@pytest.fixture
def path(tmp_path):
  return write_tokenizer(tmp_path / 'tokenizer.json', (BOS, EOS, PAD, *IMAGE_TOKENS, *ROLES), post_processor=True)


def _transformers_tokenizer(path):
  transformers = pytest.importorskip('transformers')
  return transformers.PreTrainedTokenizerFast(tokenizer_file=path)


@pytest.mark.parametrize('text', TEXTS)
def test_encodes_as_transformers_does(text, path):
  reference = _transformers_tokenizer(path)
  tokenizer = Tokenizer(path)
  assert tokenizer.encode(text) == reference.encode(text)
  assert tokenizer.encode(text, add_bos=False) == reference.encode(text, add_special_tokens=False)


@pytest.mark.parametrize('skip_special', [True, False])
def test_decodes_as_transformers_does(skip_special, path):
  reference = _transformers_tokenizer(path)
  tokenizer = Tokenizer(path)
  vocab_size = len(reference)
  rng = np.random.default_rng(0)
  rows = [tokenizer.encode(text) for text in TEXTS] + [rng.integers(vocab_size, size=40) for _ in range(20)]
  for ids in rows:
    assert tokenizer.decode(ids, skip_special) == reference.decode(list(ids), skip_special_tokens=skip_special)
  # The model's vocabulary is larger than the tokenizer's.
  assert tokenizer.decode([*tokenizer.encode('A cat'), vocab_size + 5]) == 'A cat'


def test_bos_comes_whatever_the_file_post_processes(tmp_path, path):
  plain = write_tokenizer(tmp_path / 'plain.json', (BOS, EOS, PAD, *IMAGE_TOKENS, *ROLES))
  assert Tokenizer(plain).encode(TEXTS[0]) == Tokenizer(path).encode(TEXTS[0])


def test_padding_and_truncation_of_the_file_are_not_applied(path):
  expected = Tokenizer(path).encode(TEXTS[0])
  backend = tokenizers.Tokenizer.from_file(path)
  backend.enable_truncation(4)
  backend.enable_padding(length=100)
  backend.save(path)
  assert Tokenizer(path).encode(TEXTS[0]) == expected


def test_special_ids_come_from_the_strings(tmp_path):
  """Two layouts, as Janus-Pro's 1B and 7B differ: 13 tokens before the pad token shift it and all that follow."""
  small = Tokenizer(write_tokenizer(tmp_path / '1b.json', (BOS, EOS, PAD, *IMAGE_TOKENS, *ROLES))).special
  extra = [f'extra {i}' for i in range(13)]
  large = Tokenizer(write_tokenizer(tmp_path / '7b.json', (BOS, EOS, *extra, PAD, *IMAGE_TOKENS, *ROLES))).special
  assert (large.bos, large.eos) == (small.bos, small.eos)
  assert (large.pad, large.begin_of_image, large.end_of_image) == (small.pad + 13, small.pad + 14, small.pad + 15)
  assert (large.image_placeholder, large.user, large.assistant) == (small.pad + 16, small.pad + 17, small.pad + 18)


def test_a_config_that_names_another_pad_token_is_not_believed(tmp_path):
  """Janus-1.3B was released with such a tokenizer_config.json, which ruined its guidance."""
  path = write_tokenizer(tmp_path / 'tokenizer.json', (BOS, EOS, PAD, *IMAGE_TOKENS, *ROLES))
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'pad_token': EOS, 'pad_token_id': 1}))
  special = Tokenizer.from_directory(tmp_path).special
  assert special.pad == tokenizers.Tokenizer.from_file(path).token_to_id(PAD)
  assert special.pad not in (1, special.eos)


@pytest.mark.parametrize('missing', [BOS, EOS, PAD, '<begin_of_image>', '<end_of_image>'])
def test_a_missing_token_is_named(missing, tmp_path):
  present = [token for token in (BOS, EOS, PAD, *IMAGE_TOKENS, *ROLES) if token != missing]
  path = write_tokenizer(tmp_path / 'tokenizer.json', present)
  with pytest.raises(InputError) as caught:
    Tokenizer(path)
  assert str(caught.value) == f'{path}: no token {missing!r}: expected the tokenizer of a Janus'


def test_a_tokenizer_of_janus_1_3b(tmp_path):
  """It has no role tokens, and the original's processor gives the absent placeholder the next id."""
  path = write_tokenizer(tmp_path / 'tokenizer.json', (BOS, EOS, PAD, '<begin_of_image>', '<end_of_image>'))
  tokenizer = pickle.loads(pickle.dumps(Tokenizer(path)))
  assert (tokenizer.special.user, tokenizer.special.assistant) == (None, None)
  assert tokenizer.special.image_placeholder == tokenizer.special.end_of_image + 1
  assert tokenizer.encode(IMAGE_PLACEHOLDER, add_bos=False) == [tokenizer.special.image_placeholder]


@pytest.mark.parametrize('directory_content', [None, b'', b'{', b'[]', b'{"model": 3}', b'\xff\xfe', 'directory'])
def test_bad_files_give_one_line_with_their_name(directory_content, tmp_path):
  path = tmp_path / 'tokenizer.json'
  if directory_content == 'directory':
    path.mkdir()
  elif directory_content is not None:
    path.write_bytes(directory_content)
  with pytest.raises(InputError) as caught:
    Tokenizer.from_directory(tmp_path)
  assert str(caught.value).startswith(f'{path}: ')
  assert '\n' not in str(caught.value)


def test_text_that_is_no_unicode(path):
  with pytest.raises(InputError, match='at character 4: expected valid Unicode'):
    Tokenizer(path).encode('cat \udc80')


def test_pickling_carries_no_vocabulary(path):
  tokenizer = Tokenizer(path)
  data = pickle.dumps(tokenizer)
  assert len(data) < 1000
  copy = pickle.loads(data)
  assert copy == tokenizer
  assert copy.special == tokenizer.special
  assert copy.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])


@pytest.mark.parametrize('skip_special', [True, False])
def test_stream_pieces_join_to_the_whole(skip_special, path):
  """Random ids too: bytes that are no character, characters cut by special tokens, ends in the middle of one."""
  tokenizer = Tokenizer(path)
  rng = np.random.default_rng(0)
  rows = [tokenizer.encode(text) for text in TEXTS] + [rng.integers(330, size=rng.integers(30)) for _ in range(300)]
  for ids in rows:
    decoder = StreamDecoder(tokenizer, skip_special)
    pieces = [decoder.push(i) for i in ids] + [decoder.finish()]
    assert ''.join(pieces) == tokenizer.decode(ids, skip_special)


def test_stream_emits_whole_characters_at_once(path):
  tokenizer = Tokenizer(path)
  ids = [tokenizer.encode(letter, add_bos=False) for letter in ('x', 'Ω', 'ж', '𝄞', 'y')]
  assert [len(i) for i in ids] == [1, 2, 2, 4, 1]  # None of the middle three was trained on, so each byte is a token.
  decoder = StreamDecoder(tokenizer)
  pieces = [decoder.push(i) for row in ids for i in row]
  assert pieces == ['x', '', 'Ω', '', 'ж', '', '', '', '𝄞', 'y']
  assert decoder.finish() == ''


def test_stream_of_a_decoder_that_treats_the_first_token_differently(tmp_path):
  """SentencePiece-like decoders drop the space before the first word alone."""
  words = ['▁A', '▁cat', '▁sat', BOS, EOS, PAD, *IMAGE_TOKENS]
  backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token='▁A'))
  backend.decoder = decoders.Metaspace()
  backend.save(str(tmp_path / 'tokenizer.json'))
  decoder = StreamDecoder(Tokenizer.from_directory(tmp_path))
  assert [decoder.push(i) for i in (0, 1, 2)] == ['A', ' cat', ' sat']
