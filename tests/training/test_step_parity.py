"""The train step against torch: loss and gradients of each kind by transformers' modules, the update by AdamW."""

import numpy as np
import pytest
from conversion.fixtures import EOS
from training import batches
from training.batches import CONFIG, params
from training.steps import EPS, STAGE_3, STEP, fresh, gradients_of_first_step, stage_values, to_numpy

from janus_jax.conversion.configs import janus_to_huggingface
from janus_jax.conversion.lazy import from_numpy
from janus_jax.conversion.translate import parameter_shapes, params_from_tensors, tensors_from_params
from janus_jax.data.examples import TASKS
from janus_jax.training.state import flatten
from janus_jax.training.step import jit_train_step

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  return batches.make_spec(tmp_path_factory.mktemp('tokenizer'))


@pytest.fixture(scope='module')
def examples(spec):
  return batches.make_examples(spec, batches.records())


@pytest.fixture(scope='module')
def batch(examples):
  return batches.batch_of(examples, batches.ROWS)


@pytest.fixture(scope='module')
def full_step():
  """(state, batch, values) -> (state, metrics), everything but the VQ training."""
  step = jit_train_step('static')
  return lambda state, batch, values: step(state, batch, values, masks=STAGE_3, config=STEP)


def torch_losses(model, kind: str, record: dict, example, spec):
  """Cross-entropy of every supervised target of one example, run by itself. Reads no targets, losses or weights."""
  ids = torch.from_numpy(example.tokens).long()
  if kind == 'generation':
    prompt, codes = ids[torch.from_numpy(example.token_types == 1)], torch.from_numpy(record['codes']).long()
    text = model.model.language_model.embed_tokens(prompt[None])
    generated = model.prepare_embeddings_for_image_generation(codes[None, :-1])
    hidden = model.model.language_model(inputs_embeds=torch.cat([text, generated], 1)).last_hidden_state
    # begin-of-image, the last of the prompt, predicts code 0.
    logits = model.model.generation_head(hidden[0, len(prompt) - 1 :])
    return torch.nn.functional.cross_entropy(logits, codes, reduction='none')
  images = [torch.from_numpy(image / 127.5 - 1).float().permute(2, 0, 1) for image in record.get('images', [])]
  logits = model(input_ids=ids[None], pixel_values=torch.stack(images) if images else None).logits[0]
  answer = len(ids) - 1
  if kind == 'understanding':
    answer = len(spec.tokenizer.encode(f' {record["turns"][1]}{EOS}', add_bos=False))
  return torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction='none')[-answer:]


@pytest.fixture(scope='module')
def torch_reference(examples, spec):
  """kind -> (mean loss, number of targets, its gradients as our parameters)."""
  fields = janus_to_huggingface(CONFIG, 'float32')
  model = transformers.JanusForConditionalGeneration(transformers.JanusConfig.from_dict(fields)).eval()
  lazy = {path: from_numpy(leaf, path) for path, leaf in flatten(params()).items()}
  weights = tensors_from_params(lazy, 'huggingface')
  model.load_state_dict({name: torch.tensor(array[...]) for name, array in weights.items()})
  found = {}
  for kind in TASKS:
    pairs = [(record, example) for (k, record), example in zip(batches.records(), examples) if k == kind]
    losses = torch.cat([torch_losses(model, kind, record, example, spec) for record, example in pairs])
    model.zero_grad()
    losses.mean().backward()
    tensors = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()}
    lazy = {name: from_numpy(tensor.numpy(), name) for name, tensor in tensors.items()}
    gradients = params_from_tensors(parameter_shapes(CONFIG), lazy, 'huggingface', 'torch')
    found[kind] = losses.mean().item(), len(losses), {path: array[...].copy() for path, array in gradients.items()}
  return found


# What must have a gradient that is not zero, so that the comparison means something.
REACHED = {
  'understanding': (
    'vision_encoder/layers/attn/q/kernel',
    'vision_encoder/patch_embed/kernel',
    'vision_aligner/fc1/bias',
  ),
  'text': ('language_model/embed_tokens/table', 'language_model/lm_head/kernel'),
  'generation': (
    'gen_embed/table',
    'gen_aligner/fc1/kernel',
    'gen_head/fc2/kernel',
    'language_model/layers/attn/q/kernel',
  ),
}


@pytest.mark.parametrize('kind', TASKS)
def test_loss_and_gradients_of_each_kind_equal_torch(kind, full_step, batch, torch_reference):
  index = TASKS.index(kind)
  state, metrics = full_step(fresh(), batch, stage_values(loss_weights=np.eye(3)[index]))
  loss, count, gradients = torch_reference[kind]
  assert abs(float(metrics['loss']) - loss) < 1e-4
  assert float(metrics['loss_weights'][index]) == count
  assert abs(float(metrics['loss_sums'][index]) / count - loss) < 1e-4
  ours = gradients_of_first_step(state, metrics)
  for path in ours:
    assert np.abs(ours[path] - gradients[path]).max() < 1e-4 * max(1, np.abs(gradients[path]).max()), path
  assert all(np.abs(gradients[path]).max() > 1e-3 for path in REACHED[kind])


def test_the_loss_of_all_kinds_is_the_mean_over_all_targets(full_step, batch, torch_reference):
  state, metrics = full_step(fresh(), batch, stage_values())
  counts = np.array([torch_reference[kind][1] for kind in TASKS])
  losses = np.array([torch_reference[kind][0] for kind in TASKS])
  assert abs(float(metrics['loss']) - (counts * losses).sum() / counts.sum()) < 1e-4
  ours = gradients_of_first_step(state, metrics)
  for path in REACHED['text'] + REACHED['generation']:
    expected = sum(n * torch_reference[kind][2][path] for n, kind in zip(counts, TASKS)) / counts.sum()
    assert np.abs(ours[path] - expected).max() < 1e-4


def test_one_step_is_clipping_then_adamw_of_torch(full_step, batch):
  """On the same gradients; decay on matrices and tables only."""
  before = flatten(params())
  state, metrics = full_step(fresh(), batch, stage_values(1e-3, 0.1))
  gradients = gradients_of_first_step(state, metrics)
  decayed = [path for path in sorted(STAGE_3) if not (path.endswith('bias') or 'norm' in path)]
  leaves = {path: torch.nn.Parameter(torch.from_numpy(before[path]).double()) for path in sorted(STAGE_3)}
  for path, leaf in leaves.items():
    leaf.grad = torch.from_numpy(gradients[path])
  norm = torch.nn.utils.clip_grad_norm_(leaves.values(), 1.0)
  assert norm > 1.0
  assert abs(float(metrics['grad_norm']) - norm) < 1e-4 * norm
  groups = [
    {'params': [leaves[path] for path in decayed], 'weight_decay': 0.1},
    {'params': [leaves[path] for path in leaves if path not in decayed], 'weight_decay': 0.0},
  ]
  torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=EPS).step()
  ours = flatten(to_numpy(state.params))
  for path, leaf in leaves.items():
    assert np.abs(ours[path] - leaf.detach().numpy()).max() < 2e-6, path
