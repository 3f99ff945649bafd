"""Versions of the datasets' files, told apart by their MD5: another version has other scores."""

import hashlib
import logging
import os

# Name of VLMEvalKit's file -> MD5 of its content (`DATASET_MD5`, e8e78f0).
OFFICIAL = {
  'POPE.tsv': 'c12f5acb142f2ef1f85a26ba2fbe41d5',
  'MME.tsv': 'b36b43c3f09801f5d368627fb92187c3',
  'MMBench_DEV_EN.tsv': 'b6caf1133a01c6bb705cf753bb527ed8',
  'MMBench_DEV_EN_V11.tsv': '30c05be8f2f347a50be25aa067248184',
  'SEEDBench_IMG.tsv': '68017231464752261a2526d6ca3a10c0',
  'GQA_TestDev_Balanced.tsv': '99b62f22e224d9b2f32dcbe41359d1c9',
  'MMMU_DEV_VAL.tsv': '585e8ad75e73f75dcad265dfd0417d64',
  'MMVet.tsv': '748aa6d4aa9d4de798306a63718455e3',
}


def dataset_version(path: str, md5: str) -> str:
  """'POPE.tsv (official)', or 'POPE.tsv (other: md5 ...)' and a warning; '' for a file without an official version."""
  name = os.path.basename(path)
  if name not in OFFICIAL:
    return ''
  if md5 == OFFICIAL[name]:
    return f'{name} (official)'
  logging.warning(
    "%s: md5 %s, VLMEvalKit's file has %s: scores are those of another version of it", path, md5, OFFICIAL[name]
  )
  return f'{name} (other: md5 {md5})'


def version_of_file(path: str) -> str:
  """`dataset_version` of a file, which is read only if an official file has its name."""
  if os.path.basename(path) not in OFFICIAL:
    return ''
  with open(path, 'rb') as file:
    return dataset_version(path, hashlib.file_digest(file, 'md5').hexdigest())
