import json
import os
import pathlib
import shutil

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

from conversion.pretrained import composed, edit_tensors, save_parts, vq_state  # noqa: E402

from janus_jax.errors import InputError  # noqa: E402


@pytest.fixture(scope='module')
def parts(tmp_path_factory) -> dict[str, str]:
  return save_parts(tmp_path_factory.mktemp('parts'))


def drop(part: str, name: str):
  def keep(state):
    return {n: tensor for n, tensor in state.items() if not n.endswith(name)}

  return lambda root: edit_tensors(root / part / 'model.safetensors', keep)


def change_model_type(directory: str, model_type: str):
  def edit(root: pathlib.Path) -> None:
    file = root / directory / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | {'model_type': model_type}))

  return edit


def vq_without(name: str):
  return lambda root: torch.save({'model': {n: t for n, t in vq_state().items() if n != name}}, root / 'vq.pt')


MISTAKES = {
  'siglip missing': (lambda root: shutil.rmtree(root / 'siglip'), r'siglip: no such directory'),
  'siglip of another type': (
    change_model_type('siglip', 'clip_vision_model'),
    r"siglip/config\.json: model_type is 'clip_vision_model': expected 'siglip'",
  ),
  'siglip without a tensor': (
    drop('siglip', 'encoder.layers.1.mlp.fc2.bias'),
    r'siglip: .* 1 missing: .*encoder\.layers\.1\.mlp\.fc2\.bias',
  ),
  'llama of another type': (
    change_model_type('llama', 'qwen2'),
    r"llama/config\.json: model_type is 'qwen2': expected",
  ),
  'llama without a tensor': (
    drop('llama', 'model.layers.2.mlp.up_proj.weight'),
    r'llama: .* 1 missing: .*layers\.2\.mlp\.up_proj\.weight',
  ),
  'no tokenizer': (
    lambda root: (root / 'llama' / 'tokenizer.json').unlink(),
    r'llama: no tokenizer\.json: expected the tokenizer of the language model',
  ),
  'vq missing': (lambda root: (root / 'vq.pt').unlink(), r'vq\.pt: .*no such file'),
  'vq without the key': (lambda root: torch.save(vq_state(), root / 'vq.pt'), r"vq\.pt: expected .* the key 'model'"),
  'vq without a tensor': (vq_without('decoder.mid.1.q.weight'), r'vq\.pt: .* 1 missing: .*decoder\.mid\.1\.q\.weight'),
  'vq without a codebook': (vq_without('quantize.embedding.weight'), r'vq\.pt: .*no tensor .*quantize\.embedding'),
  'unknown template': (lambda root: None, r"^template is 'llama': expected one of deepseek, deepseek_old"),
  'unknown start of gen_embed': (lambda root: None, r"gen_embed is 'uniform': expected one of codebook, normal"),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes_are_reported_in_one_line(tmp_path, parts, mistake):
  make_it, message = MISTAKES[mistake]
  copies = {'vision_encoder': tmp_path / 'siglip', 'language_model': tmp_path / 'llama', 'vq': tmp_path / 'vq.pt'}
  for name, copy in copies.items():
    (shutil.copytree if os.path.isdir(parts[name]) else shutil.copy)(parts[name], copy)
  make_it(tmp_path)
  gen_embed = 'uniform' if 'gen_embed' in mistake else 'codebook'
  template = 'llama' if 'template' in mistake else 'deepseek'
  with pytest.raises(InputError, match=message) as caught:
    composed({name: str(copy) for name, copy in copies.items()}, gen_embed, template=template)
  assert '\n' not in str(caught.value)
