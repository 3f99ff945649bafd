"""Checkpoints by their name on a hub: what is downloaded, what is opened, and what is said where that fails."""

import json
import os
import pathlib
import subprocess
import sys

import hub_server
import numpy as np
import pytest
import small_checkpoint
from conversion.pretrained import save_parts

import janus_jax
from janus_jax.conversion import hub
from janus_jax.conversion.checkpoint import open_checkpoint, write_checkpoint
from janus_jax.conversion.parts import compose

# Its variables are read when huggingface_hub is imported, so in a process of its own.
OPEN = """
import json, sys
import janus_jax
from janus_jax.errors import InputError
for name in sys.argv[1:]:
  try:
    janus = janus_jax.load(name)
    leaf = janus.params['language_model']['final_norm']['scale']
    print(json.dumps([leaf.tolist(), janus.tokenizer.encode('red'), janus.sampling]))
  except InputError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture(scope='module')
def repositories(tmp_path_factory) -> dict[str, pathlib.Path]:
  root = tmp_path_factory.mktemp('hub')
  small_checkpoint.write(root / 'both')
  (root / 'both' / 'pytorch_model.bin').write_bytes(b'not to be fetched')
  (root / 'both' / 'onnx').mkdir()
  (root / 'both' / 'onnx' / 'model.safetensors').write_bytes(b'nor this')
  checkpoint = open_checkpoint(str(root / 'both'))
  (root / 'ours').mkdir()
  write_checkpoint(checkpoint, str(root / 'ours'), 'orbax', lambda size: None)
  return {'someone/both': root / 'both', 'someone/ours': root / 'ours'}


def opened(tmp_path, *names: str, endpoint: str, **variables: str) -> list:
  environment = {
    **os.environ,
    'HF_HOME': str(tmp_path / 'home'),
    'HF_ENDPOINT': endpoint,
    'HF_HUB_OFFLINE': '0',
    **variables,
  }
  environment['PYTHONPATH'] = str(pathlib.Path(hub.__file__).parents[2])
  environment['HF_HUB_DISABLE_XET'] = '1'
  done = subprocess.run(
    [sys.executable, '-c', OPEN, *names], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
  )
  assert not done.returncode, done.stderr
  return list(map(json.loads, done.stdout.splitlines()))


def test_what_is_needed_is_fetched_once_and_opens_as_the_directory_does(tmp_path, repositories):
  local = janus_jax.load(str(repositories['someone/both']))
  expected = [local.params['language_model']['final_norm']['scale'].tolist(), local.tokenizer.encode('red')]
  expected.append(dict(local.sampling))
  with hub_server.serving(repositories) as (url, downloaded):
    for names in (('someone/both@v1',), ('someone/both', 'someone/ours')):
      found = opened(tmp_path, *names, endpoint=url)
      assert found == [expected] * len(names)
    assert len(downloaded) == len(set(downloaded))
    assert {'someone/both/model.safetensors', 'someone/ours/params/_METADATA'} <= set(downloaded)
    assert not {'someone/both/pytorch_model.bin', 'someone/both/onnx/model.safetensors'} & set(downloaded)
  # The server is gone, and with it the network.
  assert opened(tmp_path, *repositories, endpoint=url, HF_HUB_OFFLINE='1') == [expected] * 2


def test_pickled_weights_are_fetched_where_there_are_no_others(tmp_path, repositories):
  torch = pytest.importorskip('torch')
  from safetensors.torch import load_file

  pickled = tmp_path / 'pickled'
  pickled.mkdir()
  for path in repositories['someone/both'].glob('*.json'):
    (pickled / path.name).write_bytes(path.read_bytes())
  torch.save(load_file(repositories['someone/both'] / 'model.safetensors'), pickled / 'pytorch_model.bin')
  with hub_server.serving({'someone/pickled': pickled}) as (url, downloaded):
    [[scale, *_]] = opened(tmp_path, 'someone/pickled', endpoint=url)
  assert len(scale) == small_checkpoint.CONFIG.language_model.width
  assert 'someone/pickled/pytorch_model.bin' in downloaded


def test_what_fails_is_one_line(tmp_path, repositories):
  with hub_server.serving(repositories, gated='someone/gated') as (url, _):
    names = 'someone/bth', 'someone/both@v2', 'someone/gated', './someone/both', 'someone/both/more'
    typo, revision, gated, *local = opened(tmp_path, *names, endpoint=url)
    offline = opened(tmp_path, 'someone/both', endpoint=url, HF_HUB_OFFLINE='1')
  assert typo.startswith(f'someone/bth: no such directory, and no such model on {url}: expected')
  assert revision == 'someone/both@v2: someone/both has no revision v2: expected a branch, tag or commit'
  assert gated.startswith(f'someone/gated: gated: expected access to be granted to you on {url}/someone/gated')
  assert [text.split(': ')[1] for text in local] == ['no such directory'] * 2
  assert offline[0].startswith('someone/both: no such directory, and HF_HUB_OFFLINE is set: expected a PATH, or')
  [unreachable] = opened(tmp_path, 'someone/both', endpoint=url)
  assert unreachable.startswith(f'someone/both: no such directory, and {url} cannot be reached (')
  assert '\n' not in ''.join([typo, revision, gated, *local, *offline, unreachable])


def test_parts_by_name(tmp_path, monkeypatch):
  paths = save_parts(tmp_path)
  names = {'someone/siglip': paths['vision_encoder'], 'someone/llama': paths['language_model']}
  monkeypatch.setattr(hub, 'download', names.__getitem__)
  vision_encoder, language_model = names
  new = {'gen_embed': 'codebook', 'seed': 0}
  found = compose(vision_encoder=vision_encoder, vq=paths['vq'], language_model=language_model, **new)
  expected = compose(**paths, **new)
  for path in ('vision_encoder/layers/attn/q/kernel', 'language_model/layers/attn/q/kernel'):
    np.testing.assert_array_equal(found.params[path][...], expected.params[path][...])


def test_a_directory_is_no_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert hub.is_name('someone/model')
  assert hub.is_name('someone/model-1.5@refs/pr/1')
  (tmp_path / 'someone' / 'model').mkdir(parents=True)
  for path in ('someone/model', 'model', '/someone/model', '~/model', 'gs://model', 'a/b/c', '../model', 'someone/'):
    assert not hub.is_name(path)
