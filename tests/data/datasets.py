"""One small dataset of each format, of real photographs, and the config entries that read them."""

import io
import json
import pathlib
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from data.photographs import cuts, encoded

from janus_jax.data.sources.array_record import ShardWriter, encode_example, shard_path

ITEMS = 6  # Of each dataset: one photograph in each way of writing one.
# Every item says its own word, 'web3' or 'corpus5', by which it is found again in a batch.
NAMES = {
  'understanding': ('llava', 'chat', 'table'),
  'text': ('corpus', 'talks'),
  'generation': ('web', 'folder', 'classes', 'records'),
}


def write(root: pathlib.Path) -> dict[str, dict]:
  """Writes all datasets below `root`; returns `config.data.sources`."""
  photos = [encoded(image, number) for number, image in enumerate(cuts(ITEMS))]
  images = root / 'images'
  images.mkdir(parents=True)
  names = []
  for i, (extension, content) in enumerate(photos):
    names.append(f'{i}.{extension}')
    (images / names[i]).write_bytes(content)
  return {
    'llava': _llava(root, names),
    'chat': _chat(root, names),
    'table': _table(root, photos),
    'corpus': _corpus(root),
    'talks': _talks(root),
    'web': _web(root, photos),
    'folder': _folder(root, photos),
    'classes': _classes(root, photos),
    'records': _records(root, photos),
  }


def _llava(root: pathlib.Path, names: list[str]) -> dict:
  """Every second item has two images and two turns."""
  items = []
  for i, name in enumerate(names):
    turns = [{'from': 'human', 'value': '<image>\nWhat?'}, {'from': 'gpt', 'value': f'llava{i}'}]
    if i % 2:
      turns[0]['value'] = '<image>\n<image>\nWhat?'
      turns += [{'from': 'human', 'value': 'Sure?'}, {'from': 'gpt', 'value': 'Yes.'}]
    items.append({'id': str(i), 'image': [name, names[0]] if i % 2 else name, 'conversations': turns})
  (root / 'llava.json').write_text(json.dumps(items))
  return {
    'kind': 'understanding',
    'format': 'json',
    'path': str(root / 'llava.json'),
    'image_folder': str(root / 'images'),
  }


def _chat(root: pathlib.Path, names: list[str]) -> dict:
  lines = []
  for i, name in enumerate(names):
    messages = [{'role': 'user', 'content': 'What?'}, {'role': 'assistant', 'content': f'chat{i}'}]
    lines.append({'img': str(root / 'images' / name), 'messages': messages})
  (root / 'chat.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  return {
    'kind': 'understanding',
    'format': 'json_lines',
    'path': str(root / 'chat.jsonl'),
    'image': 'img',
    'conversations': 'messages',
  }


def _table(root: pathlib.Path, photos: list[tuple[str, bytes]]) -> dict:
  rows = [{'image': {'bytes': content, 'path': None}, 'caption': f'table{i}'} for i, (_, content) in enumerate(photos)]
  pq.write_table(pa.Table.from_pylist(rows), root / 'table.parquet', row_group_size=4)
  return {'kind': 'understanding', 'format': 'parquet', 'path': str(root / '*.parquet'), 'answer': 'caption'}


def _corpus(root: pathlib.Path) -> dict:
  (root / 'corpus.txt').write_text('\n\n'.join(f'corpus{i}\nand more' for i in range(ITEMS)))
  return {'kind': 'text', 'format': 'text', 'path': str(root / 'corpus.txt')}


def _talks(root: pathlib.Path) -> dict:
  (root / 'talks.jsonl').write_text('\n'.join(json.dumps({'talk': ['Hello?', f'talks{i}']}) for i in range(ITEMS)))
  return {'kind': 'text', 'format': 'json_lines', 'path': str(root / 'talks.jsonl'), 'conversations': 'talk'}


def _web(root: pathlib.Path, photos: list[tuple[str, bytes]]) -> dict:
  """All photographs under one ending, as img2dataset writes them."""
  for shard in range(2):
    with tarfile.open(root / f'{shard:05}.tar', 'w') as tar:
      for i in range(shard, ITEMS, 2):
        for extension, content in (('jpg', photos[i][1]), ('txt', f'web{i}'.encode()), ('json', b'{}')):
          info = tarfile.TarInfo(f'{i:09}.{extension}')
          info.size = len(content)
          tar.addfile(info, io.BytesIO(content))
  return {'kind': 'generation', 'format': 'tars', 'path': [str(root / '*.tar')], 'image': 'jpg', 'prompt': 'txt'}


def _folder(root: pathlib.Path, photos: list[tuple[str, bytes]]) -> dict:
  (root / 'folder').mkdir()
  for i, (extension, content) in enumerate(photos):
    (root / 'folder' / f'{i}.{extension}').write_bytes(content)
    (root / 'folder' / f'{i}.txt').write_text(f'folder{i}')
  return {'kind': 'generation', 'format': 'folder', 'path': str(root / 'folder')}


class Photographs(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {
      'image': tfds.features.Image(),
      'label': tfds.features.ClassLabel(names=[f'classes{i}' for i in range(ITEMS)]),
      'captions': tfds.features.Sequence(
        {'text': tfds.features.Text(), 'kind': tfds.features.ClassLabel(names=['short', 'long'])}
      ),
    }
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i, (_, content) in enumerate(encoded(image, number) for number, image in enumerate(cuts(ITEMS))):
      captions = [{'text': f'caption {i}.{number}', 'kind': number % 2} for number in range(3)]
      yield i, {'image': io.BytesIO(content), 'label': i, 'captions': captions}


def _classes(root: pathlib.Path, photos: list[tuple[str, bytes]]) -> dict:
  Photographs(data_dir=root / 'tfds', file_format='array_record').download_and_prepare()
  return {
    'kind': 'generation',
    'format': 'tfds',
    'path': 'photographs',
    'directory': str(root / 'tfds'),
    'prompt': 'label',
  }


def _records(root: pathlib.Path, photos: list[tuple[str, bytes]]) -> dict:
  with ShardWriter(shard_path(str(root), 'records', 0, 1)) as writer:
    for i, (_, content) in enumerate(photos):
      writer.write(encode_example({'image': content, 'prompt': f'records{i}'}))
  return {'kind': 'generation', 'format': 'array_record', 'path': str(root / '*.array_record')}
