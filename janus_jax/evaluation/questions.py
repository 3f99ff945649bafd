"""Questions of the understanding benchmarks, from the files that people have: VLMEvalKit's, lmms-eval's, the authors'.

One record for all: a row with the columns of VLMEvalKit's files (index, question, answer, hint, A, B, ..., category,
l2-category, split, image_path) and what else the file has, and its images, which are read when they are needed.
"""

import ast
import base64
import csv
import dataclasses
import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet

from janus_jax.errors import InputError, one_line, shown
from janus_jax.evaluation.rows import COLUMNS, read_rows
from janus_jax.evaluation.versions import dataset_version

SHORT = 64  # An `image` of at most so many characters is the index of the row that has it.
MME_TASKS = (
  'existence', 'count', 'position', 'color', 'posters', 'celebrity', 'scene', 'landmark', 'artwork', 'OCR',
  'commonsense_reasoning', 'numerical_calculation', 'text_translation', 'code_reasoning',
)  # fmt: skip
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')


class ImageRef(NamedTuple):
  """An image: a name that tells it from others, and what reads its file's content."""

  name: str
  read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class BenchmarkQuestion:
  """A question.

  Attributes:
    row: the dataset's columns, 'index' among them.
    images: in the order in which the question mentions them.
    dataset: the version of the file (`versions.dataset_version`).
  """

  row: dict[str, Any]
  images: tuple[ImageRef, ...]
  dataset: str = ''

  @property
  def index(self) -> str:
    return str(self.row['index'])


def _file(path: Path) -> ImageRef:
  return ImageRef(str(path), path.read_bytes)


# --- VLMEvalKit


def _row_offsets(path: Path) -> tuple[list[str], list[int], str]:
  """Column names of a TSV, where each row begins, in bytes, and the file's MD5."""
  with open(path, 'rb') as file:
    position, offsets, digest = 0, [], hashlib.md5(usedforsecurity=False)

    def lines() -> Iterator[str]:
      nonlocal position
      for line in file:
        position += len(line)
        digest.update(line)
        yield line.decode('utf-8')

    reader = csv.reader(lines(), delimiter='\t')
    names = [name.removeprefix('\ufeff') for name in next(reader, [])]
    begin = position
    for number, row in enumerate(reader, 1):
      if row and len(row) != len(names):
        raise InputError(f'{path}: row {number} has {len(row)} columns: expected {len(names)}, as in the first line')
      offsets += [begin] if row else []
      begin = position
  return names, offsets, digest.hexdigest()


def _read_row(path: Path, names: Sequence[str], offset: int) -> dict[str, str]:
  with open(path, encoding='utf-8', newline='') as file:
    file.seek(offset)
    return dict(zip(names, next(csv.reader(file, delimiter='\t'))))


def read_tsv(path: Path) -> list[BenchmarkQuestion]:
  """A file of VLMEvalKit: images in base64, several as a printed list, or the index of the row that has them."""
  csv.field_size_limit(sys.maxsize)
  try:
    names, offsets, md5 = _row_offsets(path)
  except (UnicodeDecodeError, csv.Error) as error:
    raise InputError(f'{path}: cannot be read: {one_line(error)}: expected a TSV in UTF-8') from None
  if missing := [name for name in ('index', 'question') if name not in names]:
    raise InputError(f'{path} has no column {missing[0]}: it has {", ".join(names)}')
  if not offsets:
    raise InputError(f'{path} has no rows: expected questions')
  rows, where, refers = [], {}, {}
  for offset in offsets:
    row = _read_row(path, names, offset)
    image = row.pop('image', '')
    if row['index'] in where:
      raise InputError(f'{path}: index {row["index"]} stands in it more than once')
    where[row['index']] = offset
    if image and len(image) <= SHORT:
      refers[row['index']] = image
    rows.append({COLUMNS.get(name, name): value for name, value in row.items()})

  def content(index: str, number: int) -> bytes:
    encoded = _listed(_read_row(path, names, where[index])['image'], f'{path}: row {index}')[number]
    try:
      return base64.b64decode(encoded)
    except (TypeError, ValueError) as error:
      raise InputError(f'{path}: row {index}: {one_line(error)}: expected an image in base64') from None

  questions, version = [], dataset_version(str(path), md5)
  for row in rows:
    owner = refers.get(row['index'], row['index'])
    what = f'{path}: row {row["index"]}'
    if owner not in where or owner in refers:
      raise InputError(f'{what} has the image of row {owner}, which has none')
    if 'image' not in names:
      images = [_file(path.parent / name) for name in _listed(row.get('image_path', ''), what)]
    else:
      count = len(_listed(_read_row(path, names, where[owner])['image'], what))
      images = [ImageRef(f'{path}:{owner}:{n}', functools.partial(content, owner, n)) for n in range(count)]
    questions.append(BenchmarkQuestion(row, tuple(images), version))
  return questions


def _listed(text: str, what: str) -> list[str]:
  """Things in a cell: a printed list, one, or none. Raises InputError for a list that is cut."""
  if not text.startswith('['):
    return [text] if text else []
  try:
    return list(ast.literal_eval(text))
  except (SyntaxError, ValueError):
    raise InputError(f'{what}: {shown(text)}: expected a list') from None


# --- lmms-eval


def read_parquet(paths: Sequence[Path], benchmark: str) -> list[BenchmarkQuestion]:
  """Files of lmms-eval's datasets. GQA has its images in files of their own, by the id that questions name."""
  found, shared = [], {}
  for path in paths:
    try:
      for group in range(pyarrow.parquet.read_metadata(path).num_row_groups):
        for number, row in enumerate(_row_group(path, group)):
          images = _parquet_images(path, group, number)
          if 'question' in row:
            found.append(({name: value for name, value in row.items() if not _is_image(name)}, images))
          else:
            shared[row['id']] = images
    except (OSError, ValueError, KeyError, TypeError) as error:
      said = f'{type(error).__name__} {one_line(error)}'
      raise InputError(f"{path}: cannot be read: {said}: expected a parquet file of lmms-eval's dataset") from None
  rows = [(_canonical(row, benchmark, number), images) for number, (row, images) in enumerate(found)]
  return [BenchmarkQuestion(row, images or shared.get(row.get('imageId'), ())) for row, images in rows]


@functools.lru_cache(maxsize=2)
def _row_group(path: Path, group: int) -> list[dict[str, Any]]:
  return pyarrow.parquet.ParquetFile(path).read_row_group(group).to_pylist()


def _is_image(name: str) -> bool:
  """True for the columns of images: image, or MMMU's image_1 to image_7."""
  return re.fullmatch(r'image(_\d)?', name) is not None


def _parquet_images(path: Path, group: int, number: int) -> tuple[ImageRef, ...]:
  """Images of a row: {'bytes', 'path'}, or a list of these."""

  def contents() -> list[bytes]:
    row = _row_group(path, group)[number]
    values = [row[name] for name in sorted(filter(_is_image, row))]
    images = [image for value in values for image in (value if isinstance(value, list) else [value])]
    return [image['bytes'] for image in images if image is not None]

  names = [f'{path}:{group}:{number}:{place}' for place in range(len(contents()))]
  return tuple(ImageRef(name, lambda place=place: contents()[place]) for place, name in enumerate(names))


def _canonical(row: dict[str, Any], benchmark: str, number: int) -> dict[str, Any]:
  """A row of lmms-eval or of the authors with VLMEvalKit's columns beside its own."""
  row = {COLUMNS.get(name, name): value for name, value in row.items()}
  row.setdefault('index', number)
  if benchmark == 'pope':
    row['answer'] = str(row.get('answer')).capitalize()
  if benchmark == 'mme':
    row.setdefault('image_path', row.get('question_id'))
  if benchmark == 'mmmu' and isinstance(row.get('options'), str):
    row |= dict(zip('ABCDEFGHI', _listed(row['options'], f'{row.get("id")}: options')))
  return row


# --- the authors' own files


def _image(folder: Path, name: str) -> ImageRef:
  """An image by its name, below a folder. Raises InputError where there is none."""
  found = _images_below(folder).get(name) or _images_below(folder).get(Path(name).stem)
  if found is None:
    raise InputError(f'{folder}: no image {name} below it')
  return _file(found)


@functools.lru_cache(maxsize=8)
def _images_below(folder: Path) -> dict[str, Path]:
  found: dict[str, Path] = {}
  for path in sorted(folder.rglob('*')):
    if path.suffix.lower() in IMAGE_SUFFIXES:
      found.setdefault(path.name, path)
      found.setdefault(path.stem, path)
  return found


def read_pope(folder: Path) -> list[BenchmarkQuestion]:
  """coco_pope_{random,popular,adversarial}.json with images below the folder."""
  questions = []
  for subset in ('random', 'popular', 'adversarial'):
    for path in sorted(folder.rglob(f'coco_pope_{subset}.json')):
      for line in path.read_text(encoding='utf-8').splitlines():
        row = json.loads(line)
        image = _image(folder, row['image'])
        fields = {'image_path': row['image'], 'image_source': Path(row['image']).stem, 'category': subset}
        questions.append(BenchmarkQuestion(_canonical({**row, **fields}, 'pope', len(questions)), (image,)))
  return questions


def read_mme(folder: Path) -> list[BenchmarkQuestion]:
  """MME_Benchmark_release_version: a folder per task, a .txt with two lines `question<TAB>Yes|No` per image."""
  questions = []
  for task in MME_TASKS:
    for directory in sorted(path for path in folder.rglob(task) if path.is_dir()):
      for text in sorted(directory.rglob('*.txt')):
        image = _image(directory, text.stem)
        name = f'{task}/{Path(image.name).name}'
        for line in text.read_text(encoding='utf-8').splitlines():
          if not line.strip():
            continue
          question, tab, answer = line.rpartition('\t')
          if not tab:
            raise InputError(f'{text}: line {shown(line)}: expected a question, a tab, and Yes or No')
          row = {'question': question, 'answer': answer.strip(), 'category': task, 'image_path': name}
          questions.append(BenchmarkQuestion({'index': len(questions), 'question_id': name, **row}, (image,)))
  return questions


def read_seed(folder: Path) -> list[BenchmarkQuestion]:
  """SEED-Bench.json: its questions about images, which lie below the folder under their data_id."""
  questions = []
  for path in sorted(folder.rglob('SEED-Bench.json'))[:1]:
    content = json.loads(path.read_text(encoding='utf-8'))
    names = {number: name for name, number in content['question_type'].items()}
    for row in content['questions']:
      if row['data_type'] == 'image':
        row = {**row, 'category': names.get(row['question_type_id'])}
        image = _image(folder, row['data_id'])
        questions.append(BenchmarkQuestion(_canonical(row, 'seedbench', len(questions)), (image,)))
  return questions


def read_gqa(folder: Path) -> list[BenchmarkQuestion]:
  """testdev_balanced_questions.json with images below the folder."""
  questions = []
  for path in sorted(folder.rglob('testdev_balanced_questions.json'))[:1]:
    for number, row in enumerate(read_rows(str(path))):
      questions.append(BenchmarkQuestion({'index': number, **row}, (_image(folder, f'{row["imageId"]}.jpg'),)))
  return questions


def read_mmvet(folder: Path) -> list[BenchmarkQuestion]:
  """mm-vet.json with images below the folder."""
  questions = []
  for path in sorted(folder.rglob('mm-vet.json'))[:1]:
    for name, row in json.loads(path.read_text(encoding='utf-8')).items():
      row = {**row, 'index': name, 'question_id': name, 'category': ','.join(row['capability'])}
      questions.append(BenchmarkQuestion(row, (_image(folder, row['imagename']),)))
  return questions


@dataclasses.dataclass(frozen=True)
class Files:
  """Names of the files of a benchmark, below the directory of the data.

  Attributes:
    tsv: names of VLMEvalKit's file, without .tsv.
    folder: name of the folder with lmms-eval's parquet files or the authors' own.
    official: what reads the latter; nothing is found where it gives no questions.
  """

  tsv: tuple[str, ...]
  folder: str
  official: Callable[[Path], list[BenchmarkQuestion]] | None = None


FILES = {
  'pope': Files(('POPE',), 'pope', read_pope),
  'mme': Files(('MME',), 'mme', read_mme),
  'mmbench': Files(
    ('MMBench_DEV_EN', 'MMBench_DEV_EN_V11', 'mmbench_dev_en_20231003', 'mmbench_dev_20230712'), 'mmbench'
  ),
  'seedbench': Files(('SEEDBench_IMG',), 'seedbench', read_seed),
  'gqa': Files(('GQA_TestDev_Balanced',), 'gqa', read_gqa),
  'mmmu': Files(('MMMU_DEV_VAL',), 'mmmu'),
  'mmvet': Files(('MMVet',), 'mmvet', read_mmvet),
}


def read_questions(benchmark: str, directory: str) -> list[BenchmarkQuestion]:
  """Questions of a benchmark: of VLMEvalKit's file if there is one, else of lmms-eval's, else of the authors'.

  Raises:
    InputError: none of them is there; a file that cannot be read; an image that is missing.
  """
  files, root = FILES[benchmark], Path(directory)
  for name in files.tsv:
    if found := sorted(root.rglob(f'{name}.tsv')):
      return read_tsv(found[0])
  folders = [path for path in sorted(root.rglob('*')) if path.is_dir() and _plain(path.name) == files.folder]
  for folder in folders:
    if questions := read_parquet(sorted(folder.rglob('*.parquet')), benchmark):
      return questions
  for folder in [*folders, root] if files.official else ():
    try:
      if questions := files.official(folder):
        return questions
    except (ValueError, KeyError, TypeError) as error:
      if isinstance(error, InputError):
        raise
      said = f'{type(error).__name__} {one_line(error)}'
      raise InputError(f'{folder}: {said}: expected the files of {benchmark}') from None
  expected = f'{files.tsv[0]}.tsv, or a folder {files.folder} with parquet files'
  raise InputError(f'{directory}: no questions of {benchmark}: expected {expected} or the files of its authors')


def _plain(name: str) -> str:
  return ''.join(filter(str.isalnum, name.lower()))
