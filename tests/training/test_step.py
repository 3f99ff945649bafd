"""The train step against torch, against itself in other forms, and through three stages."""

import collections
import dataclasses

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.data.examples import KINDS
from janus_jax.models.config import ComputeConfig
from janus_jax.training import step as step_lib
from janus_jax.training.optimizer import OptimizerConfig
from janus_jax.training.state import enter_stage, flatten, new_state, unflatten
from janus_jax.training.step import StageValues, StepConfig, jit_train_step

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

import reference  # noqa: E402
from small_checkpoint import CONFIG  # noqa: E402

from conversion.fixtures import EOS  # noqa: E402
from training import batches  # noqa: E402

from janus_jax.conversion.lazy import from_numpy  # noqa: E402
from janus_jax.conversion.translate import parameter_shapes, params_from_tensors  # noqa: E402

STEP = StepConfig(CONFIG, ComputeConfig(), OptimizerConfig())
PATHS = tuple(flatten(reference.our_params(CONFIG)))
PARTS = ('vision_aligner', 'gen_aligner', 'gen_head')
STAGE_1 = frozenset(path for path in PATHS if path.startswith(PARTS))
STAGE_2 = frozenset(path for path in PATHS if path.startswith((*PARTS, 'gen_embed', 'language_model')))
STAGE_3 = frozenset(path for path in PATHS if not path.startswith('vq'))
STAGES = ((STAGE_1, 50), (STAGE_2, 5), (STAGE_3, 5))
"""What trains, and for how many steps."""


def params() -> dict:
  """Buffers of their own, for a state that is donated."""
  return jax.tree.map(lambda leaf: np.array(leaf), reference.our_params(CONFIG))


def stage_values(learning_rate=1e-3, weight_decay=0.0, loss_weights=(1.0, 1.0, 1.0)) -> StageValues:
  return StageValues(jnp.float32(learning_rate), jnp.float32(weight_decay), jnp.array(loss_weights, jnp.float32))


def to_numpy(state):
  return jax.tree.map(np.array, state)


def largest_difference(one: dict, other: dict) -> float:
  assert one.keys() == other.keys()
  return max(float(np.abs(one[path] - other[path]).max()) for path in one)


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  return batches.make_spec(tmp_path_factory.mktemp('tokenizer'))


@pytest.fixture(scope='module')
def examples(spec):
  return batches.make_examples(spec, batches.records())


@pytest.fixture(scope='module')
def batch(examples):
  return batches.batch_of(examples, batches.ROWS)


def through_stages(mode: str, batch) -> tuple[list, int]:
  """State before each stage and after the last, and after each; and how often the step was compiled."""
  compiled = collections.Counter()

  def listen(event: str, seconds: float, **labels) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
      compiled[labels.get('fun_name')] += 1

  jax.monitoring.register_event_duration_secs_listener(listen)
  step = jit_train_step(mode)
  everything = STAGE_1 | STAGE_2 | STAGE_3
  state = new_state(params(), STAGE_1 if mode == 'static' else everything, STEP.optimizer)
  snapshots = []
  for trained, steps in STAGES:
    state = enter_stage(state, trained if mode == 'static' else everything, STEP.optimizer)
    masks = trained if mode == 'static' else {path: jnp.array(path in trained) for path in sorted(everything)}
    before = to_numpy(state)
    for _ in range(steps):
      state, metrics = step(state, batch, stage_values(), masks=masks, config=STEP)
    assert int(metrics['skipped']) == 0
    snapshots.append((before, to_numpy(state)))
  jax.monitoring.unregister_event_duration_listener(listen)
  return snapshots, sum(count for name, count in compiled.items() if 'train_step' in str(name))


@pytest.fixture(scope='module')
def static_run(batch):
  return through_stages('static', batch)


@pytest.fixture(scope='module')
def traced_run(batch):
  return through_stages('traced', batch)


def test_static_masks_compile_once_per_stage(static_run):
  assert static_run[1] == 3


def test_traced_masks_compile_once(traced_run):
  assert traced_run[1] == 1


@pytest.mark.parametrize('mode', step_lib.MODES)
def test_what_is_frozen_stays_bit_identical_and_all_else_moves(mode, request):
  snapshots, _ = request.getfixturevalue(f'{mode}_run')
  for (trained, _), (before, after) in zip(STAGES, snapshots):
    before, after = flatten(before.params), flatten(after.params)
    for path in before:
      same = before[path].tobytes() == after[path].tobytes()
      assert same == (path not in trained), path


def test_static_frozen_parameters_have_no_moments(static_run):
  for (trained, _), (_, after) in zip(STAGES, static_run[0]):
    assert after.opt_state.mu.keys() == trained
    assert after.opt_state.nu.keys() == trained
    assert all(np.any(moment) for moment in after.opt_state.nu.values())


def test_traced_moments_of_frozen_parameters_never_move(traced_run):
  for (trained, _), (_, after) in zip(STAGES, traced_run[0]):
    for moments in (after.opt_state.mu, after.opt_state.nu):
      assert {path for path, moment in moments.items() if np.any(moment)} == trained


def test_static_and_traced_end_in_the_same_parameters(static_run, traced_run):
  for (_, static), (_, traced) in zip(static_run[0], traced_run[0]):
    assert largest_difference(flatten(static.params), flatten(traced.params)) < 1e-6


@pytest.fixture(scope='module')
def full_step(static_run):
  """(state, batch, values) -> (state, metrics), everything but the VQ training; compiled by `static_run`."""
  step = jit_train_step('static')
  return lambda state, batch, values: step(state, batch, values, masks=STAGE_3, config=STEP)


def fresh(config=STEP, trained=STAGE_3, tree=None):
  return new_state(params() if tree is None else tree, trained, config.optimizer)


def gradients_of_first_step(state, metrics) -> dict[str, np.ndarray]:
  """From Adam's first moment, which is (1 - b1) times the clipped gradient."""
  clip = min(1.0, 1.0 / float(metrics['grad_norm']))
  return {path: np.asarray(moment, np.float64) / 0.1 / clip for path, moment in state.opt_state.mu.items()}


# --- against torch


def torch_losses(model, kind: str, record: dict, example, spec) -> 'torch.Tensor':
  """Cross-entropy of every supervised target of one example, run by itself. Reads no targets, losses or weights."""
  ids = torch.from_numpy(example.tokens).long()
  if kind == 'generation':
    prompt, codes = ids[torch.from_numpy(example.kinds == 1)], torch.from_numpy(record['codes']).long()
    text = model.model.language_model.embed_tokens(prompt[None])
    drawn = model.prepare_embeddings_for_image_generation(codes[None, :-1])
    hidden = model.model.language_model(inputs_embeds=torch.cat([text, drawn], 1)).last_hidden_state
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
  model = reference.huggingface_model(CONFIG)
  found = {}
  for kind in KINDS:
    pairs = [(record, example) for (k, record), example in zip(batches.records(), examples) if k == kind]
    losses = torch.cat([torch_losses(model, kind, record, example, spec) for record, example in pairs])
    model.zero_grad()
    losses.mean().backward()
    tensors = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()}
    found[kind] = float(losses.mean()), len(losses), as_our_parameters(tensors)
  model.zero_grad()
  return found


def as_our_parameters(tensors: dict) -> dict[str, np.ndarray]:
  lazy = {name: from_numpy(tensor.numpy(), name) for name, tensor in tensors.items()}
  found = params_from_tensors(parameter_shapes(CONFIG), lazy, 'huggingface', 'torch')
  return {path: array[...] for path, array in found.items()}


# What must have a gradient that is not zero, so that the comparison means something.
REACHED = {
  'understanding': ('vision_encoder/layers/attn/q/kernel', 'vision_encoder/patch_embed/kernel', 'vision_aligner/fc1/bias'),
  'text': ('language_model/embed_tokens/table', 'language_model/lm_head/kernel'),
  'generation': ('gen_embed/table', 'gen_aligner/fc1/kernel', 'gen_head/fc2/kernel', 'language_model/layers/attn/q/kernel'),
}


@pytest.mark.parametrize('kind', KINDS)
def test_loss_and_gradients_of_each_kind_equal_torch(kind, full_step, batch, torch_reference):
  index = KINDS.index(kind)
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
  counts = np.array([torch_reference[kind][1] for kind in KINDS])
  losses = np.array([torch_reference[kind][0] for kind in KINDS])
  assert abs(float(metrics['loss']) - (counts * losses).sum() / counts.sum()) < 1e-4
  ours = gradients_of_first_step(state, metrics)
  for path in REACHED['text'] + REACHED['generation']:
    expected = sum(n * torch_reference[kind][2][path] for n, kind in zip(counts, KINDS)) / counts.sum()
    assert np.abs(ours[path] - expected).max() < 1e-4
