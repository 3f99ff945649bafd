"""Sources of every format, as a config names them, through the stream that training reads."""

import collections
import dataclasses
import itertools
import multiprocessing
import re
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversion.fixtures import ASSISTANT, BOI, BOS, EOI, EOS, IMAGE, JANUS_TOKENS, USER, make_tokenizer

pytest.importorskip('sklearn')

from data import datasets
from data.datasets import ITEMS, NAMES

from janus_jax.data import prompts
from janus_jax.data.examples import CODE, ExampleSpec, make_examples
from janus_jax.data.images import understanding_pixels
from janus_jax.data.mixture import make_mixture, shuffled
from janus_jax.data.packing import BatchShape
from janus_jax.data.pipeline import LOGGED, StreamOptions, batches
from janus_jax.data.resizing import pillow
from janus_jax.data.skipping import SkipLimit, describe_skipped
from janus_jax.data.sources import records
from janus_jax.data.sources.build import ImageSizes, open_sources, read_specs
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import InputError, RecordError

SIZES = ImageSizes(24, 16)
SHAPE = BatchShape(4, 120, 16, 16)
RATIO = tuple(map(len, NAMES.values()))
WEIGHTS = {kind: dict.fromkeys(names, 1) for kind, names in NAMES.items()}
WORD = re.compile(rf'({"|".join(itertools.chain.from_iterable(NAMES.values()))})\d')


@pytest.fixture(scope='module')
def entries(tmp_path_factory):
  return datasets.write(tmp_path_factory.mktemp('datasets') / 'data')


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  directory = tmp_path_factory.mktemp('tokenizer')
  (directory / 'tokenizer.json').write_bytes(make_tokenizer((BOS, EOS, *JANUS_TOKENS)))
  tokenizer = Tokenizer.from_directory(directory)
  return ExampleSpec(tokenizer, prompts.TEMPLATES['deepseek'], 3, 5, 24, 16, 120, system='')


def words(batch, spec) -> list[str]:
  """The word that each example of a batch says."""
  found = []
  for row, segments in zip(batch['tokens'], batch['segments']):
    for segment in range(1, segments.max() + 1):
      text = spec.tokenizer.decode(row[segments == segment]).replace(' ', '')
      found.append(WORD.search(text).group())
  return found


def stream(entries, spec, directory, states=None, **options):
  sources = open_sources(read_specs(entries), SIZES, 0, str(directory))['train']
  return batches(sources, make_mixture(RATIO, WEIGHTS), spec, SHAPE, StreamOptions(0, **options), states)


def test_each_sample_of_every_format_comes_once_an_epoch_stopped_or_not(entries, spec, tmp_path):
  seen, state = [], None
  for workers, number in ((0, 3), (2, 4), (0, 40)):
    found = stream(entries, spec, tmp_path, workers=workers, states=state and [state])
    for _ in range(number):
      seen += words(next(found), spec)
      state = found.get_state()['streams'][0]
      if state['index'] >= 3 * ITEMS * sum(RATIO):
        break
    found.close()
  counts = collections.Counter(seen)
  assert len(counts) == ITEMS * sum(RATIO)
  for kind, names in NAMES.items():
    for name in names:
      epochs, rest = divmod(state['examples'][f'{kind}/{name}'], ITEMS)
      found = collections.Counter(counts[f'{name}{i}'] for i in range(ITEMS))
      assert found == collections.Counter({epochs: ITEMS - rest, epochs + 1: rest}) - collections.Counter(), name
  assert not describe_skipped([state])


def test_records_are_held_out_once_and_not_trained_on(entries, tmp_path):
  held = {name: entry | {'held_out': 2} for name, entry in entries.items()}
  opened = open_sources(read_specs(held), SIZES, 0, str(tmp_path))
  for split, count in (('train', ITEMS - 2), ('held_out', 2)):
    assert {len(source) for kind in opened[split].values() for source in kind.values()} == {count}
  said = {split: set() for split in opened}
  for split, sources in opened.items():
    records = sources['generation']['records']
    said[split] = {records[index]['prompt'] for index in range(len(records))}
  assert said['train'] | said['held_out'] == {f'records{i}' for i in range(ITEMS)}
  assert not said['train'] & said['held_out']
  assert said['held_out'] != {'records4', 'records5'}


def test_of_a_small_source_a_tenth_is_held_out(entries, tmp_path, caplog):
  opened = open_sources(read_specs({'llava': entries['llava'] | {'held_out': 6}}), SIZES, 0, str(tmp_path))
  assert len(opened['train']['understanding']['llava']) == ITEMS
  assert opened['held_out']['understanding'] == {}
  assert 'data.sources.llava: 6 records: 0 are held out, not 6' in caplog.text


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'kind': 'vision'}, r"data.sources.x.kind is 'vision': expected one of understanding, text, generation"),
    ({'format': 'csv'}, r"data.sources.x.format is 'csv': expected one of array_record, "),
    ({'path': ''}, r'data.sources.x.path is missing'),
    ({'caption': 'txt'}, r'data.sources.x.caption: expected one of .*prompt'),
    ({'text': 'txt'}, r'data.sources.x.text: expected one of .*prompt'),
    ({'first_sentence': 2}, r'data.sources.x: first_sentence is 2: expected a fraction'),
    ({'path': '/nowhere/*.tar'}, r'/nowhere/\*.tar: no such file'),
    ({'format': 'parquet'}, r'00000.tar: .*expected a parquet file'),
    ({'format': 'tfds', 'path': 'no_such_dataset'}, r'TFDS no_such_dataset: .*expected the name of a TFDS dataset'),
    ({'held_out': -1}, r'data.sources.x.held_out is -1: expected an integer that is not negative'),
    ({'held_out': 2.5}, r'data.sources.x.held_out is 2.5: expected an integer'),
    ({'image': 3}, r'data.sources.x.image is 3: expected text'),
    ({'names': '/nowhere.txt'}, r'/nowhere.txt: No such file'),
    ({'template': 'xml'}, r"^data\.sources\.x\.template is 'xml': expected chat or raw$"),
    ({'template': 7}, r'^data\.sources\.x\.template is 7: expected text$'),
    ({'system': 'Be brief.'}, r'^data\.sources\.x\.system: expected none, as only conversations begin with it$'),
    (
      {'long': 'split'},
      r"^data\.sources\.x\.long is 'split': expected skip, as kind is generation and template is chat$",
    ),
    ({'long': 'cut', 'template': 'raw'}, r"^data\.sources\.x\.long is 'cut': expected skip, .* and template is raw$"),
  ],
)
def test_a_wrong_entry_is_refused(entries, change, message, tmp_path):
  with pytest.raises(InputError, match=message):
    open_sources(read_specs({'x': entries['web'] | change}), SIZES, 0, str(tmp_path))


@pytest.mark.parametrize(('format', 'content'), [('json', '[]'), ('json_lines', ''), ('text', ' \n\n')])
def test_a_source_without_records_is_refused(format, content, tmp_path):
  (tmp_path / 'x').write_text(content)
  entry = {'kind': 'text', 'format': format, 'path': str(tmp_path / 'x')}
  with pytest.raises(InputError, match=r'data\.sources\.a: no records in .*/x: expected at least one$'):
    open_sources(read_specs({'a': entry}), SIZES, 0, str(tmp_path / 'index'))


def test_names_of_classes_in_a_file_of_another_encoding(tmp_path):
  (tmp_path / 'names').write_bytes('Katze\r\ngrün\u2028\r\n'.encode('utf-16'))
  (tmp_path / 'x.jsonl').write_text('{"label": 1, "image": 3}')
  entry = {'kind': 'generation', 'format': 'json_lines', 'path': str(tmp_path), 'prompt': 'label'}
  spec = read_specs({'a': entry | {'names': str(tmp_path / 'names')}})['a']
  assert records._prompt({'label': 1}, spec.fields, np.random.default_rng(0)) == 'grün'
  (tmp_path / 'other').write_bytes(b'Katze\ngr\xfcn')
  with pytest.raises(InputError, match='other: byte 0xfc at offset 8: expected UTF-8'):
    open_sources(read_specs({'a': entry | {'names': str(tmp_path / 'other')}}), SIZES, 0, str(tmp_path / 'index'))


TEXT = {'kind': 'text', 'format': 'text', 'path': 'x.txt'}
TALKS = {'kind': 'text', 'format': 'json', 'path': 'x.json', 'conversations': 'talk'}
CAPTIONS = {'kind': 'understanding', 'format': 'json', 'path': 'x.json', 'answer': 'caption'}
INTERLEAVED = {'kind': 'understanding', 'format': 'json', 'path': 'x.json', 'interleaved': 'doc'}


@pytest.mark.parametrize(
  ('entry', 'change', 'message'),
  [
    (TEXT, {'template': 'chat'}, r"template is 'chat': expected raw, as it has no conversations$"),
    (TEXT, {'long': 'cut'}, r"long is 'cut': expected split or skip, as kind is text and template is raw$"),
    (TEXT, {'system': ''}, r'system: expected none'),
    (TALKS, {'template': 'raw'}, r"template is 'raw': expected chat, as it has conversations$"),
    (TALKS, {'long': 'split'}, r"long is 'split': expected cut or skip, as kind is text and template is chat$"),
    (TALKS, {'system': 3}, r'system is 3: expected text$'),
    (CAPTIONS, {'template': 'raw', 'system': ''}, r'system: expected none'),
    (CAPTIONS, {'template': 'raw', 'long': 'cut'}, r"long is 'cut': expected skip, as kind is understanding"),
    (INTERLEAVED, {'template': 'chat'}, r"template is 'chat': expected raw, as it is interleaved$"),
    (INTERLEAVED, {'answer': 'caption'}, r'answer: expected none beside interleaved$'),
    (INTERLEAVED, {'long': 'split'}, r"long is 'split': expected skip"),
  ],
)
def test_what_records_cannot_become_is_refused(entry, change, message):
  with pytest.raises(InputError, match=rf'^data\.sources\.x\.{message}'):
    read_specs({'x': {**entry, **change}})


def test_what_records_become_where_nothing_is_said():
  specs = read_specs({'text': TEXT, 'talks': TALKS, 'captions': CAPTIONS, 'interleaved': INTERLEAVED})
  found = {name: (spec.template, spec.long, spec.system) for name, spec in specs.items()}
  assert found == {
    'text': ('raw', 'split', None),
    'talks': ('chat', 'cut', None),
    'captions': ('chat', 'cut', None),
    'interleaved': ('raw', 'skip', None),
  }


def test_the_form_of_a_source_is_that_of_its_examples(entries, spec, tmp_path):
  """From an entry of a config to the text of the example, for each kind."""
  forms = {
    'llava': {'system': 'Be brief.', 'long': 'skip'},
    'table': {'template': 'raw', 'questions': 'Describe it. '},
    'talks': {'system': 'Be kind.'},
    'web': {'template': 'raw'},
  }
  begin = {
    'llava': f'{BOS}Be brief.\n\n{USER}: {BOI}{IMAGE * 3}{EOI}\nWhat?\n\n{ASSISTANT}: llava0{EOS}',
    'table': f'{BOS}{BOI}{IMAGE * 3}{EOI}Describe it. table0{EOS}',
    'talks': f'{BOS}Be kind.\n\n{USER}: Hello?\n\n{ASSISTANT}: talks0{EOS}',
    'web': f'{BOS}web0{BOI}',
  }
  specs = read_specs({name: entries[name] | form for name, form in forms.items()})
  opened = open_sources(specs, SIZES, 0, str(tmp_path))['train']
  for kind, sources in opened.items():
    for name, source in sources.items():
      (example,) = make_examples(kind, source[0], spec, np.random.default_rng(0), 0.0)
      said = spec.tokenizer.decode(example.tokens[example.token_types != CODE], skip_special=False)
      assert said == begin[name]
  two_turns = opened['understanding']['llava'][1]
  (whole,) = make_examples('understanding', two_turns, spec, np.random.default_rng(0))
  short = dataclasses.replace(spec, max_length=len(whole.tokens) - 1)
  with pytest.raises(
    RecordError, match=r'^\S*/llava\.json: item 1 \(id 1\): .*sequence_length \(see data\.sources\.llava\.long'
  ):
    make_examples('understanding', two_turns, short, np.random.default_rng(0))
  (cut,) = make_examples('understanding', {**two_turns, 'long': 'cut'}, short, np.random.default_rng(0))
  assert cut.cut


def test_documents_with_images_come_from_parquet_too(spec, tmp_path):
  """Parts are structs there: a part of text has an image that is null."""
  photos = [datasets.encoded(image, 1)[1] for image in datasets.cuts(2)]
  rows = [
    {'doc': [{'type': 'text', 'text': 'One.', 'image': None}, {'type': 'image', 'text': None, 'image': photo}]}
    for photo in photos
  ]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'x.parquet')
  entry = {'kind': 'understanding', 'format': 'parquet', 'path': str(tmp_path / 'x.parquet'), 'image': ''}
  sources = open_sources(read_specs({'x': entry | {'interleaved': 'doc'}}), SIZES, 0, str(tmp_path))['train']
  for i in range(2):
    record = sources['understanding']['x'][i]
    assert record['text'] == f'One.{IMAGE}'
    expected = understanding_pixels(datasets.cuts(2)[i], SIZES.understanding, resize=pillow)
    np.testing.assert_array_equal(record['images'], [expected])


def test_rows_of_a_row_group_are_read_together(entries, tmp_path):
  """Four rows and two, in an order that differs between epochs."""
  source = open_sources(read_specs({'table': entries['table']}), SIZES, 0, str(tmp_path))['train']['understanding']
  view, orders = shuffled(source['table'], 0, 'table'), set()
  for epoch in range(12):
    rows = [int(view[epoch * ITEMS + position]['turns'][1][-1]) for position in range(ITEMS)]
    assert {frozenset(rows[:4]), frozenset(rows[:2])} & {frozenset(range(4)), frozenset((4, 5))}, rows
    assert sorted(rows) == list(range(ITEMS))
    orders.add(tuple(rows))
  assert len(orders) > 6


def test_closing_a_stream_ends_its_workers(entries, spec, tmp_path):
  found = stream(entries, spec, tmp_path, workers=2, prefetch=2)
  next(found)
  workers = multiprocessing.active_children()
  assert len(workers) == 2
  found.close()
  # Not join: the pool joins them too, and for a moment whoever comes second takes them to be alive.
  end = time.monotonic() + 60
  while any(worker.is_alive() for worker in workers) and time.monotonic() < end:
    time.sleep(0.05)
  assert not any(worker.is_alive() for worker in workers)


def test_poisoned_records_are_counted_by_reason(entries, spec, tmp_path, caplog):
  """One record in ten is bad, each in its own way."""
  good = (tmp_path / 'good.jpg', (tmp_path / 'good.jpg').write_bytes(datasets.encoded(datasets.cuts(1)[0], 0)[1]))[0]
  cut = tmp_path / 'cut.jpg'
  cut.write_bytes(good.read_bytes()[:900])
  bad = [
    b'{"image": "%s", "prompt": "cut"}' % bytes(cut),
    b'{"image": "%s", "prompt": "\xff"}' % bytes(good),
    b'{"image": "/nowhere.jpg", "prompt": "missing"}',
    b'{"prompt": "no image"}',
    b'{"image": "%s", "prompt": 3}' % bytes(good),
  ]
  lines = [b'{"image": "%s", "prompt": "web%d"}' % (bytes(good), i % 10) for i in range(45)]
  (tmp_path / 'x.jsonl').write_bytes(b'\n'.join([*lines[:20], *bad, *lines[20:]]))
  entry = {'kind': 'generation', 'format': 'json_lines', 'path': str(tmp_path / 'x.jsonl')}
  sources = open_sources(read_specs({'x': entry}), SIZES, 0, str(tmp_path))['train']
  arguments = (sources, make_mixture((0, 0, 1), {'generation': {'x': 1}}), spec, SHAPE)
  found = batches(*arguments, StreamOptions(0, skip_limit=SkipLimit(fraction=0.2, after=20), workers=2))
  state = found.get_state()['streams'][0]
  while state['examples']['generation/x'] + sum(state['skipped']['generation/x'].values()) < 7 * 50:
    next(found)
    state = found.get_state()['streams'][0]
  found.close()
  counts, read = state['skipped']['generation/x'], sum(state['skipped']['generation/x'].values())
  epochs = (state['examples']['generation/x'] + read) / 50
  assert counts.keys() == {'image damaged', 'image missing', 'text', 'no image', 'wrong type'}
  for reason in counts:
    assert int(epochs) <= counts[reason] <= int(epochs) + 1
  logged = [record.getMessage() for record in caplog.records if record.getMessage().startswith('Skipped a record')]
  assert len(logged) == sum(min(count, LOGGED) for count in counts.values()) < read
  with pytest.raises(
    InputError, match=r'^source generation/x: \d+ of \d+ .*\(.*image \w+ \d.*\).*5.0% \(config\.max_bad'
  ):
    list(batches(*arguments, StreamOptions(0, skip_limit=SkipLimit(fraction=0.05, after=20))))
