"""Items as the formats have them to records: what each field means, and what makes an item unusable."""

import base64
import collections
import io
import zlib

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('sklearn')

from data.photographs import cuts, encoded

from janus_jax.data.images import generation_pixels, understanding_pixels
from janus_jax.data.sources.records import Fields, GenerationRecord, Numbered, TextRecord, ToEncode, UnderstandingRecord
from janus_jax.errors import InputError, RecordError

SIZE = 24
PHOTO = cuts(1)[0]


def rng(seed=0):
  return np.random.default_rng(seed)


def understand(item, template='chat', **fields):
  return UnderstandingRecord(Fields(**fields), SIZE, template=template).random_map(('item 0', item), rng())


def generate(item, seed=0, **fields):
  return GenerationRecord(Fields(**fields), SIZE).random_map(('item 0', item), rng(seed))


@pytest.mark.parametrize('number', range(6))
def test_photographs_of_every_format_look_the_same(number):
  _, content = encoded(PHOTO, number)
  found = generate({'prompt': 'roofs', 'image': content})['image']
  expected = generation_pixels(PHOTO.convert('L').convert('RGB') if number == 3 else PHOTO, SIZE)
  assert found.shape == (SIZE, SIZE, 3)
  # JPEG's and WebP's chroma, and CMYK without a profile, cost a few levels; an image on its side costs far more.
  assert np.abs(found.astype(int) - expected).mean() < 6


@pytest.mark.parametrize(
  'turns',
  [
    [{'from': 'human', 'value': '<image>\nWhat?'}, {'from': 'gpt', 'value': 'Roofs.'}],
    [{'role': 'user', 'content': '<image>\nWhat?'}, {'role': 'assistant', 'content': 'Roofs.'}],
    [
      {'from': 'system', 'value': 'Be brief.'},
      {'from': 'human', 'value': '<image>\nWhat?'},
      {'from': 'gpt', 'value': 'Roofs.'},
    ],
    ['<image>\nWhat?', 'Roofs.'],
  ],
)  # fmt: skip
def test_conversations_of_every_style_are_turns(turns):
  _, content = encoded(PHOTO, 1)
  record = understand({'conversations': turns, 'image': {'bytes': content, 'path': 'x.png'}})
  assert record['turns'] == ['<image_placeholder>\nWhat?', 'Roofs.']
  np.testing.assert_array_equal(record['images'][0], understanding_pixels(PHOTO, SIZE))


def test_images_may_be_several_and_paths_and_none(tmp_path):
  paths = []
  for number, image in enumerate(cuts(2)):
    extension, content = encoded(image, number)
    paths.append(f'{number}.{extension}')
    (tmp_path / paths[-1]).write_bytes(content)
  item = {'files': paths, 'chat': ['Which is the first?', 'Roofs.']}
  record = understand(item, image='files', image_folder=str(tmp_path), conversations='chat')
  np.testing.assert_array_equal(record['images'][1], understanding_pixels(cuts(2)[1], SIZE))
  assert understand({'chat': ['Hello?', 'Hello.']}, conversations='chat')['images'] == []


def test_a_caption_becomes_the_answer_to_one_of_the_questions():
  item = {'caption': b'Roofs under trees.', 'image': np.asarray(PHOTO)}
  transform = UnderstandingRecord(Fields(answer='caption', questions=('What is it?', 'Describe it.')), SIZE)
  asked = collections.Counter()
  for seed in range(40):
    question, answer = transform.random_map(('item 0', item), rng(seed))['turns']
    asked[question] += 1
    assert answer == 'Roofs under trees.'
  assert min(asked['What is it?'], asked['Describe it.']) > 5


def test_raw_records_are_what_answers_say():
  """Janus paper: `<image><text>` in Stage I, `<image>Describe the image in detail.<caption>` in Stage II."""
  item = {'caption': ' Roofs.\n', 'image': np.asarray(PHOTO), 'conversations': ['<image>\nWhat?', 'Trees.']}
  for fields, text in (
    ({'answer': 'caption', 'questions': ('',)}, 'Roofs.'),
    ({'answer': 'caption', 'questions': ('Describe it.',)}, 'Describe it.Roofs.'),
    ({}, 'Trees.'),
  ):
    record = understand(item, 'raw', **fields)
    assert record.keys() == {'images', 'text', 'where'}
    assert record['text'] == text
    np.testing.assert_array_equal(record['images'], [understanding_pixels(PHOTO, SIZE)])
  with pytest.raises(
    RecordError, match=r'^item 0: conversations: 4 turns: expected a question and its answer in a raw'
  ):
    understand({'conversations': ['a', 'b', 'c', 'd']}, 'raw')


def png(image):
  return encoded(image, 1)[1]


@pytest.mark.parametrize(
  ('first', 'second'),
  [
    ('text', 'text'),
    ('part', 'part'),  # With its image,
    ('placeholder', 'placeholder'),  # or one of those in the field for images,
    ('placeholder', 'part'),  # or one of each.
  ],
)
def test_images_of_a_document_go_where_it_has_them(first, second):
  photos = cuts(2)
  own = {'part': {'type': 'image', 'image': {'bytes': png(photos[0]), 'path': None}}, 'placeholder': {'type': 'image'}}
  document = 'Cut.<image>Fold.<image_placeholder>Done.'
  others = [png(photo) for photo in photos]
  if first != 'text':
    own_second = {'type': 'image', 'image': np.asarray(photos[1])} if second == 'part' else {'type': 'image'}
    said = [{'type': 'text', 'text': text, 'image': None} for text in ('Cut.', 'Fold.', 'Done.')]
    document = [said[0], own[first], said[1], own_second, said[2]]
    others = [image for image, kind in zip(others, (first, second)) if kind == 'placeholder']
  record = understand({'doc': document, 'image': others}, 'raw', interleaved='doc')
  assert record['text'] == 'Cut.<image_placeholder>Fold.<image_placeholder>Done.'
  np.testing.assert_array_equal(record['images'], [understanding_pixels(photo, SIZE) for photo in photos])


@pytest.mark.parametrize(
  ('item', 'reason', 'message'),
  [
    ({'doc': 'One.<image>', 'image': []}, 'no image', 'doc: 1 placeholders for 0 images: expected one for each'),
    ({'doc': 'One.', 'image': png(PHOTO)}, 'image count', 'doc: 0 placeholders for 1 images'),
    ({'doc': 'One.<image>', 'image': [png(PHOTO)] * 2}, 'image count', 'doc: 1 placeholders for 2 images'),
    ({'doc': [{'type': 'image', 'image': png(PHOTO)}], 'image': png(PHOTO)}, 'image count', 'doc: 0 placeholders'),
    ({'doc': [{'type': 'video'}]}, 'wrong type', r"doc\[0\]: 'video': expected a part of type text or image"),
    ({'doc': ['One.']}, 'wrong type', r'doc\[0\]: None: expected a part'),
    ({'doc': [{'type': 'text'}]}, 'wrong type', r'doc\[0\]: a NoneType: expected text'),
    ({'doc': 3}, 'wrong type', 'doc: a int: expected text'),
    ({'text': 'One.'}, 'missing field', 'doc: missing'),
  ],
)  # fmt: skip
def test_a_document_whose_images_do_not_match_is_refused(item, reason, message):
  with pytest.raises(RecordError, match=f'^item 0: {message}') as caught:
    understand(item, 'raw', interleaved='doc')
  assert caught.value.reason == reason


def test_prompts_are_cut_put_into_templates_and_sampled_from_lists():
  item = {'a': {'b': ['A 1.5 m dog. It barks.', 'Two dogs! Both bark.']}, 'image': np.asarray(PHOTO)}
  fields = {'prompt': 'a/b', 'first_sentence': 0.25, 'prompt_templates': ('{}', 'a photo of {}')}
  found = collections.Counter(generate(item, seed, **fields)['prompt'] for seed in range(400))
  whole = {'A 1.5 m dog. It barks.', 'Two dogs! Both bark.'}
  cut = {'A 1.5 m dog.', 'Two dogs!'}
  assert set(found) == {template.format(text) for text in whole | cut for template in fields['prompt_templates']}
  fraction = sum(count for text, count in found.items() if text.removeprefix('a photo of ') in cut) / 400
  assert abs(fraction - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)


def test_class_numbers_become_the_lines_of_a_file(tmp_path):
  (tmp_path / 'names.txt').write_text('tench\ngoldfish\n')
  names = str(tmp_path / 'names.txt')
  item = {'label': np.int64(1), 'image': np.asarray(PHOTO)}
  assert generate(item, prompt='label', names=names)['prompt'] == 'goldfish'
  with pytest.raises(RecordError, match=r'item 0: class 2: expected a number below 2, the lines of .*names\.txt'):
    generate(item | {'label': 2}, prompt='label', names=names)


def test_what_is_encoded_once_keeps_the_whole_first_caption(tmp_path):
  (tmp_path / 'names.txt').write_text('tench\ngoldfish\n')
  captions = {'__key__': '0001', 'image': 'a.png', 'prompt': [b'A dog. It barks.', b'Another.']}
  fields = Fields(image_folder='/data', first_sentence=1.0, prompt_templates=('a drawing of {}',))
  assert ToEncode([captions], fields)[0] == {'image': '/data/a.png', 'prompt': 'A dog. It barks.', 'key': '0001'}
  labelled = {'image': b'...', 'label': 1}
  named = ToEncode([captions, labelled], Fields(prompt='label', names=str(tmp_path / 'names.txt')))
  assert named[1] == {'image': b'...', 'prompt': 'goldfish', 'key': '1'}


@pytest.mark.parametrize('codes', [np.array([1, 16383, 7], '<u2').tobytes(), [1, 16383, 7]])
def test_codes_are_bytes_or_integers(codes):
  record = generate({'prompt': 'x', 'codes': codes}, codes='codes')
  np.testing.assert_array_equal(record['codes'], [1, 16383, 7])
  assert record['codes'].dtype == np.int32


def truncated():
  content = encoded(PHOTO, 0)[1]
  return content[: len(content) // 2]


def huge():
  """A PNG whose header says 30,000 x 30,000 pixels."""
  file = io.BytesIO()
  Image.new('1', (1, 1)).save(file, 'PNG')
  content = file.getvalue()
  header = content[12:16] + (30_000).to_bytes(4, 'big') * 2 + content[24:29]
  return content[:12] + header + zlib.crc32(header).to_bytes(4, 'big') + content[33:]


@pytest.mark.parametrize(
  ('item', 'reason', 'message'),
  [
    ({'prompt': 'x'}, 'no image', 'image: missing: the item has prompt'),
    ({'image': np.asarray(PHOTO)}, 'missing field', 'prompt: missing'),
    ({'prompt': b'a\xff', 'image': np.asarray(PHOTO)}, 'text', 'prompt: byte 0xff at offset 1: expected UTF-8'),
    ({'prompt': 'half of \ud83d', 'image': np.asarray(PHOTO)}, 'text', 'prompt: surrogates not allowed at 8'),
    ({'prompt': ' ', 'image': np.asarray(PHOTO)}, 'text', 'prompt: empty'),
    ({'prompt': [], 'image': np.asarray(PHOTO)}, 'text', 'prompt: an empty list'),
    ({'prompt': 3, 'image': np.asarray(PHOTO)}, 'wrong type', 'prompt: a int: expected text'),
    ({'prompt': 'x', 'image': truncated()}, 'image damaged', 'image: damaged JPEG'),
    ({'prompt': 'x', 'image': huge()}, 'image too large', 'expected at most .* pixels'),
    ({'prompt': 'x', 'image': 'nowhere.jpg'}, 'image missing', 'image: nowhere.jpg: No such file'),
    ({'prompt': 'x', 'image': 7}, 'wrong type', 'image: a int: expected an image'),
    ({'prompt': 'x', 'image': []}, 'no image', 'image: 0 images: expected one to generate'),
  ],
)  # fmt: skip
def test_an_unusable_item_says_why(item, reason, message):
  with pytest.raises(RecordError, match=f'^item 0: .*{message}') as caught:
    generate(item)
  assert caught.value.reason == reason


def test_unreadable_items_are_refused():
  class Broken:
    def __len__(self):
      return 2

    def where(self, index):
      return f'shard.tar: {index}'

    def __getitem__(self, index):
      raise [InputError('cut off'), RecordError('tar member', 'shard.tar: 1: outside')][index]

  for index, message, reason in ((0, 'cut off', 'unreadable'), (1, 'outside', 'tar member')):
    with pytest.raises(RecordError, match=rf'^shard\.tar: {index}: {message}$') as caught:
      Numbered(Broken())[index]
    assert caught.value.reason == reason


def test_messages_stay_short_whatever_the_values_are():
  long = base64.b64encode(np.random.default_rng(0).bytes(30_000)).decode()
  turns = [{'from': long, 'value': 'x'}, {'from': 'gpt', 'value': long}]
  for call, reason in (
    (lambda: generate({'prompt': 'x', 'image': long}), 'image missing'),
    (lambda: generate({'prompt': 'x', 'image': f'data:image/png,{long}'}), 'image damaged'),
    (lambda: generate({'prompt': 'x', **{long[i : i + 99]: 0 for i in range(0, 30_000, 99)}}), 'no image'),
    (lambda: understand({'conversations': turns}), 'conversation'),
    (lambda: understand({'conversations': long}), 'conversation'),
  ):
    with pytest.raises(RecordError, match=r'^item 0: .*expected|^item 0: .*missing') as caught:
      call()
    assert len(str(caught.value)) < 700, str(caught.value)
    assert caught.value.reason == reason


def test_items_that_are_called_something_say_so():
  items = [{'id': '000123'}, {'key': 'a/b'}, {'id': 'x' * 999}, {}]
  found = [where for where, _ in map(Numbered(items).__getitem__, range(4))]
  assert found[:2] == ['item 0 (id 000123)', 'item 1 (key a/b)']
  assert len(found[2]) < 200
  assert found[3] == 'item 3'


def test_text_is_text():
  record = TextRecord(Fields(text='body')).random_map(('item 3', {'body': b'caf\xc3\xa9'}), rng())
  assert record == {'text': 'café', 'where': 'item 3'}
  chat = {'chat': [{'role': 'user', 'content': 'Tea?'}, {'role': 'assistant', 'content': 'Yes.'}]}
  assert TextRecord(Fields(conversations='chat')).random_map(('', chat), rng())['turns'] == ['Tea?', 'Yes.']


@pytest.mark.parametrize('wrong', [{'first_sentence': 1.5}, {'prompt_templates': ('none',)}, {'questions': ()}])
def test_wrong_fields_are_refused(wrong):
  with pytest.raises(InputError, match=r'expected'):
    Fields(**wrong)
