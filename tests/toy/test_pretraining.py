"""The short pretrainings: their losses against torch, and that they learn what they are shown."""

import collections
import dataclasses
import itertools

import jax
import numpy as np
import pytest
from flax import linen as nn

from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig, JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from janus_jax.models.initialization import initial_params
from janus_jax.models.vq import VQ
from janus_jax.toy import pretraining_vision
from janus_jax.toy.pretraining import Optimization, PackedText, PretrainingSetup, next_token_loss, pretrain_decoder
from janus_jax.toy.pretraining_vision import Contrast, pretrain_vision, sigmoid_loss
from janus_jax.toy.pretraining_vq import choose_looks, naming_loss, nearest_looks, pretrain_vq, rows_for, spread_picks

SIZE = 8
CONFIG = JanusConfig(
  vision_encoder=SiglipConfig(image_size=SIZE, patch_size=4, width=32, mlp_dim=64, depth=1, num_heads=2),
  vq=VQConfig(
    image_size=SIZE,
    codebook_size=16,
    z_channels=32,
    base_channels=32,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
  ),
  language_model=LlamaConfig(
    vocab_size=24, width=32, mlp_dim=64, depth=1, num_heads=2, num_kv_heads=2, head_dim=16, max_positions=64
  ),
  image_token_id=23,
)

COMPUTE = ComputeConfig()
# The same for every run of the tokenizer: they share its step.
VQ_OPTIMIZATION = Optimization(120, 8, 3e-3, 10)
SETUP = PretrainingSetup(CONFIG, COMPUTE, VQ_OPTIMIZATION, seed=0)


@pytest.fixture(scope='module')
def params():
  return initial_params(CONFIG, 0)


def patchwork(number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Images of 2 x 2 fields of black, red, white or blue, and the fields' colours int[n, 4]."""
  palette = np.array([(0, 0, 0), (255, 0, 0), (255, 255, 255), (0, 0, 255)], np.uint8)
  colours = np.random.default_rng(seed).integers(4, size=(number, 2, 2))
  return palette[colours].repeat(SIZE // 2, 1).repeat(SIZE // 2, 2), colours.reshape(number, 4)


class Log:
  def __init__(self):
    self.losses = []

  def __call__(self, step, loss):
    assert step == len(self.losses) + 1
    self.losses.append(float(loss))


@pytest.mark.parametrize('labels', ['one positive', 'several'])
def test_sigmoid_loss_matches_siglip(labels):
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((6, 6)).astype(np.float32) * 4
  is_true = np.eye(6, dtype=bool) if labels == 'one positive' else np.eye(6, dtype=bool) | (rng.random((6, 6)) < 0.3)
  # SiglipModel.forward of transformers, with labels in place of its 2 eye - 1.
  signs = torch.tensor(2.0 * is_true - 1)
  expected = -torch.nn.functional.logsigmoid(signs * torch.tensor(logits)).sum(dim=-1).mean()
  np.testing.assert_allclose(sigmoid_loss(logits, is_true), expected.item(), rtol=1e-6)


def test_next_token_loss_ignores_padding_and_the_seam_between_examples():
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  tokens, logits = rng.integers(9, size=(2, 6)), rng.standard_normal((2, 6, 9)).astype(np.float32)
  segments = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]])
  scored = [(0, 0), (0, 1), (0, 3), (1, 0)]
  picked = torch.tensor(np.stack([logits[i] for i in scored]))
  expected = torch.nn.functional.cross_entropy(picked, torch.tensor([tokens[b, t + 1] for b, t in scored]))
  np.testing.assert_allclose(next_token_loss(logits, tokens, segments), expected.item(), rtol=1e-6)


def test_picks_are_spread_out():
  rng = np.random.default_rng(0)
  corners = np.eye(8, dtype=np.float32)
  patches = np.concatenate([np.repeat(corners[:1], 5000, 0), corners[1:]])  # One of them far more common.
  picked = patches[spread_picks(patches, np.ones(len(patches)), 8, rng)]
  assert (np.sort(picked.argmax(1)) == np.arange(8)).all()
  distances = np.where(patches.argmax(1) < 3, 0, 1)  # Three are there already.
  assert (np.sort(patches[spread_picks(patches, distances, 5, rng)].argmax(1)) == np.arange(3, 8)).all()


def test_looks_are_what_repeats_then_what_is_spread_out():
  rng = np.random.default_rng(0)
  often, seldom, others = np.full(6, 0.5), np.full(6, -0.5), np.eye(6) * 0.9
  patches = np.concatenate([np.repeat([seldom, often], [3, 50], axis=0), others, others[:1]]).astype(np.float32)
  np.testing.assert_array_equal(choose_looks(patches, 2, rng), np.float32([often, seldom]))
  rest = choose_looks(patches, 5, rng)[2:]
  assert len(np.unique(rest, axis=0)) == 3
  assert all((look == others.astype(np.float32)).all(1).any() for look in rest)
  assert choose_looks(patches, 40, rng).shape == (40, 6)  # More than there are.


def test_rows_of_looks_are_their_principal_components():
  rng = np.random.default_rng(0)
  looks = (rng.standard_normal((40, 3)) * [9, 3, 1] @ np.linalg.qr(rng.standard_normal((12, 3)))[0].T).astype(
    np.float32
  )
  rows = rows_for(looks, 5)
  np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
  assert not rows[:, 3:].any()  # Three directions are all there are.
  # Whitened, as by sklearn's PCA.
  components = pytest.importorskip('sklearn.decomposition').PCA(3, whiten=True).fit_transform(looks)
  expected = components / np.linalg.norm(components, axis=1, keepdims=True)
  np.testing.assert_allclose(abs(rows[:, :3]), abs(expected), atol=1e-4)


def test_a_cell_is_named_by_the_look_it_differs_from_least():
  rng = np.random.default_rng(0)
  patches, looks = rng.standard_normal((50, 12)).astype(np.float32), rng.standard_normal((7, 12)).astype(np.float32)
  expected = np.square(patches[:, None] - looks).sum(-1).argmin(1)
  np.testing.assert_array_equal(nearest_looks(patches, looks), expected)


def test_the_naming_loss_is_a_cross_entropy_in_which_frequent_looks_weigh_less():
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  cosines, targets = rng.uniform(-1, 1, (6, 5)).astype(np.float32), np.array([2, 2, 2, 2, 0, 4])
  losses = torch.nn.functional.cross_entropy(torch.tensor(cosines) / 0.1, torch.tensor(targets), reduction='none')
  weights = torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0, 1.0])
  expected = (losses * weights).sum() / weights.sum()
  np.testing.assert_allclose(naming_loss(cosines, targets), expected.item(), rtol=1e-5)


@pytest.fixture(scope='module')
def tokenizer(params) -> tuple[dict, Log]:
  """Trained on 200 images of `patchwork`, and its losses."""
  log = Log()
  return pretrain_vq(dataclasses.replace(SETUP, progress=log), params['vq'], patchwork(200)[0]), log


def test_a_look_has_one_code_whatever_is_around_it(tokenizer):
  trained, log = tokenizer
  assert len(log.losses) == 120
  assert np.mean(log.losses[-10:]) < 0.2 * np.mean(log.losses[:10])
  model, (images, colours) = VQ(CONFIG.vq, COMPUTE), patchwork(40, seed=1)
  unseen = images.astype(np.float32) / 127.5 - 1

  def there_and_back(vq, pixels):
    codes = vq.encode(pixels)
    return codes, vq.decode(codes)

  codes, decoded = nn.apply(there_and_back, model)({'params': trained}, unseen)
  # A field is 2 x 2 cells; each colour is a look.
  fields = np.asarray(codes).reshape(40, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(160, 4)
  counts = [
    collections.Counter(fields[colours.ravel() == colour].ravel().tolist()).most_common() for colour in range(4)
  ]
  usual, times = zip(*(found[0] for found in counts))
  assert len(set(usual)) == 4
  assert sum(times) > 0.99 * fields.size
  assert np.mean(np.square(decoded - unseen)) < 0.2 * unseen.var()


def swapped(colours: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Colours int[n, 4] of which two that differ have changed places, where there are two."""
  changed = colours.copy()
  for row in changed:
    a, b = next(pair for pair in (rng.permutation(4)[:2] for _ in range(1000)) if row[pair[0]] != row[pair[1]])
    row[[a, b]] = row[[b, a]]
  return changed


def test_encoder_learns_to_tell_near_misses(params, monkeypatch):
  """They have the words of the true caption: chance captions are told apart by the words alone."""
  images, colours = patchwork(240)
  mixed = (colours != colours[:, :1]).any(1)  # Others have no near misses.
  images, colours, rng = images[mixed], colours[mixed], np.random.default_rng(1)
  wrong = np.stack([swapped(colours, rng) for _ in range(4)], axis=1)
  # Word 4 f + c says that field f is of colour c.
  captions = (np.array(list(itertools.product(range(4), repeat=4))) + 4 * np.arange(4)).astype(np.int32)
  true, wrong = (said @ 4 ** np.arange(3, -1, -1) for said in (colours, wrong))
  kept, minimize = {}, pretraining_vision.minimize
  monkeypatch.setattr(pretraining_vision, 'minimize', lambda *given: kept.update(minimize(*given)) or kept)
  log, contrast, seen = Log(), Contrast(text_depth=1, near_misses=2), slice(180)
  setup = PretrainingSetup(CONFIG, COMPUTE, Optimization(450, 16, 3e-3, 10), 0, log)
  said = true[seen], wrong[seen]
  trained = pretrain_vision(setup, params['vision_encoder'], images[seen], captions, said, contrast)
  assert jax.tree.map(np.shape, trained) == jax.tree.map(np.shape, params['vision_encoder'])
  # Of images that it has not seen.
  pair = pretraining_vision._Pair(CONFIG, contrast, COMPUTE)
  logits = np.asarray(pair.apply({'params': kept}, images[180:], captions))
  of_true, of_wrong = (logits[np.arange(len(logits))[:, None], said] for said in (true[180:, None], wrong[180:]))
  assert np.mean(of_true > of_wrong) > 0.85


def test_a_batch_has_the_true_caption_of_each_image_and_some_near_misses(params, monkeypatch):
  images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((SIZE, SIZE, 3), np.uint8)
  captions = np.arange(20, dtype=np.int32)[:, None]
  # Images 0 and 1 have one caption; the near misses of 2 are true of others.
  true, wrong = np.array([0, 0, 1, 2, 3, 4]), np.array([[5, 6, 7], [8, 9, 10], [0, 2, 3], *[[11, 12, 13]] * 3])
  kept = []
  monkeypatch.setattr(pretraining_vision, 'minimize', lambda *given: kept.extend(given[-1]) or given[1])
  setup = PretrainingSetup(CONFIG, COMPUTE, Optimization(60, 4, 3e-3, 10), 0, Log())
  contrast = Contrast(text_depth=1, near_misses=2)
  pretrain_vision(setup, params['vision_encoder'], images, captions, (true, wrong), contrast)
  assert len(kept) == 60
  picked = set()
  for pixels, words, is_true in kept:
    rows, words = pixels[:, 0, 0, 0], words[:, 0]
    np.testing.assert_array_equal(words[:4], true[rows])
    np.testing.assert_array_equal(is_true, words == true[rows][:, None])
    for row, misses in zip(rows.tolist(), words[4:].reshape(4, 2).tolist(), strict=True):
      assert len({*misses} & {*wrong[row].tolist()}) == 2
      picked |= {(row, miss) for miss in misses}
  assert picked == {(row, miss) for row in range(6) for miss in wrong[row].tolist()}


def test_decoder_learns_text_in_packed_rows_the_same_way_every_time(params):
  # Two examples a row, each counting up from some token: after the first token nothing is left to guess.
  starts = np.random.default_rng(0).integers(8, size=(50, 2, 1))
  tokens = (starts + np.arange(6)).reshape(50, 12).astype(np.int32)
  segments = np.tile(np.repeat([1, 2], 6), (50, 1)).astype(np.int32)
  positions = np.tile(np.arange(6), (50, 2)).astype(np.int32)
  log, again = Log(), Log()
  for progress in (log, again):
    setup = dataclasses.replace(SETUP, progress=progress)
    pretrain_decoder(setup, params['language_model'], PackedText(tokens, segments, positions))
  assert log.losses[0] > 2
  assert log.losses[-1] < 0.05
  assert log.losses == again.losses


def test_bad_input_is_refused(params):
  fine = Optimization(5, 2, 1e-3, 1)
  setup = dataclasses.replace(SETUP, optimization=fine)
  images = np.zeros((3, SIZE, SIZE, 3), np.uint8)
  with pytest.raises(InputError, match='warmup_steps is 5'):
    dataclasses.replace(fine, warmup_steps=5)
  with pytest.raises(InputError, match='expected uint8'):
    pretrain_vq(setup, params['vq'], images.astype(np.float32))
  row = np.full((1, 4), 24, np.int32)
  with pytest.raises(InputError, match=r'expected 0\.\.23'):
    pretrain_decoder(setup, params['language_model'], PackedText(row, row, row))


@pytest.mark.parametrize(
  ('true', 'wrong', 'message'),
  [
    ([0, 1, 0], [[0], [2], [0]], r'a caption that is not there: expected 0\.\.1'),
    ([0, -1, 0], [[0], [1], [0]], r'a caption that is not there: expected 0\.\.1'),
    ([0, 1], [[0], [1], [0]], '3 images, 2 captions and 3 near misses: expected one of each'),
    ([0, 1, 0], [[0], [1]], '3 images, 3 captions and 2 near misses: expected one of each'),
  ],
)
def test_captions_that_do_not_fit_the_images_are_refused(params, true, wrong, message):
  images, captions = np.zeros((3, SIZE, SIZE, 3), np.uint8), np.zeros((2, 2), np.int32)
  setup = dataclasses.replace(SETUP, optimization=Optimization(5, 2, 1e-3, 1))
  with pytest.raises(InputError, match=message):
    pretrain_vision(setup, params['vision_encoder'], images, captions, (np.array(true), np.array(wrong)), Contrast())
