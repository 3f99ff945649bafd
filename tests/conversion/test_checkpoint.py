"""Checkpoints in and out of every layout: bit-exact round trips, strict loading by the reference, refusals."""

import errno
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import reference  # noqa: E402
import safetensors.torch  # noqa: E402
from conversion.checkpoints import (  # noqa: E402
  TINY,
  assert_same_bits,
  deepseek_directory,
  huggingface_directory,
  huggingface_from_deepseek,
  state_dict,
)

import janus_jax  # noqa: E402
from janus_jax.conversion import checkpoint as checkpoint_module  # noqa: E402
from janus_jax.conversion.checkpoint import open_checkpoint, write_checkpoint  # noqa: E402
from janus_jax.conversion.export import cast_params, exporting, published  # noqa: E402
from janus_jax.conversion.mapping import tensor_shape, torch_names  # noqa: E402
from janus_jax.conversion.translate import parameter_shapes  # noqa: E402
from janus_jax.errors import InputError  # noqa: E402
from janus_jax.models.config import PRESETS  # noqa: E402
from janus_jax.models.janus import Janus  # noqa: E402
from janus_jax.sharding.mesh import make_mesh  # noqa: E402


def convert(source: str, output: pathlib.Path, format: str, dtype: str | None = None, overwrite: bool = False) -> str:
  checkpoint = cast_params(open_checkpoint(source), dtype)
  with exporting(checkpoint, str(output), format, overwrite) as directory:
    write_checkpoint(checkpoint, directory, format, lambda _: None)
  return str(output)


def assert_loads_strictly(directory: str) -> 'torch.nn.Module':
  """transformers finds every tensor it wants, and no other."""
  model, info = transformers.JanusForConditionalGeneration.from_pretrained(directory, output_loading_info=True)
  assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), info
  return model


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_huggingface_to_orbax_to_huggingface_is_bit_exact(tmp_path, dtype):
  source = huggingface_directory(tmp_path / 'source', dtype)
  through = convert(source, tmp_path / 'orbax', 'orbax')
  back = convert(through, tmp_path / 'back', 'huggingface')
  assert_same_bits(state_dict(source), state_dict(back))
  model = assert_loads_strictly(back)
  assert model.config.image_token_id == TINY.image_token_id
  assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
  assert transformers.AutoProcessor.from_pretrained(back).tokenizer('red').input_ids


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_deepseek_to_orbax_to_deepseek_is_bit_exact(tmp_path, dtype):
  """Tensors without a use in the model included."""
  source = deepseek_directory(tmp_path / 'source', dtype)
  through = convert(source, tmp_path / 'orbax', 'orbax')
  back = convert(through, tmp_path / 'back', 'deepseek')
  assert_same_bits(state_dict(source), state_dict(back))
  assert open_checkpoint(back).config == TINY


def test_huggingface_to_deepseek_to_huggingface_is_bit_exact(tmp_path):
  source = huggingface_directory(tmp_path / 'source', 'bfloat16')
  deepseek = convert(source, tmp_path / 'deepseek', 'deepseek')
  back = convert(deepseek, tmp_path / 'back', 'huggingface')
  assert_same_bits(state_dict(source), state_dict(back))
  assert_loads_strictly(back)
  # The DeepSeek side by transformers' own renaming rules, not by ours.
  renamed = huggingface_from_deepseek(state_dict(deepseek))
  assert_same_bits(state_dict(source), {name: renamed[name] for name in state_dict(source)})
  # What a strict load by DeepSeek's class wants beside them is there, and finite.
  unused = {name: tensor for name, tensor in state_dict(deepseek).items() if 'attn_pool' in name or 'used' in name}
  assert len(unused) == 14
  assert all(torch.isfinite(tensor).all() for tensor in unused.values())


def test_single_bin_and_sharded_safetensors(tmp_path, monkeypatch):
  one = deepseek_directory(tmp_path / 'one', shards=1)
  monkeypatch.setattr(checkpoint_module, 'MAX_SHARD_BYTES', 300_000)
  sharded = convert(one, tmp_path / 'sharded', 'huggingface')
  assert len(list(pathlib.Path(sharded).glob('model-*.safetensors'))) > 3
  assert_loads_strictly(sharded)
  back = convert(sharded, tmp_path / 'back', 'deepseek')
  assert_same_bits(state_dict(one), state_dict(back))


def test_transformers_own_shards_are_read(tmp_path):
  whole = huggingface_directory(tmp_path / 'whole')
  shards = huggingface_directory(tmp_path / 'shards', max_shard_size='500KB')
  assert (tmp_path / 'shards' / 'model.safetensors.index.json').exists()
  first, second = open_checkpoint(whole).params, open_checkpoint(shards).params
  for path, leaf in first.items():
    np.testing.assert_array_equal(leaf[...], second[path][...])


def full_size_deepseek(preset: str) -> dict[str, tuple[int, ...]]:
  return {
    name: tensor_shape(pieces) for name, pieces in torch_names(parameter_shapes(PRESETS[preset]), 'deepseek').items()
  }


@pytest.mark.parametrize(('preset', 'entries'), [('janus_pro_1b', 882), ('janus_pro_7b', 936)])
def test_deepseek_names_and_shapes_at_full_size(preset, entries):
  """Counts of the released files; 14 entries (pooling head, usage buffer) are no parameters of ours."""
  shapes = full_size_deepseek(preset)
  assert len(shapes) == entries - 14
  llama = PRESETS[preset].language_model
  h, inner = llama.width, llama.mlp_dim
  expected = {
    'vision_model.vision_tower.pos_embed': (1, 576, 1024),
    'vision_model.vision_tower.patch_embed.proj.weight': (1024, 3, 16, 16),
    'vision_model.vision_tower.blocks.23.attn.qkv.weight': (3072, 1024),
    'vision_model.vision_tower.blocks.0.attn.qkv.bias': (3072,),
    'aligner.layers.0.weight': (h, 1024),
    'gen_aligner.layers.0.weight': (h, 8),
    'gen_head.vision_head.weight': (16384, h),
    'gen_embed.weight': (16384, 8),
    'language_model.model.embed_tokens.weight': (102400, h),
    'language_model.lm_head.weight': (102400, h),
    f'language_model.model.layers.{llama.depth - 1}.mlp.down_proj.weight': (h, inner),
    'gen_vision_model.encoder.conv_blocks.4.res.0.nin_shortcut.weight': (512, 256, 1, 1),
    'gen_vision_model.decoder.conv_blocks.1.res.0.nin_shortcut.weight': (256, 512, 1, 1),
    'gen_vision_model.decoder.conv_blocks.3.upsample.conv.weight': (128, 128, 3, 3),
    'gen_vision_model.decoder.mid.1.proj_out.weight': (512, 512, 1, 1),
    'gen_vision_model.quantize.embedding.weight': (16384, 8),
    'gen_vision_model.quant_conv.weight': (8, 256, 1, 1),
  }
  assert {name: shapes[name] for name in expected} == expected


@pytest.mark.parametrize('preset', ['janus_pro_1b', 'janus_pro_7b'])
def test_huggingface_names_and_shapes_at_full_size(preset):
  """Against transformers' class, built without memory."""
  from janus_jax.conversion.configs import janus_to_huggingface

  fields = transformers.JanusConfig.from_dict(janus_to_huggingface(PRESETS[preset], 'bfloat16'))
  with torch.device('meta'):
    theirs = transformers.JanusForConditionalGeneration(fields).state_dict()
  ours = torch_names(parameter_shapes(PRESETS[preset]), 'huggingface')
  assert {name: tuple(t.shape) for name, t in theirs.items()} == {name: tensor_shape(p) for name, p in ours.items()}


def test_dtype_casts_on_the_way(tmp_path):
  source = huggingface_directory(tmp_path / 'source')
  half = convert(source, tmp_path / 'half', 'huggingface', dtype='bfloat16')
  expected = {name: tensor.bfloat16() for name, tensor in state_dict(source).items()}
  assert_same_bits(expected, state_dict(half))
  assert json.loads((tmp_path / 'half' / 'config.json').read_text())['dtype'] == 'bfloat16'


def test_load_gives_the_model_that_transformers_runs(tmp_path):
  directory = huggingface_directory(tmp_path / 'source')
  janus = janus_jax.load(directory)
  config, params = janus.config, janus.params
  assert config == TINY
  tokens = np.array([[3, 1, 4, 1, 5]], np.int32)
  positions = np.arange(5)[None]

  def logits(params):
    bound = Janus(config).bind({'params': params})
    return bound.text_logits(bound.hidden(bound.embed_text(tokens), positions)[0])

  theirs = reference.huggingface_model(TINY)(
    input_ids=torch.from_numpy(tokens).long(), attention_mask=torch.ones(1, 5, dtype=torch.long)
  ).logits
  assert reference.difference(jax.jit(logits)(params), theirs) < 1e-4


@pytest.mark.parametrize('layout', ['huggingface', 'orbax', 'deepseek'])
def test_load_onto_a_mesh(tmp_path, layout):
  source = huggingface_directory(tmp_path / 'source')
  directory = source if layout == 'huggingface' else convert(source, tmp_path / layout, layout)
  mesh = make_mesh({'fsdp': 4, 'tensor': 2})
  whole, sharded = janus_jax.load(source).params, janus_jax.load(directory, mesh=mesh).params
  jax.tree.map(np.testing.assert_array_equal, whole, sharded)
  q = sharded['language_model']['layers']['attn']['q']['kernel']
  assert len(q.sharding.device_set) == 8
  assert q.addressable_shards[0].data.size == q.size // 8


def test_tied_head_of_transformers_is_the_token_table(tmp_path):
  directory = huggingface_directory(tmp_path / 'source')
  file = tmp_path / 'source' / 'model.safetensors'
  state = safetensors.torch.load_file(file)
  del state['lm_head.weight']
  safetensors.torch.save_file(state, file, {'format': 'pt'})
  with pytest.raises(InputError, match=r'1 missing: lm_head\.weight'):
    open_checkpoint(directory)
  config = json.loads((tmp_path / 'source' / 'config.json').read_text())
  (tmp_path / 'source' / 'config.json').write_text(json.dumps(config | {'tie_word_embeddings': True}))
  params = open_checkpoint(directory).params
  table, head = (params[f'language_model/{name}'][...] for name in ('embed_tokens/table', 'lm_head/kernel'))
  np.testing.assert_array_equal(table, head)


def edit_tensors(directory: pathlib.Path, edit) -> None:
  file = directory / 'model.safetensors'
  state = safetensors.torch.load_file(file)
  edit(state)
  safetensors.torch.save_file(state, file, {'format': 'pt'})


def edit_config(directory: pathlib.Path, **fields) -> None:
  file = directory / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def truncate(file: pathlib.Path) -> None:
  os.truncate(file, file.stat().st_size // 2)


GATE = 'model.language_model.layers.1.mlp.gate_proj.weight'
DAMAGES = {
  'truncated': (lambda d: truncate(d / 'model.safetensors'), r'model\.safetensors: .*'),
  'empty': (lambda d: (d / 'model.safetensors').write_bytes(b''), r'model\.safetensors: .*'),
  'no weights': (lambda d: (d / 'model.safetensors').unlink(), r'no weights found: expected one of model\.safetensors'),
  'missing tensor': (lambda d: edit_tensors(d, lambda s: s.pop(GATE)), rf'1 missing: {GATE}'),
  'unexpected tensor': (lambda d: edit_tensors(d, lambda s: s.update(extra=s[GATE] + 0)), r'1 unexpected: extra'),
  'wrong shape': (
    lambda d: edit_tensors(d, lambda s: s.update({GATE: s[GATE][:7].clone()})),
    rf'1 of another shape: {GATE} is \[7, 64\] not \[160, 64\]',
  ),
  'mixed dtypes': (
    lambda d: edit_tensors(d, lambda s: s.update({GATE: s[GATE].half()})),
    r'layers of .*gate.* 2 dtypes',
  ),
  'another model': (lambda d: edit_config(d, model_type='llava'), r'config\.json: model_type is .llava.: expected'),
  'config not JSON': (lambda d: (d / 'config.json').write_text('{"model'), r'config\.json: not JSON'),
  'config a list': (lambda d: (d / 'config.json').write_text('[]'), r'config\.json: expected a JSON object'),
  'no config': (lambda d: (d / 'config.json').unlink(), r'not a checkpoint: expected janus_config\.json'),
}


@pytest.fixture(scope='module')
def intact(tmp_path_factory):
  return pathlib.Path(huggingface_directory(tmp_path_factory.mktemp('intact') / 'source'))


@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_is_reported_in_one_line_and_nothing_is_written(tmp_path, intact, damage):
  break_it, message = DAMAGES[damage]
  source = tmp_path / 'source'
  shutil.copytree(intact, source)
  break_it(source)
  with pytest.raises(InputError, match=message) as caught:
    convert(str(source), tmp_path / 'out', 'orbax')
  assert '\n' not in str(caught.value)
  assert str(source) in str(caught.value)
  assert os.listdir(tmp_path) == ['source']


@pytest.mark.parametrize(
  ('edit', 'message'),
  [
    (lambda d: (d / 'pytorch_model-00002-of-00002.bin').unlink(), r'pytorch_model-00002-of-00002\.bin'),
    (lambda d: truncate(d / 'pytorch_model-00001-of-00002.bin'), r'pytorch_model-00001-of-00002\.bin'),
  ],
  ids=['missing shard', 'truncated shard'],
)
def test_damaged_deepseek_shards_are_named(tmp_path, edit, message):
  source = deepseek_directory(tmp_path / 'source')
  edit(tmp_path / 'source')
  with pytest.raises(InputError, match=message):
    convert(source, tmp_path / 'out', 'huggingface')
  assert os.listdir(tmp_path) == ['source']


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
  source = pathlib.Path(deepseek_directory(tmp_path / 'source', shards=1))

  class Trap:
    def __reduce__(self):
      return (os.mkdir, (str(tmp_path / 'sprung'),))

  torch.save({'language_model.lm_head.weight': Trap()}, source / 'pytorch_model.bin')
  with pytest.raises(InputError, match=r'pytorch_model\.bin: contains code .* NOT executed'):
    open_checkpoint(str(source))
  assert not (tmp_path / 'sprung').exists()


def test_an_existing_output_is_kept_unless_told_otherwise(tmp_path, intact):
  output = tmp_path / 'out'
  convert(str(intact), output, 'orbax')
  before = (output / 'janus_config.json').stat().st_mtime_ns
  with pytest.raises(InputError, match='exists already; --overwrite replaces it'):
    convert(str(intact), output, 'huggingface')
  assert (output / 'janus_config.json').stat().st_mtime_ns == before
  convert(str(intact), output, 'huggingface', overwrite=True)
  assert_same_bits(state_dict(str(intact)), state_dict(str(output)))
  assert os.listdir(tmp_path) == ['out']


def test_overwrite_spares_what_is_no_checkpoint(tmp_path, intact):
  (tmp_path / 'thesis').mkdir()
  (tmp_path / 'thesis' / 'chapter1.tex').write_text('years of work')
  with pytest.raises(InputError, match='not a checkpoint, so --overwrite will not replace it'):
    convert(str(intact), tmp_path / 'thesis', 'orbax', overwrite=True)
  assert (tmp_path / 'thesis' / 'chapter1.tex').exists()
  with pytest.raises(InputError, match='is the input itself'):
    convert(str(intact), intact, 'orbax', overwrite=True)


def test_a_write_that_fails_leaves_nothing_and_keeps_the_old(tmp_path, intact, monkeypatch):
  output = convert(str(intact), tmp_path / 'out', 'orbax')

  def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), args[0])

  monkeypatch.setattr(checkpoint_module, 'write_safetensors', full)
  with pytest.raises(OSError, match='No space left'):
    convert(output, tmp_path / 'new', 'huggingface')
  with pytest.raises(OSError, match='No space left'):
    convert(str(intact), tmp_path / 'out', 'huggingface', overwrite=True)
  assert os.listdir(tmp_path) == ['out']
  assert open_checkpoint(output).config == TINY


def test_too_little_space_is_said_before_anything_is_written(tmp_path):
  with (
    pytest.raises(InputError, match=r'1,000,000,000,000 MB needed, .* MB free'),
    published(str(tmp_path / 'out'), False, needed=10**18),
  ):
    raise AssertionError('reached')
  assert not os.listdir(tmp_path)
