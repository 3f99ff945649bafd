"""Janus's special tokens in a `tokenizer.json`: finding their ids, and adding the tokens where a base lacks them.

Ids differ between the released checkpoints, so they are always resolved by the tokens' strings. The file is the
format of the `tokenizers` library; only its `added_tokens`, `model.vocab` and `post_processor` are touched here.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from janus_jax.conversion.config_section import json_object
from janus_jax.errors import InputError

BOS = '<｜begin▁of▁sentence｜>'  # noqa: RUF001
EOS = '<｜end▁of▁sentence｜>'  # noqa: RUF001
PAD = '<｜▁pad▁｜>'  # noqa: RUF001
BEGIN_OF_IMAGE = '<begin_of_image>'
END_OF_IMAGE = '<end_of_image>'
IMAGE_PLACEHOLDER = '<image_placeholder>'
USER = '<|User|>'
ASSISTANT = '<|Assistant|>'

# In the released files these stand between the placeholder and the roles; no Janus code uses them.
_GROUNDING = ('<patch_placeholder>', '<|ref|>', '<|/ref|>', '<|det|>', '<|/det|>', '<|grounding|>')
ADDITIONAL = (IMAGE_PLACEHOLDER, *_GROUNDING, USER, ASSISTANT)
_NEEDED = (PAD, BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE_PLACEHOLDER, USER, ASSISTANT)
# The ids of the released files between the two image tokens: 576 that no released code uses.
_UNUSED = tuple(f'<|unused_{i:03}|>' for i in range(576))
_RELEASED = (PAD, BEGIN_OF_IMAGE, *_UNUSED, END_OF_IMAGE, *ADDITIONAL)


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
  """Vocabulary ids. `user` and `assistant` are None in Janus-1.3B's tokenizer, whose roles are plain words."""

  bos: int
  eos: int
  pad: int
  begin_of_image: int
  end_of_image: int
  image_placeholder: int
  user: int | None
  assistant: int | None


def special_token_ids(tokenizer_json: bytes) -> SpecialTokens:
  """Resolves the ids of Janus's special tokens by their strings.

  Where `<image_placeholder>` is absent its id is the next free one: DeepSeek's processor appends the token when it
  loads such a tokenizer (`VLChatProcessor.__init__`), and so does `complete_tokenizer`.

  Raises:
    InputError: not a tokenizer.json, or a token is missing.
  """
  ids = token_ids(tokenizer_json)
  required = (BOS, EOS, PAD, BEGIN_OF_IMAGE, END_OF_IMAGE)
  for token in required:
    if token not in ids:
      raise InputError(f'tokenizer.json: token {token} is missing: expected the tokenizer of a Janus')
  image_placeholder = ids.get(IMAGE_PLACEHOLDER, _next_id(ids))
  return SpecialTokens(*(ids[token] for token in required), image_placeholder, ids.get(USER), ids.get(ASSISTANT))


def token_ids(tokenizer_json: bytes) -> dict[str, int]:
  """Every token, special or not -> its id; InputError where it is not a tokenizer.json."""
  return _ids(_parse(tokenizer_json))


def extend_tokenizer(tokenizer_json: bytes, vocab_size: int, role_tokens: bool = True) -> bytes:
  """Adds the special tokens that a base tokenizer lacks; ids that exist stay what they are.

  A base without any token of Janus (DeepSeek-LLM) gets the layout of the released 7B, ids included: padding,
  `<begin_of_image>`, 576 unused, `<end_of_image>`, `<image_placeholder>`, six grounding tokens, the two roles.
  Where that does not fit, or some tokens are there already, what is missing takes the next free ids.

  Args:
    tokenizer_json: content of the base's tokenizer.json.
    vocab_size: rows of the model's token table.
    role_tokens: whether it is to have `<|User|>` and `<|Assistant|>`. Janus-1.3B's has none.

  Returns:
    The new content; the same bytes where nothing was missing.

  Raises:
    InputError: not a tokenizer.json, ids with gaps, the tokens do not fit into `vocab_size`, or it has role tokens
      that it is not to have.
  """
  tokenizer = _parse(tokenizer_json)
  ids = _ids(tokenizer)
  base = [token for token in (BOS, EOS) if token not in ids]
  unwanted = () if role_tokens else (USER, ASSISTANT)
  if present := [token for token in unwanted if token in ids]:
    raise InputError(f'tokenizer.json: has {present[0]}: expected no role tokens, as roles are to be plain words')
  needed, released = ([token for token in tokens if token not in unwanted] for tokens in (_NEEDED, _RELEASED))
  new = [*base, *(token for token in needed if token not in ids)]
  if not new:
    return tokenizer_json
  next_id = _next_id(ids)
  room = vocab_size - next_id
  if not any(token in ids for token in released) and len(base) + len(released) <= room:
    new = [*base, *released]
  if len(new) > room:
    raise InputError(
      f'tokenizer.json: {len(new)} special tokens to add after id {next_id - 1}: '
      f'expected a vocab_size of at least {vocab_size + len(new) - room}, not {vocab_size}'
    )
  return _serialize(_with_tokens(tokenizer, new))


def complete_tokenizer(tokenizer_json: bytes) -> bytes:
  """Adds what released tokenizers leave to the code that loads them: the image placeholder and the leading BOS.

  DeepSeek's processor appends `<image_placeholder>` where it is absent, and `LlamaTokenizerFast` of transformers 4
  puts BOS in front of every text; transformers 5 does neither. Returns the same bytes where nothing was missing.

  Raises:
    InputError: not the tokenizer.json of a Janus.
  """
  bos_id = special_token_ids(tokenizer_json).bos
  tokenizer = completed = _parse(tokenizer_json)
  if IMAGE_PLACEHOLDER not in _ids(tokenizer):
    completed = _with_tokens(completed, [IMAGE_PLACEHOLDER])
  if BOS not in json.dumps(tokenizer.get('post_processor'), ensure_ascii=False):
    completed = {**completed, 'post_processor': _bos_template(bos_id)}
  return tokenizer_json if completed is tokenizer else _serialize(completed)


def _parse(tokenizer_json: bytes) -> dict[str, Any]:
  tokenizer = json_object(tokenizer_json, 'tokenizer.json')
  model = tokenizer.get('model')
  if not isinstance(model, dict) or not isinstance(model.get('vocab'), dict):
    raise InputError('tokenizer.json: model.vocab is missing: expected the byte-level BPE of DeepSeek-LLM')
  added = tokenizer.get('added_tokens') or []
  if not isinstance(added, list) or not all(
    isinstance(token, dict) and {'content', 'id'} <= set(token) for token in added
  ):
    raise InputError('tokenizer.json: added_tokens is not what the tokenizers library writes: expected content and id')
  return tokenizer


def _serialize(tokenizer: dict[str, Any]) -> bytes:
  return json.dumps(tokenizer, ensure_ascii=False, indent=2).encode()


def _ids(tokenizer: dict[str, Any]) -> dict[str, int]:
  added = {token['content']: token['id'] for token in tokenizer.get('added_tokens') or ()}
  return {**tokenizer['model']['vocab'], **added}


def _next_id(ids: Mapping[str, int]) -> int:
  return max(ids.values(), default=-1) + 1


def _with_tokens(tokenizer: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
  """A copy with special tokens appended.

  The `tokenizers` library numbers added tokens itself, from the size of `model.vocab` on, whatever id the file gives
  them: hence no gaps, neither before nor among them.
  """
  ids = _ids(tokenizer)
  first = _next_id(ids)
  if len(set(ids.values())) != first:
    raise InputError(f'tokenizer.json: ids have gaps: expected {len(ids)} tokens to have ids 0 to {len(ids) - 1}')
  flags = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False, 'special': True}
  new = [{'id': first + i, 'content': token, **flags} for i, token in enumerate(tokens)]
  return {**tokenizer, 'added_tokens': [*(tokenizer.get('added_tokens') or ()), *new]}


def _bos_template(bos_id: int) -> dict[str, Any]:
  """The post-processor that puts BOS in front of each sequence."""
  first, second = (
    [{'SpecialToken': {'id': BOS, 'type_id': i}}, {'Sequence': {'id': sequence, 'type_id': i}}]
    for i, sequence in enumerate('AB')
  )
  special_tokens = {BOS: {'id': BOS, 'ids': [bos_id], 'tokens': [BOS]}}
  return {'type': 'TemplateProcessing', 'single': first, 'pair': [*first, *second], 'special_tokens': special_tokens}
