"""Makes a small tokenizer for the toy world: byte-level BPE with Janus's special tokens and the words of a text."""

import collections
import os
import re
from collections.abc import Iterable, Iterator

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from janus_jax.data import prompts
from janus_jax.data import tokenizer as tokenizer_lib
from janus_jax.errors import InputError
from janus_jax.toy import captions, digits, questions, scenes
from janus_jax.toy.shapes import World

SPECIAL_TOKENS = (
  tokenizer_lib.BOS,
  tokenizer_lib.EOS,
  tokenizer_lib.PAD,
  tokenizer_lib.BEGIN_OF_IMAGE,
  tokenizer_lib.END_OF_IMAGE,
  tokenizer_lib.IMAGE_PLACEHOLDER,
  tokenizer_lib.USER,
  tokenizer_lib.ASSISTANT,
)
# Every conversation about an image begins with it: 35 tokens otherwise, more than all the rest of a short one.
PHRASES = (prompts.SYSTEM_PROMPT,)


def train_tokenizer(
  texts: Iterable[str], path: str | os.PathLike, vocab_size: int = 512, phrases: Iterable[str] = PHRASES
) -> int:
  """Writes a tokenizer.json that `data.tokenizer.Tokenizer` and transformers' PreTrainedTokenizerFast read.

  Its vocabulary: Janus's special tokens (ids from 0), the 256 bytes, so that any text can be written, the `phrases`,
  and the most frequent words of `texts`, with the space before them. There are no merges: a word is one token, or
  bytes. The same texts give the same file. Returns the size of the vocabulary.

  Args:
    texts: words are counted in them, special tokens included or not.
    path: file to write.
    vocab_size: largest size.
    phrases: texts that become one token wherever they stand.

  Raises:
    InputError: `vocab_size` has no room for more than bytes, special tokens and phrases, or `path` cannot be written.
  """
  phrases = list(phrases)
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  room = vocab_size - len(SPECIAL_TOKENS) - len(alphabet) - len(phrases)
  if room < 1:
    raise InputError(f'vocab_size {vocab_size}: expected at least {vocab_size - room + 1}')
  splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
  counts = _count_words(texts, splitter, phrases)
  # Of more than one byte; equal counts go by the alphabet.
  words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))[:room]
  vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet, *words])}
  # ignore_merges: a word that is in the vocabulary is taken whole, without the merges that would lead there.
  backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
  backend.pre_tokenizer = splitter
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(list(SPECIAL_TOKENS))
  backend.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
  bos = (tokenizer_lib.BOS, backend.token_to_id(tokenizer_lib.BOS))
  backend.post_processor = processors.TemplateProcessing(single=f'{bos[0]} $A', special_tokens=[bos])
  try:
    with open(path, 'w', encoding='utf-8') as file:
      file.write(backend.to_str(pretty=True))
  except OSError as error:
    raise InputError(f'{path}: cannot be written: {error.strerror or error}') from None
  return backend.get_vocab_size()


def _count_words(
  texts: Iterable[str], splitter: pre_tokenizers.PreTokenizer, phrases: list[str]
) -> collections.Counter:
  """Counts of the words of the texts, in the alphabet of the bytes."""
  atoms = re.compile('|'.join(map(re.escape, [*SPECIAL_TOKENS, *phrases])))
  counts = collections.Counter()
  for text, repeats in collections.Counter(texts).items():
    for piece in atoms.split(text):
      for word, _ in splitter.pre_tokenize_str(piece):
        counts[word] += repeats
  return counts


def toy_texts(world: World, num_scenes: int = 2000) -> Iterator[str]:
  """Texts about the toy world, as training renders them: prompts, conversations, plain text."""
  rng = np.random.default_rng(world.seed)
  template = prompts.TEMPLATES['deepseek']
  yield prompts.SYSTEM_PROMPT
  asked = [questions.ask(scenes.scene_at(world, 'train', index)) for index in range(num_scenes)]
  phrases = [answer for scene in asked for item in scene if item.kind == 'describe' for answer in item.answers]
  numbers = range(10)
  phrases += [digits.phrase(number) for number in numbers]
  for phrase in phrases:
    yield captions.sample_prompt(phrase, rng)
    yield prompts.render_prompt(template, [captions.sample_prompt(phrase, rng), ''])
  for items in [*asked, *map(questions.ask_digit, numbers)]:
    turns = questions.sample_turns(items, rng, len(items))
    yield ' '.join(turns[:2])
    yield prompts.render_prompt(template, prompts.place_images(turns, 1), prompts.SYSTEM_PROMPT)
