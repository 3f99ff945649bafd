"""A small checkpoint whose answers differ from question to question, and inference's recorder of calls."""

import pytest
from inference.conftest import recorded

__all__ = ['checkpoint', 'recorded']
SCALED = ('language_model', 'aligner', 'vision_model', 'lm_head')


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory) -> str:
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  import small_checkpoint
  from safetensors.numpy import load_file, save_file

  path = small_checkpoint.write(tmp_path_factory.mktemp('plugins') / 'checkpoint')
  weights = load_file(f'{path}/model.safetensors')
  for name in weights:
    # Attention of fresh weights is next to uniform: whatever they are asked, they answer the same.
    if weights[name].ndim > 1 and any(part in name for part in SCALED):
      weights[name] *= 4
  save_file(weights, f'{path}/model.safetensors', {'format': 'pt'})
  return path
