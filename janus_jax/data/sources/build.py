"""Sources of records by the entries of a config: a format, the paths of its files, the meaning of its fields."""

import dataclasses
import functools
import logging
import operator
import os
from collections.abc import Mapping
from typing import Any

import grain

from janus_jax.data.examples import TASKS
from janus_jax.data.pointers import check_files
from janus_jax.data.resizing import Resize, pillow
from janus_jax.data.sources import held_out, records
from janus_jax.data.sources.array_record import ArrayRecordExamples
from janus_jax.data.sources.files import expand_home, find_files, local_copy, read_text
from janus_jax.data.sources.folder import ImageFolder
from janus_jax.data.sources.lines import JsonArray, JsonLines, TextDocuments
from janus_jax.data.sources.parquet import ParquetRows
from janus_jax.data.sources.records import KIND_FIELDS, Fields
from janus_jax.data.sources.tars import TarSamples
from janus_jax.data.sources.tfds_builders import TfdsExamples
from janus_jax.errors import InputError

FORMATS = ('array_record', 'folder', 'json', 'json_lines', 'parquet', 'tars', 'text', 'tfds')
TEMPLATES = ('chat', 'raw')
# Names of a format's files, where `path` is a folder.
FILE_NAMES: Mapping[str, tuple[str, ...]] = {
  'array_record': ('*.array_record', '*.array_record-*'),
  'json': ('*.json', '*.json.gz'),
  'json_lines': ('*.jsonl', '*.ndjson', '*.jsonl.gz', '*.ndjson.gz'),
  'parquet': ('*.parquet',),
  'tars': ('*.tar',),
  'text': ('*.txt', '*.txt.gz'),
}
# The endings of the image in a sample of a tar, where nothing is said.
ANY_IMAGE = 'jpg;jpeg;png;webp;gif;bmp;tif;tiff;ppm;jp2;avif'
# Treatments of a record longer than a row, by kind and template; the default comes first. 'cut' keeps the first turns
# that fit, 'split' makes several examples of it, 'skip' leaves it out.
LONG: Mapping[tuple[str, str], tuple[str, ...]] = {
  ('understanding', 'chat'): ('cut', 'skip'),
  ('understanding', 'raw'): ('skip',),
  ('text', 'chat'): ('cut', 'skip'),
  ('text', 'raw'): ('split', 'skip'),
  ('generation', 'chat'): ('skip',),
  ('generation', 'raw'): ('skip',),
}


@dataclasses.dataclass(frozen=True)
class SourceSpec:
  """One entry of `config.data.sources`.

  Attributes:
    name: used by stages to refer to the source.
    kind: task that its records are for, one of `examples.TASKS`.
    format: one of FORMATS.
    path: paths, patterns (`files.find_files`) or folders; for 'folder' a directory, for 'tfds' the builder's name.
    fields: meaning of the items' fields.
    template: 'chat' puts what records say into turns of user and assistant. 'raw' leaves them as Janus is pretrained:
      `<image><text>`, of which all text is supervised, `<caption><image>`, documents.
    long: treatment of records that are longer than a row, of `LONG`.
    system: comes before a conversation; None for the vision system prompt in understanding and nothing in text.
    split: part of a TFDS dataset: 'train', 'train[:90%]'.
    directory: `data_dir` of a TFDS builder.
    held_out: records, spread over the source, that are kept out of training to measure the loss on; a tenth where there
      are no more than that.
  """

  name: str
  kind: str
  format: str
  path: tuple[str, ...]
  fields: Fields
  template: str
  long: str
  system: str | None = None
  split: str = 'train'
  directory: str = ''
  held_out: int = 0


NUMBERS = {int: (int, 'an integer that is not negative'), float: (int | float, 'a number that is not negative')}
TYPES = {field.name: field.type for kind in (SourceSpec, Fields) for field in dataclasses.fields(kind)}


@dataclasses.dataclass(frozen=True)
class ImageSizes:
  """Sides in pixels of the images to understand and to generate, and the filter that resizes them."""

  understanding: int
  generation: int
  resize: Resize = pillow


def read_specs(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, SourceSpec]:
  """`config.data.sources` as specs. `~` in paths becomes the home directory.

  Raises:
    InputError: an entry lacks a field, has one that nobody reads, or one of a wrong value.
  """
  return {name: _read_spec(name, entry) for name, entry in entries.items()}


def _read_spec(name: str, entry: Mapping[str, Any]) -> SourceSpec:
  where = f'data.sources.{name}'
  for field, allowed in (('kind', TASKS), ('format', FORMATS)):
    if entry.get(field) not in allowed:
      raise InputError(f'{where}.{field} is {entry.get(field)!r}: expected one of {", ".join(allowed)}')
  if not entry.get('path'):
    raise InputError(f'{where}.path is missing: expected where its files are')
  own = {field.name for field in dataclasses.fields(SourceSpec)} - {'name', 'fields'}
  meant = set(KIND_FIELDS[entry['kind']])
  if unknown := sorted(set(entry) - own - meant):
    raise InputError(f'{where}.{unknown[0]}: expected one of {", ".join(sorted(own | meant))}')
  values = {key: _checked(f'{where}.{key}', value, TYPES[key]) for key, value in entry.items()}
  values['path'] = tuple(map(expand_home, values['path']))
  values |= {key: expand_home(values[key]) for key in ('image_folder', 'names', 'directory') if key in values}
  if values['format'] == 'tars' and 'image' in meant:
    values.setdefault('image', ANY_IMAGE)
  if values['format'] == 'tars' and values.get('prompt') == 'cls' and not values.get('names'):
    raise InputError(f'{where}.names is missing: expected a file of class names, as prompt is cls, a class number')
  values |= _read_form(where, values)
  if values['template'] == 'raw' and 'questions' in meant:
    values.setdefault('questions', ('',))
  try:
    fields = Fields(**{key: values[key] for key in values.keys() & meant})
  except InputError as error:
    raise InputError(f'{where}: {error}') from None
  return SourceSpec(name=name, fields=fields, **{key: values[key] for key in values.keys() & own})


def _read_form(where: str, entry: Mapping[str, Any]) -> dict[str, str]:
  """`template` and `long` of an entry, by default those that fit it.

  Raises:
    InputError: one of them, or `system`, that does not fit the rest of the entry.
  """
  kind, allowed, because = entry['kind'], TEMPLATES, ''
  if entry.get('interleaved') and (other := [name for name in ('answer', 'conversations') if entry.get(name)]):
    raise InputError(f'{where}.{other[0]}: expected none beside interleaved')
  if kind == 'text':
    allowed = ('chat',) if entry.get('conversations') else ('raw',)
    because = f', as it has {"" if entry.get("conversations") else "no "}conversations'
  elif entry.get('interleaved'):
    allowed, because = ('raw',), ', as it is interleaved'
  template = entry.get('template', allowed[0])
  if template not in allowed:
    raise InputError(f'{where}.template is {template!r}: expected {" or ".join(allowed)}{because}')
  if 'system' in entry and (template == 'raw' or kind == 'generation'):
    raise InputError(f'{where}.system: expected none, as only conversations begin with it')
  long = entry.get('long', LONG[kind, template][0])
  if long not in LONG[kind, template]:
    expected = ' or '.join(LONG[kind, template])
    raise InputError(f'{where}.long is {long!r}: expected {expected}, as kind is {kind} and template is {template}')
  return {'template': template, 'long': long}


def _checked(where: str, value: Any, wanted: Any) -> Any:
  """A value of an entry as its dataclass has it. Raises InputError if it is of another type, or a negative number."""
  if wanted == tuple[str, ...]:  # ConfigDict has tuples where a config wrote lists, and strings where it wrote one.
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(text, str) for text in found):
      raise InputError(f'{where} is {value!r}: expected text, or several')
    return tuple(found)
  types, expected = NUMBERS.get(wanted, (str, 'text'))
  if not isinstance(value, types) or isinstance(value, bool) or (types is not str and value < 0):
    raise InputError(f'{where} is {value!r}: expected {expected}')
  return value


def items(spec: SourceSpec, index_directory: str) -> Any:
  """The items of a source, by index, as its format has them.

  Args:
    spec: the source.
    index_directory: for indices, and for copies of ArrayRecord files in buckets and of compressed text.

  Raises:
    InputError: files that are not there, or not of the format.
  """
  # For array_record, which opens local files only.
  copies = os.path.join(index_directory, 'copies')
  match spec.format:
    case 'tfds':
      name, directory = spec.path[0], spec.directory
      if '://' in directory:
        builder = name.split('/')[0].split(':')[0]
        directory = os.path.dirname(local_copy(f'{directory.rstrip("/")}/{builder}', copies))
      numbers = bool(spec.fields.names)
      return TfdsExamples(name, directory, spec.split, number_classes=numbers, used=_field_names(spec))
    case 'folder':
      return ImageFolder(spec.path[0], index_directory)
  paths = find_files(spec.path, FILE_NAMES[spec.format])
  check_files(paths)
  match spec.format:
    case 'array_record':
      return ArrayRecordExamples([local_copy(path, copies) for path in paths])
    case 'parquet':
      return ParquetRows(paths, tuple(dict.fromkeys(name.split('/')[0] for name in _field_names(spec))))
  readers = {'json': JsonArray, 'json_lines': JsonLines, 'tars': TarSamples, 'text': TextDocuments}
  return readers[spec.format](paths, index_directory)


def _field_names(spec: SourceSpec) -> tuple[str, ...]:
  """The fields that a source's records are made of."""
  fields = spec.fields
  match spec.kind:
    case 'text':
      names = [fields.conversations or fields.text]
    case 'generation':
      names = [fields.prompt, fields.codes or fields.image, fields.grid]
    case 'understanding':
      names = [fields.image, fields.interleaved or fields.answer or fields.conversations or 'conversations']
  return tuple(name for name in names if name)


def _records(spec: SourceSpec, found: Any, sizes: ImageSizes, seed: int) -> grain.MapDataset:
  """Items of a source to records."""
  match spec.kind:
    case 'understanding':
      transform = records.UnderstandingRecord(spec.fields, sizes.understanding, sizes.resize, spec.template)
    case 'text':
      transform = records.TextRecord(spec.fields)
    case 'generation':
      transform = records.GenerationRecord(spec.fields, sizes.generation, sizes.resize)
  form = {'source': spec.name, 'template': spec.template, 'long': spec.long}
  form |= {} if spec.system is None else {'system': spec.system}
  made = grain.MapDataset.source(records.Numbered(found)).seed(seed).random_map(transform)
  return made.map(functools.partial(operator.or_, form))


def open_sources(
  specs: Mapping[str, SourceSpec], sizes: ImageSizes, seed: int, index_directory: str
) -> dict[str, dict[str, dict[str, grain.MapDataset]]]:
  """All sources, opened: {'train' or 'held_out': {kind: {name: records}}}.

  Args:
    specs: from `read_specs`.
    sizes: sides of the images that records hold.
    seed: for what is sampled for each record.
    index_directory: for indices and copies, as in `items`.

  Raises:
    InputError: as `items`; no records, a file of class names that is not there.
  """
  opened = {split: {kind: {} for kind in TASKS} for split in ('train', 'held_out')}
  for spec in specs.values():
    if spec.fields.names:
      read_text(spec.fields.names)
    found = items(spec, index_directory)
    if not len(found):
      raise InputError(f'data.sources.{spec.name}: no records in {", ".join(spec.path)}: expected at least one')
    count = spec.held_out
    if len(found) <= count:
      count = len(found) // 10
      logging.warning(
        'data.sources.%s: %d records: %d are held out, not %d', spec.name, len(found), count, spec.held_out
      )
    blocks = found.block_sizes if spec.format == 'parquet' else None
    train, held = held_out.split(_records(spec, found, sizes, seed), count, blocks)
    opened['train'][spec.kind][spec.name] = train
    if count:
      opened['held_out'][spec.kind][spec.name] = held
  return opened
