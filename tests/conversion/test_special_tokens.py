"""Ids by token string, and base tokenizers extended by Janus's tokens."""

import json

import pytest
from conversion.fixtures import ASSISTANT, BOI, BOS, EOI, EOS, IMAGE, JANUS_TOKENS, PAD, USER, make_tokenizer

from janus_jax.conversion.special_tokens import SpecialTokens, complete_tokenizer, extend_tokenizer, special_token_ids
from janus_jax.errors import InputError

_TEXTS = ('How many red circles are there?', 'Größe 7, naïve café: 東京 🙂', '  spaces\nand lines ')


def load(tokenizer_json: bytes):
  tokenizers = pytest.importorskip('tokenizers')
  return tokenizers.Tokenizer.from_str(tokenizer_json.decode())


def large_base(num_added: int) -> bytes:
  """A vocabulary of DeepSeek-LLM's size: 100000 entries, BOS, EOS, and `num_added` more added tokens."""
  tokenizer = json.loads(make_tokenizer((BOS, EOS, *(f'<added {i}>' for i in range(num_added)))))
  vocab = tokenizer['model']['vocab']
  vocab.update({f'word {i}': i for i in range(len(vocab), 100000)})
  for i, token in enumerate(tokenizer['added_tokens']):
    token['id'] = 100000 + i
  return json.dumps(tokenizer).encode()


@pytest.mark.parametrize(('num_added', 'shift'), [(13, 0), (0, -13)], ids=['7B', '1B'])
def test_extension_gives_the_ids_of_the_releases(num_added, shift):
  """The 7B's ids, and 13 less where the base lacks 13 added tokens."""
  extended = extend_tokenizer(large_base(num_added), 102400)
  expected = SpecialTokens(
    bos=100000,
    eos=100001,
    pad=100015 + shift,
    begin_of_image=100016 + shift,
    end_of_image=100593 + shift,
    image_placeholder=100594 + shift,
    user=100601 + shift,
    assistant=100602 + shift,
  )
  assert special_token_ids(extended) == expected
  # The tokenizers library numbers added tokens by itself: its ids must be those in the file.
  tokenizer = load(extended)
  assert tokenizer.token_to_id(ASSISTANT) == expected.assistant
  assert tokenizer.encode(f'{BOI}{IMAGE}{EOI}').ids == [
    expected.begin_of_image,
    expected.image_placeholder,
    expected.end_of_image,
  ]


def test_extension_without_role_tokens_leaves_the_other_ids_alone():
  """Janus-1.3B, whose roles are plain words."""
  ids = special_token_ids(extend_tokenizer(large_base(13), 102400, role_tokens=False))
  assert ids == SpecialTokens(100000, 100001, 100015, 100016, 100593, 100594, None, None)
  small = extend_tokenizer(make_tokenizer((BOS, EOS)), 306, role_tokens=False)
  assert special_token_ids(small) == SpecialTokens(300, 301, 302, 303, 304, 305, None, None)
  with pytest.raises(InputError, match=r'^tokenizer\.json: has <\|User\|>: expected no role tokens'):
    extend_tokenizer(make_tokenizer((BOS, EOS, *JANUS_TOKENS)), 102400, role_tokens=False)


def test_extension_of_a_small_vocabulary_takes_the_next_ids():
  base = make_tokenizer((BOS, EOS))
  extended = extend_tokenizer(base, 308)
  assert special_token_ids(extended) == SpecialTokens(300, 301, 302, 303, 304, 305, 306, 307)
  before, after = load(base), load(extended)
  vocab = after.get_vocab()
  assert {token: vocab[token] for token in before.get_vocab()} == before.get_vocab()
  assert len(vocab) == 308
  for text in _TEXTS:
    assert after.encode(text).ids == before.encode(text).ids
    assert after.decode(after.encode(f'{USER}: {text}{EOS}').ids) == f': {text}'  # Special tokens are left out.
  assert extend_tokenizer(base, 308) == extended
  assert extend_tokenizer(extended, 308) == extended


def test_extension_keeps_tokens_that_are_there():
  base = make_tokenizer((BOS, EOS, PAD, ASSISTANT))
  assert special_token_ids(extend_tokenizer(base, 102400)) == SpecialTokens(300, 301, 302, 304, 305, 306, 307, 303)
  whole = make_tokenizer((BOS, EOS, *JANUS_TOKENS))
  assert extend_tokenizer(whole, 102400) == whole


def test_extension_of_a_tokenizer_without_any_special_token():
  assert special_token_ids(extend_tokenizer(make_tokenizer(()), 310)).bos == 300
  assert special_token_ids(extend_tokenizer(make_tokenizer(()), 102400)).pad == 302


def test_extension_that_does_not_fit_is_refused():
  base = make_tokenizer((BOS, EOS))
  with pytest.raises(InputError, match=r'tokenizer\.json: 6 special tokens .* at least 308, not 307'):
    extend_tokenizer(base, 307)


def test_ids_with_gaps_are_refused():
  """The tokenizers library would number the added tokens from the number of entries, onto ids that are taken."""
  tokenizer = json.loads(make_tokenizer(()))
  tokenizer['model']['vocab']['a word'] = 400
  with pytest.raises(InputError, match='ids have gaps'):
    extend_tokenizer(json.dumps(tokenizer).encode(), 1000)


@pytest.mark.parametrize('missing', [BOS, EOS, PAD, BOI, EOI])
def test_a_missing_token_is_named(missing):
  present = [token for token in (BOS, EOS, *JANUS_TOKENS) if token != missing]
  with pytest.raises(InputError) as error:
    special_token_ids(make_tokenizer(present))
  assert str(error.value).startswith(f'tokenizer.json: token {missing} is missing: expected')


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'\xff\xfe',
    b'[]',
    b'{}',
    b'{"model": {"vocab": []}}',
    b'{"model": {"vocab": {}}, "added_tokens": [{"id": 3}]}',
  ],
)
def test_what_is_not_a_tokenizer_is_refused(content):
  for function in (special_token_ids, complete_tokenizer, lambda content: extend_tokenizer(content, 1000)):
    with pytest.raises(InputError, match=r'^tokenizer\.json: .*expected|^tokenizer\.json: not JSON'):
      function(content)


def test_a_completed_tokenizer_puts_bos_in_front():
  """transformers 4's LlamaTokenizerFast does so whatever the file says, transformers 5 does what the file says."""
  completed = complete_tokenizer(make_tokenizer((BOS, EOS, *JANUS_TOKENS)))
  tokenizer = load(completed)
  ids = tokenizer.encode('red', add_special_tokens=False).ids
  assert tokenizer.encode('red').ids == [300, *ids]
  assert tokenizer.encode('red', 'red').ids == [300, *ids, 300, *ids]
  assert complete_tokenizer(completed) == completed


def test_a_completed_tokenizer_has_the_placeholder_that_loading_would_add():
  base = make_tokenizer((BOS, EOS, PAD, BOI, EOI))
  completed = complete_tokenizer(base)
  assert load(completed).token_to_id(IMAGE) == special_token_ids(base).image_placeholder == 305
