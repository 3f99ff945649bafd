"""Adapters between us and peft, by what the models compute: peft only warns of names that it does not know."""

import json
import pathlib
import shutil

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import reference
import small_checkpoint

from janus_jax.conversion.adapters import Adapter, training_params
from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.conversion.export import cast_params
from janus_jax.conversion.lazy import from_numpy
from janus_jax.conversion.load import load_params
from janus_jax.conversion.peft_files import write_peft
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.errors import InputError
from janus_jax.inference.decoder import make_decoder
from janus_jax.inference.drawing import Window, generate_codes
from janus_jax.inference.sampling import Sampling, row_key
from janus_jax.models.config import ComputeConfig
from janus_jax.models.janus import Janus
from janus_jax.models.lora import LoraConfig, adapted_shapes, is_adapter, new_factors, target_modules

torch = pytest.importorskip('torch')
peft = pytest.importorskip('peft')

CONFIG = reference.TINY
SHAPES = parameter_shapes(CONFIG)
LORA = LoraConfig(rank=3, alpha=6.0)
BOS, PAD, BOI = 256, 258, 259
PREFIX = 'base_model.model.'


@pytest.fixture(scope='module')
def base(tmp_path_factory) -> str:
  """transformers' layout; three layers, grouped heads."""
  directory = tmp_path_factory.mktemp('base')
  reference.huggingface_model(CONFIG).save_pretrained(directory)
  return str(directory)


def made_adapter(base: str, config: LoraConfig = LORA, full: tuple[str, ...] = ('gen_head/',)) -> Adapter:
  """Random factors, none of them 0, and parts trained in full, over a base."""
  rng, params, factors = np.random.default_rng(0), open_checkpoint(base).params, {}
  for module in target_modules(SHAPES, config.targets):
    factors |= new_factors(module, SHAPES[f'{module}/kernel'], config, 0)
  for path, value in factors.items():
    if path.endswith('lora_b'):
      factors[path] = rng.normal(size=value.shape).astype(np.float32) / 3
  changed = {path: params[path][...] * 1.3 for path in params if path.startswith(full)}
  lazy = [{path: from_numpy(value, path) for path, value in part.items()} for part in (factors, changed)]
  return Adapter(base, params, *lazy)


def written(adapter: Adapter, directory: pathlib.Path, layout: str = 'huggingface') -> str:
  directory.mkdir()
  write_peft(adapter, SHAPES, str(directory), layout, lambda _: None)
  return str(directory)


def tree_of(arrays) -> dict:
  return flax.traverse_util.unflatten_dict({path: jnp.asarray(leaf[...]) for path, leaf in arrays.items()}, sep='/')


TOKENS = np.random.default_rng(1).integers(0, 250, (2, 9)).astype(np.int32)


def our_logits(params: dict) -> tuple[np.ndarray, np.ndarray]:
  """Logits of text and of codes after TOKENS."""
  model = Janus(CONFIG, ComputeConfig())
  positions = np.broadcast_to(np.arange(TOKENS.shape[1]), TOKENS.shape)

  def apply(params):
    def run(janus):
      hidden, _ = janus.language_model.hidden(janus.language_model.embed(TOKENS), positions)
      return janus.text_logits(hidden), janus.image_logits(hidden)

    return model.apply({'params': params}, method=run)

  return tuple(map(np.asarray, jax.jit(apply)(params)))


def their_logits(model) -> tuple[np.ndarray, np.ndarray]:
  janus = model.get_base_model() if hasattr(model, 'get_base_model') else model
  with torch.inference_mode():
    hidden = janus.model.language_model(input_ids=torch.from_numpy(TOKENS).long()).last_hidden_state
    return janus.lm_head(hidden).numpy(), janus.model.generation_head(hidden).numpy()


def assert_same(ours, theirs) -> None:
  for own, other in zip(ours, theirs):
    np.testing.assert_allclose(own, other, atol=1e-5)


def fresh_model(seed: int = 0):
  """A copy of the reference: peft changes what it wraps."""
  model = type(reference.huggingface_model(CONFIG))(reference.huggingface_model(CONFIG).config).eval()
  model.load_state_dict(reference.huggingface_model(CONFIG, seed).state_dict())
  return model


@pytest.mark.parametrize('full', [('gen_head/',), ()])
def test_what_we_write_is_what_peft_computes(tmp_path, base, full):
  adapter = made_adapter(base, full=full)
  directory = written(adapter, tmp_path / 'adapter')
  model = peft.PeftModel.from_pretrained(fresh_model(), directory)
  unmerged = {**adapter.base_params, **adapter.full, **adapter.factors}
  ours = our_logits(tree_of(unmerged))
  assert_same(ours, their_logits(model))
  assert_same(ours, our_logits(tree_of(adapter.params)))
  before = our_logits(tree_of(adapter.base_params))
  assert min(np.abs(own - old).max() for own, old in zip(ours, before)) > 0.1  # Else the base would do.
  opened = open_checkpoint(directory)
  assert opened.adapter.base == base
  for path, array in adapter.params.items():
    np.testing.assert_array_equal(opened.params[path][...], array[...], err_msg=path)


def test_greedy_codes_are_those_of_peft(tmp_path, base):
  directory = written(made_adapter(base, full=()), tmp_path / 'adapter')
  model = peft.PeftModel.from_pretrained(fresh_model(), directory).merge_and_unload()
  decoder = make_decoder(CONFIG, ComputeConfig(), load_params(open_checkpoint(directory), None))
  prompt, unconditional = [BOS, 5, 17, 99, 3, BOI], [BOS, *[PAD] * 4, BOI]
  tokens, keys = np.array([prompt, unconditional], np.int32), jnp.stack([row_key(0, 0)])
  greedy = Sampling(temperature=0)
  ours = generate_codes(decoder, tokens, tokens >= 0, keys, guidance=5.0, sampling=greedy, window=Window(1)).codes
  theirs = model.generate(
    input_ids=torch.tensor([prompt]),
    attention_mask=torch.ones((1, 6), dtype=torch.long),
    generation_mode='image',
    generation_config=reference.transformers.GenerationConfig(
      do_sample=False, guidance_scale=5.0, bos_token_id=BOS, pad_token_id=PAD, generation_kwargs={'boi_token_id': BOI}
    ),
  )
  np.testing.assert_array_equal(ours, theirs.numpy())


def test_a_decoder_with_factors_is_that_of_the_merged_tree(base):
  """What samples along the way of a run are drawn with: factors apart, kernels as they are or in int8."""
  adapter = made_adapter(base, full=())
  for config, largest in ((LORA, 1e-5), (LoraConfig(rank=3, alpha=6.0, base_dtype='int8'), 0.1)):
    params = tree_of(training_params(adapter, SHAPES, config, 0, 'adapter'))
    decoders = [make_decoder(CONFIG, ComputeConfig(), tree) for tree in (params, tree_of(adapter.params))]
    found = []
    for decoder in decoders:
      mask = np.ones_like(TOKENS, bool)
      cache = decoder.empty_cache([mask], len(TOKENS), [])
      embedded = decoder.method('embed_text', TOKENS)
      positions = np.broadcast_to(np.arange(TOKENS.shape[1]), TOKENS.shape)
      found.append(np.asarray(decoder.hidden(embedded, positions, cache)[0]))
    assert 0 < np.abs(found[0] - found[1]).max() < largest


@pytest.mark.parametrize(
  'changes',
  [
    {'target_modules': ['q_proj', 'v_proj']},  # SigLIP's too.
    {'target_modules': r'.*language_model\.layers\.\d+\.mlp\.(up|down)_proj', 'use_rslora': True},
    {'target_modules': ['o_proj', 'k_proj'], 'layers_to_transform': [0, 2], 'layers_pattern': 'layers'},
    {
      'target_modules': r'.*language_model.*_proj',
      'rank_pattern': {'q_proj': 2, r'layers\.1\.mlp\.up_proj': 5},
      'alpha_pattern': {'v_proj': 1, r'layers\.2\.self_attn\.o_proj': 20},
    },
    {'target_modules': ['lm_head', 'model.aligner.fc1'], 'modules_to_save': ['generation_aligner']},
  ],
)
def test_what_peft_writes_is_what_we_compute(tmp_path, base, changes):
  model = peft.get_peft_model(fresh_model(), peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, **changes))
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if 'modules_to_save' in name:
        parameter += 0.1
  model.peft_config['default'].base_model_name_or_path = base
  model.save_pretrained(tmp_path / 'adapter')
  opened = open_checkpoint(str(tmp_path / 'adapter'))
  params = tree_of(opened.params)
  assert_same(our_logits(params), their_logits(model))
  whole = {name: tensor.numpy() for name, tensor in model.merge_and_unload().state_dict().items()}
  names = {'vision_encoder/layers/attn/q/kernel': 'model.vision_model.encoder.layers.1.self_attn.q_proj.weight'}
  names |= {'vision_aligner/fc1/kernel': 'model.aligner.fc1.weight'}
  names |= {'gen_aligner/fc2/bias': 'model.generation_aligner.hidden_layers.0.bias'}
  for path, name in names.items():
    own = opened.params[path][...]
    own = own[1] if '/layers/' in path else own
    np.testing.assert_allclose(own.reshape(whole[name].shape), whole[name], atol=1e-6, err_msg=name)


def test_deepseeks_names(tmp_path, base):
  """The structure of DeepSeek's MultiModalityCausalLM: an own LlamaForCausalLM beside the image head."""
  adapter = made_adapter(base, full=())
  directory = written(adapter, tmp_path / 'adapter', 'deepseek')

  class Whole(torch.nn.Module):
    def __init__(self, janus):
      super().__init__()
      config = janus.config.text_config
      self.language_model = reference.transformers.LlamaForCausalLM(config).eval()
      self.language_model.model.load_state_dict(janus.model.language_model.state_dict())
      self.language_model.lm_head.load_state_dict(janus.lm_head.state_dict())
      self.gen_head, self.config = janus.model.generation_head, {'model_type': 'multi_modality'}

  model = peft.PeftModel.from_pretrained(Whole(fresh_model()), directory).base_model.model
  with torch.inference_mode():
    hidden = model.language_model.model(input_ids=torch.from_numpy(TOKENS).long()).last_hidden_state
    theirs = model.language_model.lm_head(hidden).numpy(), model.gen_head(hidden).numpy()
  assert_same(our_logits(tree_of(adapter.params)), theirs)
  opened = open_checkpoint(directory)
  np.testing.assert_array_equal(
    opened.params['language_model/layers/mlp/up/kernel'][...],
    adapter.params['language_model/layers/mlp/up/kernel'][...],
  )


def renamed(directory: str, target: pathlib.Path, change) -> str:
  from safetensors.numpy import load_file, save_file

  shutil.copytree(directory, target)
  path = target / 'adapter_model.safetensors'
  save_file({change(name): tensor for name, tensor in load_file(path).items()}, path)
  return str(target)


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    ('model.language_model.', 'model.'),  # DeepSeek's language model by itself.
    ('model.language_model.', ''),  # transformers' decoder by itself.
    ('lora_A.weight', 'lora_A.default.weight'),  # A state dict of the wrapped model.
  ],
)
def test_other_names_of_the_same_modules(tmp_path, base, old, new):
  directory = written(made_adapter(base, full=()), tmp_path / 'adapter')
  other = renamed(directory, tmp_path / 'other', lambda name: name.replace(old, new))
  path = 'language_model/layers/attn/o/kernel'
  found, expected = (open_checkpoint(where).params[path][...] for where in (other, directory))
  np.testing.assert_array_equal(found, expected)


def test_merging_rounds_once_to_the_dtype_that_is_asked_for(tmp_path, base):
  adapter = made_adapter(base, full=())
  half = {path: leaf.astype(np.dtype(ml_dtypes.bfloat16)) for path, leaf in adapter.base_params.items()}
  opened = open_checkpoint(written(adapter, tmp_path / 'adapter'))
  over_half = Adapter(base, half, adapter.factors, {})
  path = 'language_model/layers/mlp/down/kernel'
  a, b, scale = (adapter.factors[path.replace('kernel', name)][...] for name in ('lora_a', 'lora_b', 'lora_scale'))
  exact = half[path][...].astype(np.float32) + scale[:, None, None] * (b @ a)
  merged = over_half.params[path]
  assert merged.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(merged[...], exact.astype(ml_dtypes.bfloat16))
  wide = cast_params(type(opened)(CONFIG, over_half.params, {}, {}, ()), 'float32').params[path]
  np.testing.assert_allclose(wide[...], exact, atol=1e-6)
  for index in (1, (1, slice(3, 5)), slice(1, 3), (slice(None), slice(2, 9)), (..., slice(0, 4)), (-1, 0, 0)):
    np.testing.assert_array_equal(merged[index], merged[...][index])


def test_a_kernel_in_int8_is_rounded_as_for_decoding(base):
  from janus_jax.models.quantization import quantize

  config = LoraConfig(rank=2, base_dtype='int8')
  params = open_checkpoint(base).params
  found = training_params(Adapter(base, params, {}, {}), SHAPES, config, 0, base)
  assert {path: tuple(leaf.shape) for path, leaf in found.items()} == adapted_shapes(SHAPES, config)
  for module in ('language_model/layers/attn/o', 'language_model/layers/mlp/gate'):
    kernel = params[f'{module}/kernel'][...]
    values, scale = quantize(jnp.asarray(kernel.reshape(len(kernel), *found[f'{module}/int8'].shape[1:])))
    for name, expected in (('int8', values), ('scale', scale)):
      leaf = found[f'{module}/{name}']
      # XLA multiplies with 1 / 127.
      np.testing.assert_allclose(leaf[...], expected, rtol=2e-7)
      np.testing.assert_array_equal(leaf[1, 2:5], leaf[...][1, 2:5])
      np.testing.assert_array_equal(leaf[1:], leaf[...][1:])


def message(path: str) -> str:
  with pytest.raises(InputError) as error:
    open_checkpoint(path)
  assert '\n' not in str(error.value)
  return str(error.value)


def with_config(directory: str, target: pathlib.Path, **changes) -> str:
  shutil.copytree(directory, target)
  path = target / 'adapter_config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
  return str(target)


def test_what_is_wrong_is_one_line(tmp_path, base):
  adapter = made_adapter(base)
  directory = written(adapter, tmp_path / 'adapter')
  wrong = renamed(directory, tmp_path / 'wrong', lambda name: name.replace(PREFIX, 'base.'))
  assert 'names of no Janus, or of a deeper one (46 tensors, such as base.model' in message(wrong)
  none = with_config(directory, tmp_path / 'none', base_model_name_or_path='')
  assert f'names no base (base_model_name_or_path): expected BASE+{none}' in message(none)
  assert open_checkpoint(f'{base}+{none}').adapter.base == base
  moved = with_config(directory, tmp_path / 'moved', base_model_name_or_path='/nowhere')
  assert 'its base cannot be opened: /nowhere: no such directory' in message(moved)
  dora = with_config(directory, tmp_path / 'dora', use_dora=True)
  assert 'use_dora is True: expected False' in message(dora)
  other = with_config(directory, tmp_path / 'ia3', peft_type='IA3')
  assert "peft_type is 'IA3': expected 'LORA'" in message(other)
  (tmp_path / 'seed1').mkdir()
  reference.huggingface_model(CONFIG, 1).save_pretrained(tmp_path / 'seed1')
  assert f'an adapter for another base than {tmp_path}/seed1' in message(f'{tmp_path}/seed1+{directory}')
  assert f'a whole model: expected an adapter after {base}+' in message(f'{base}+{base}')
  (pathlib.Path(wrong) / 'adapter_model.safetensors').unlink()
  assert 'no weights found: expected adapter_model.safetensors or adapter_model.bin' in message(wrong)


def test_an_adapter_of_another_size(tmp_path, base):
  directory = written(made_adapter(base, full=()), tmp_path / 'adapter')
  (pathlib.Path(directory) / 'janus_adapter.json').unlink()
  small = small_checkpoint.write(tmp_path / 'small')  # One layer instead of three.
  assert 'expected an adapter' in message(f'{small}+{directory}')


def test_a_pickled_adapter(tmp_path, base):
  from safetensors.torch import load_file

  directory = pathlib.Path(written(made_adapter(base, full=()), tmp_path / 'adapter'))
  expected = open_checkpoint(str(directory)).params['language_model/layers/attn/q/kernel'][...]
  path = directory / 'adapter_model.safetensors'
  torch.save(load_file(path), directory / 'adapter_model.bin')
  path.unlink()
  found = open_checkpoint(str(directory)).params['language_model/layers/attn/q/kernel'][...]
  np.testing.assert_array_equal(found, expected)


def test_deepseeks_encoder_has_q_k_and_v_in_one(tmp_path, base):
  adapter = made_adapter(base, LoraConfig(rank=2, targets=('vision_encoder',)), full=())
  assert any(is_adapter(path) and path.startswith('vision_encoder/') for path in adapter.factors)
  with pytest.raises(InputError, match=r"DeepSeek's layout has q, k and v in one: expected --format=peft, or --merge"):
    written(adapter, tmp_path / 'adapter', 'deepseek')
