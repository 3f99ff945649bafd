"""Text to ids and back, through the `tokenizer.json` that comes with a checkpoint."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable

import tokenizers

from janus_jax.data.pointers import check_content
from janus_jax.errors import InputError

FILE_NAME = 'tokenizer.json'
# Bars and lines of the first three are U+FF5C and U+2581, those of the roles ASCII. Ids are found by these strings, as
# nothing else is reliable: they differ between checkpoints (the pad token is 100002 in Janus-Pro-1B, 100015 in 7B), and
# the released tokenizer_config.json says `pad_token: null`.
BOS = '<\uff5cbegin\u2581of\u2581sentence\uff5c>'
EOS = '<\uff5cend\u2581of\u2581sentence\uff5c>'
PAD = '<\uff5c\u2581pad\u2581\uff5c>'
BEGIN_OF_IMAGE = '<begin_of_image>'
END_OF_IMAGE = '<end_of_image>'
IMAGE_PLACEHOLDER = '<image_placeholder>'
USER = '<|User|>'
ASSISTANT = '<|Assistant|>'
# Stands in decoded text for bytes that are not UTF-8, such as the first half of a character.
REPLACEMENT = '\N{REPLACEMENT CHARACTER}'


# In the order of `SpecialIds`.
SPECIAL_TOKENS = (BOS, EOS, PAD, BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE_PLACEHOLDER, USER, ASSISTANT)


@dataclasses.dataclass(frozen=True)
class SpecialIds:
  """Ids of the tokens that Janus gives a meaning. `user` and `assistant` are None where there are none (Janus-1.3B)."""

  bos: int
  eos: int
  pad: int
  begin_of_image: int
  end_of_image: int
  image_placeholder: int
  user: int | None
  assistant: int | None


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A checkpoint's tokenizer. Pickling carries the path; the copy reads the file when first used.

  Special tokens inside a text are parsed as such, as in the original and in `transformers`: a user who types
  "<begin_of_image>" gets that token. Padding and truncation that the file may ask for are not applied.

  Attributes:
    path: a `tokenizers` JSON file. Reading it (when constructed) raises InputError if it is missing, not such a file,
      or lacks one of Janus's special tokens.
    special: resolved by string.
  """

  path: str
  special: SpecialIds = dataclasses.field(init=False, compare=False)

  def __post_init__(self):
    ids = {token: self._backend.token_to_id(token) for token in SPECIAL_TOKENS}
    for token, token_id in ids.items():
      if token_id is None and token not in (USER, ASSISTANT):
        raise InputError(f'{self.path}: no token {token!r}: expected the tokenizer of a Janus')
    object.__setattr__(self, 'special', SpecialIds(*ids.values()))

  def __getstate__(self) -> dict:
    return {'path': self.path, 'special': self.special}

  @classmethod
  def from_directory(cls, directory: str | os.PathLike) -> 'Tokenizer':
    return cls(os.path.join(directory, FILE_NAME))

  @functools.cached_property
  def _backend(self) -> tokenizers.Tokenizer:
    return _read(self.path)

  @functools.cached_property
  def largest_id(self) -> int:
    """The largest id that a text can become."""
    return max(self._backend.get_vocab(with_added_tokens=True).values())

  def encode(self, text: str, add_bos: bool = True) -> list[int]:
    """Raises InputError if `text` cannot be written as UTF-8."""
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise InputError(f'text has {text[error.start]!r} at character {error.start}: expected valid Unicode') from None
    ids = self._backend.encode(text, add_special_tokens=False).ids
    return [self.special.bos, *ids] if add_bos else ids

  def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
    """Ids that no token has (the model's vocabulary is padded) give no text."""
    return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)


class StreamDecoder:
  """Decodes ids as they come. The pieces, with `finish()`, join to what `Tokenizer.decode` gives for all of them.

  A character's bytes may be spread over several tokens, so that a piece is held back until its last character is whole.
  """

  def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
    self._decode = functools.partial(tokenizer.decode, skip_special=skip_special)
    self._context: list[int] = []  # Already emitted; some decoders treat a text's first token differently.
    self._pending: list[int] = []

  def push(self, token_id: int) -> str:
    """Text that `token_id` completes, often one word, possibly ''."""
    self._pending.append(token_id)
    text = self.finish()
    if not text or text.endswith(REPLACEMENT):
      return ''
    self._context, self._pending = self._pending, []
    return text

  def finish(self) -> str:
    """Text that is still held back: '' unless the ids end inside a character."""
    return self._decode(self._context + self._pending)[len(self._decode(self._context)) :]


def _read(path: str) -> tokenizers.Tokenizer:
  try:
    content = pathlib.Path(path).read_bytes()
    check_content(content, path)
    text = content.decode()
  except OSError as error:
    raise InputError(f'{path}: {error.strerror}: expected a tokenizer') from None
  except UnicodeDecodeError:
    raise InputError(f'{path}: not UTF-8: expected the JSON of a tokenizer') from None
  try:
    backend = tokenizers.Tokenizer.from_str(text)
  except Exception as error:  # The library raises nothing narrower; the line above calls nothing else.
    raise InputError(f'{path}: not a tokenizer that `tokenizers` reads ({" ".join(str(error).split())})') from None
  backend.no_truncation()
  backend.no_padding()
  if backend.token_to_id(IMAGE_PLACEHOLDER) is None:
    # Janus-1.3B's file lacks it; the original's processor adds it on loading, which gives it the next free id.
    backend.add_special_tokens([IMAGE_PLACEHOLDER])
  return backend
