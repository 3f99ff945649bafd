"""Sources of records from what a config says about each: a format, where its files are, what its fields mean."""

import dataclasses
import functools
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
# What a format's files are called, where `path` is a folder.
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
# What can become of a record longer than a row, by kind and template; the default comes first. 'cut' keeps the first
# turns that fit, 'split' makes several examples of it, 'skip' leaves it out.
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
    name: of the entry; stages refer to it.
    kind: of the records, one of `examples.TASKS`.
    format: one of FORMATS.
    path: of the files: paths, patterns (`files.find_files`) or folders; for 'folder' a directory, for 'tfds' the
      builder's name.
    fields: what the items' fields mean.
    template: 'chat' puts what records say into turns of user and assistant. 'raw' leaves them as Janus is pretrained:
      `<image><text>`, of which all text is supervised, `<caption><image>`, documents.
    long: what becomes of records that are longer than a row, of `LONG`.
    system: comes before a conversation; None for the vision system prompt in understanding and nothing in text.
    split: of a TFDS builder.
    directory: `data_dir` of a TFDS builder.
    held_out: how many records, spread over the source, are kept out of training to measure the loss on.
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


# Of every field of an entry that has one; their types are what a config may give.
DEFAULTS = {field.name: field.default for kind in (SourceSpec, Fields) for field in dataclasses.fields(kind)}


@dataclasses.dataclass(frozen=True)
class ImageSizes:
  """Sides in pixels of the images to understand and to draw, and how they are brought to that."""

  understanding: int
  generation: int
  resize: Resize = pillow


def read_specs(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, SourceSpec]:
  """`config.data.sources` as specs. `~` in paths becomes the home directory.

  Raises:
    InputError: an entry lacks a field, has one that nobody reads, or one of a wrong value.
  """
  return {name: _read_spec(name, dict(entry)) for name, entry in entries.items()}


def _read_spec(name: str, entry: dict[str, Any]) -> SourceSpec:
  where = f'data.sources.{name}'
  for field, allowed in (('kind', TASKS), ('format', FORMATS)):
    if entry.get(field) not in allowed:
      raise InputError(f'{where}.{field} is {entry.get(field)!r}: expected one of {", ".join(allowed)}')
  if not entry.get('path'):
    raise InputError(f'{where}.path is missing: expected where its files are')
  path = _texts(f'{where}.path', entry.pop('path'))
  own = {field.name for field in dataclasses.fields(SourceSpec)} - {'name', 'path', 'fields'}
  meant = set(KIND_FIELDS[entry['kind']])
  if unknown := sorted(set(entry) - own - meant):
    raise InputError(f'{where}.{unknown[0]}: expected one of {", ".join(sorted(own | meant | {"path"}))}')
  # ConfigDict has tuples where a config wrote lists, and strings where it wrote one.
  as_tuple = {key: _texts(f'{where}.{key}', entry[key]) for key in ('questions', 'prompt_templates') if key in entry}
  for key, value in entry.items():
    if key not in ('questions', 'prompt_templates'):
      _check_type(f'{where}.{key}', value, DEFAULTS.get(key, ''))
  for key in ('image_folder', 'names', 'directory'):
    if key in entry:
      entry[key] = expand_home(entry[key])
  if entry['format'] == 'tars' and 'image' in meant:
    entry.setdefault('image', ANY_IMAGE)
  if entry['format'] == 'tars' and entry.get('prompt') == 'cls' and not entry.get('names'):
    raise InputError(f'{where}.names is missing: expected a file of class names, as prompt is cls, a class number')
  form = _read_form(where, entry)
  if form['template'] == 'raw':
    as_tuple = {'questions': ('',), **as_tuple}
  try:
    fields = Fields(**{key: entry[key] for key in set(entry) & meant} | as_tuple)
  except InputError as error:
    raise InputError(f'{where}: {error}') from None
  options = {key: entry[key] for key in set(entry) & own} | form
  return SourceSpec(name=name, path=tuple(map(expand_home, path)), fields=fields, **options)


def _read_form(where: str, entry: Mapping[str, Any]) -> dict[str, str]:
  """`template` and `long` of an entry, where it has none those that fit it.

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


def _texts(where: str, value: Any) -> tuple[str, ...]:
  found = (value,) if isinstance(value, str) else value
  if not isinstance(found, list | tuple) or not all(isinstance(text, str) for text in found):
    raise InputError(f'{where} is {value!r}: expected text, or several')
  return tuple(found)


def _check_type(where: str, value: Any, like: Any) -> None:
  """Raises InputError unless a value is of the type of a default: a number that is not negative, or text."""
  types, expected = (str, 'text')
  if isinstance(like, int):
    types, expected = (int, 'an integer that is not negative')
  elif isinstance(like, float):
    types, expected = (int | float, 'a number that is not negative')
  if not isinstance(value, types) or isinstance(value, bool) or (types is not str and value < 0):
    raise InputError(f'{where} is {value!r}: expected {expected}')


def items(spec: SourceSpec, index_directory: str) -> Any:
  """The items of a source, by index, as its format has them.

  Args:
    spec: of the source.
    index_directory: where indices are kept, and copies: of ArrayRecord files in buckets, of compressed text.

  Raises:
    InputError: files that are not there, or not of the format.
  """
  # What array_record reads by itself, which knows local files only.
  copies = os.path.join(index_directory, 'copies')
  match spec.format:
    case 'tfds':
      directory = _local_dataset(spec.path[0], spec.directory, copies)
      numbers = bool(spec.fields.names)
      return TfdsExamples(spec.path[0], directory, spec.split, number_classes=numbers, used=_field_names(spec))
    case 'folder':
      return ImageFolder(spec.path[0], index_directory)
  paths = find_files(spec.path, FILE_NAMES[spec.format])
  check_files(paths)
  match spec.format:
    case 'array_record':
      return ArrayRecordExamples([local_copy(path, copies) for path in paths])
    case 'json':
      return JsonArray(paths, index_directory)
    case 'json_lines':
      return JsonLines(paths, index_directory)
    case 'parquet':
      return ParquetRows(paths, _columns(spec))
    case 'tars':
      return TarSamples(paths, index_directory)
    case 'text':
      return TextDocuments(paths, index_directory)


def _local_dataset(name: str, directory: str, copies: str) -> str:
  """`data_dir` of a TFDS builder on the local disk."""
  if '://' not in directory:
    return directory
  builder = name.split('/')[0].split(':')[0]
  return os.path.dirname(local_copy(f'{directory.rstrip("/")}/{builder}', copies))


def _columns(spec: SourceSpec) -> tuple[str, ...]:
  """The columns of a table that a source's records are made of."""
  return tuple(dict.fromkeys(name.split('/')[0] for name in _field_names(spec)))


def _field_names(spec: SourceSpec) -> tuple[str, ...]:
  """The fields that a source's records are made of."""
  fields = spec.fields
  match spec.kind:
    case 'text':
      names = [fields.conversations or fields.text]
    case 'generation':
      names = [fields.prompt, fields.codes or fields.image]
    case 'understanding':
      names = [fields.image, fields.interleaved or fields.answer or fields.conversations or 'conversations']
  return tuple(name for name in names if name)


def dataset(spec: SourceSpec, found: Any, sizes: ImageSizes, seed: int) -> grain.MapDataset:
  """Items to records.

  Args:
    spec: of the source.
    found: its items.
    sizes: of the images.
    seed: of what is sampled for each record.
  """
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
  return made.map(functools.partial(_with, form))


def _with(form: Mapping[str, str], record: Mapping[str, Any]) -> dict[str, Any]:
  return {**record, **form}


def open_sources(
  specs: Mapping[str, SourceSpec], sizes: ImageSizes, seed: int, index_directory: str
) -> dict[str, dict[str, dict[str, grain.MapDataset]]]:
  """All sources, opened: {'train' or 'held_out': {kind: {name: records}}}.

  Args:
    specs: from `read_specs`.
    sizes: of the images.
    seed: of what is sampled for each record.
    index_directory: where indices are kept.

  Raises:
    InputError: as `items`; no records, or fewer than are to be held out; a file of class names that is not there.
  """
  opened = {split: {kind: {} for kind in TASKS} for split in ('train', 'held_out')}
  for spec in specs.values():
    if spec.fields.names:
      read_text(spec.fields.names)
    found = items(spec, index_directory)
    if not len(found):
      raise InputError(f'data.sources.{spec.name}: no records in {", ".join(spec.path)}: expected at least one')
    if len(found) <= spec.held_out:
      raise InputError(
        f'data.sources.{spec.name}: {len(found)} records: expected more than held_out, which is {spec.held_out}'
      )
    blocks = found.block_sizes if spec.format == 'parquet' else None
    train, held = held_out.split(dataset(spec, found, sizes, seed), spec.held_out, blocks)
    opened['train'][spec.kind][spec.name] = train
    if spec.held_out:
      opened['held_out'][spec.kind][spec.name] = held
  return opened
