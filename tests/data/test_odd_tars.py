"""Odd tars, made from a seed: each sample is read rightly, or refused in one line."""

import gzip
import io
import random
import tarfile

from data.odd_data import LFS_POINTER, make_spec, png, read_all

KEYS = ['a/0', 'a/1', './b', 'c.d', '../e', '/abs/f', '', '.', '._0', 'sp ace', 'new\nline', 'ünï', 'x' * 80, 'a/0/']
ENDINGS = ['jpg', 'png', 'txt', 'json', 'cls', 'JPG', 'seg.png', '', 'jpg.', 'tar', 'npy', 'x' * 20]
CONTENTS = [
  *(
    b'',
    b'a cat',
    png(),
    png()[:30],
    b'\xff\xfe\x00',
    '\ufeffa cat'.encode(),
    b'{"caption": "a"}',
    b'{',
    b'\x00' * 600,
  ),
  *(b'[]', b'7', b'-1', LFS_POINTER, b'a ' * 3000, '\u202ex'.encode(), 'a cat'.encode('utf-16')),
]
TYPES = [tarfile.REGTYPE] * 12 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]


def odd_tar(chance: random.Random) -> bytes:
  """Good samples and up to six odd members in any order, then perhaps damage."""
  members = [(f'{key}.{end}', content, tarfile.REGTYPE)
             for key in ('a/0', 'z') for end, content in (('jpg', png()), ('txt', b'a cat'))]  # fmt: skip
  for _ in range(chance.randint(0, 6)):
    name = f'{chance.choice(KEYS)}.{chance.choice(ENDINGS)}'.rstrip('.')
    member = name, chance.choice(CONTENTS), chance.choice(TYPES)
    members.insert(chance.randint(0, len(members)), member)
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w', format=chance.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])) as tar:
    for name, content, kind in members:
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, chance.choice(['0.jpg', 'a/0.jpg', 'z.txt', 'nowhere', '../../etc/passwd', name])
      info.size = len(content) if kind == tarfile.REGTYPE else 0
      tar.addfile(info, io.BytesIO(content))
  content = bytearray(file.getvalue())
  match chance.randrange(8):
    case 0:
      del content[chance.randrange(len(content)) :]
    case 1:
      content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    case 2:
      return gzip.compress(bytes(content))
    case 3:
      start = chance.randrange(0, len(content), 512)
      content[start : start + 512] = chance.randbytes(512)
  return bytes(content)


def test_odd_tars(tmp_path):
  chance = random.Random(1)
  fixed = [b'', b'\x00' * 1024, b'\x00' * 100, LFS_POINTER, png(), b'<html>', chance.randbytes(5000)]
  tars = [*fixed, *(odd_tar(chance) for _ in range(150))]
  answers, wrong, spec = set(), [], make_spec(tmp_path)
  entry = {'kind': 'generation', 'format': 'tars', 'image': 'jpg', 'prompt': 'txt'}
  for number, content in enumerate(tars):
    path = tmp_path / f'{number}.tar'
    path.write_bytes(content)
    found, faults = read_all(entry, path, spec)
    answers.update(found)
    wrong += [f'{number}.tar: {fault}' for fault in faults]
  assert not wrong, '\n'.join(wrong)
  assert answers == {'read', 'refused'}
