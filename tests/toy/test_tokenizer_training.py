import itertools

import numpy as np
import pytest

from janus_jax.data import prompts
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import InputError
from janus_jax.toy import captions, questions, scenes, tokenizer_training
from janus_jax.toy.shapes import World

WORLD = World()
ANY_TEXT = ['Naïve 漢字 \U0001f600!', '\n\n  two  spaces\t', 'Circles, crosses; 7 + 8 = 15.', 'a\x00b']


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
  size = tokenizer_training.train_tokenizer(tokenizer_training.toy_texts(WORLD), path)
  assert size <= 512
  return Tokenizer(str(path))


def test_every_word_of_the_world_is_one_token(tokenizer):
  words = {*WORLD.colours, *WORLD.shapes, *WORLD.sizes, *map(captions.plural, WORLD.shapes), *captions.NUMBERS}
  words |= {word for relation in scenes.RELATIONS for word in relation.split()}
  for word in words:
    assert len(tokenizer.encode(f' {word}', add_bos=False)) == 1, word


def test_every_word_of_a_richer_world_is_one_token(tmp_path):
  world = World(size=56, grid=7, num_shapes=6, num_colours=8, num_sizes=3, small=0.45, large=0.9, combinations=12)
  tokenizer_training.train_tokenizer(tokenizer_training.toy_texts(world, 1000), tmp_path / 'tokenizer.json')
  tokenizer = Tokenizer(str(tmp_path / 'tokenizer.json'))
  for word in (*world.colours, *world.shapes, *world.sizes, *map(captions.plural, world.shapes), *captions.NUMBERS):
    assert len(tokenizer.encode(f' {word}', add_bos=False)) == 1, word


def test_captions_questions_and_answers_are_a_token_a_word(tokenizer):
  for split, index in itertools.product(('test', 'held_out'), range(200)):
    for question in questions.ask(scenes.scene_at(WORLD, split, index)):
      for text in (question.text, *question.answers):
        words = len(text.rstrip('?.').split()) + text.endswith(('?', '.'))
        assert len(tokenizer.encode(f' {text}', add_bos=False)) == words, text


def test_the_system_prompt_is_one_token_where_asked(tokenizer, tmp_path):
  assert len(tokenizer.encode(prompts.SYSTEM_PROMPT, add_bos=False)) == 1
  plain = tmp_path / 'plain.json'
  tokenizer_training.train_tokenizer(tokenizer_training.toy_texts(WORLD, 200), plain, phrases=())
  assert len(Tokenizer(str(plain)).encode(prompts.SYSTEM_PROMPT, add_bos=False)) == 35


@pytest.mark.parametrize('text', [*ANY_TEXT, prompts.SYSTEM_PROMPT, 'draw three small red circles'])
def test_any_text_comes_back(tokenizer, text):
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_the_first_ids(tokenizer):
  special = tokenizer.special
  ids = [special.bos, special.eos, special.pad, special.begin_of_image, special.end_of_image]
  assert [*ids, special.image_placeholder, special.user, special.assistant] == list(range(8))


def test_transformers_reads_the_same(tokenizer):
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  reference = transformers.PreTrainedTokenizerFast(tokenizer_file=tokenizer.path)
  for text in [*ANY_TEXT, *tokenizer_training.toy_texts(WORLD, 20)]:
    assert reference.encode(text) == tokenizer.encode(text)


def test_the_same_texts_give_the_same_file(tmp_path):
  for name in ('a', 'b'):
    tokenizer_training.train_tokenizer(tokenizer_training.toy_texts(WORLD, 100), tmp_path / name)
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_the_rarest_words_go_first(tmp_path):
  texts = ['seldom'] + ['often'] * 2
  rng = np.random.default_rng(0)
  path = tmp_path / 'tokenizer.json'
  assert tokenizer_training.train_tokenizer(rng.permutation(texts).tolist(), path, vocab_size=265, phrases=()) == 265
  tokenizer = Tokenizer(str(path))
  assert len(tokenizer.encode('often', add_bos=False)) == 1
  assert len(tokenizer.encode('seldom', add_bos=False)) == 6


def test_bad_input(tmp_path):
  with pytest.raises(InputError, match='vocab_size 264: expected at least 265'):
    tokenizer_training.train_tokenizer(['text'], tmp_path / 'tokenizer.json', vocab_size=264, phrases=())
  with pytest.raises(InputError, match='cannot be written'):
    tokenizer_training.train_tokenizer(['text'], tmp_path / 'nowhere' / 'tokenizer.json')
