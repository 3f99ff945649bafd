"""FLOPs, bounds and days of a stage, against arithmetic."""

import dataclasses

import numpy as np
import pytest
from recipes import recipe

from janus_jax.data.packing import BatchShape, batch_shape
from janus_jax.models.config import PRESETS
from janus_jax.planning.roofline import StageWork, recomputed_flops, sampling_seconds, stage_figures, token_counts
from janus_jax.planning.topologies import parse_topology
from janus_jax.runs.config import parse_config
from janus_jax.training.preference_config import PreferenceConfig
from janus_jax.training.run_config import expected_mean
from janus_jax.training.throughput import trunk_parameters, vq_encoder_forward_flops


def work_7b(index: int, holds_codes: bool = False, **changes) -> StageWork:
  stage = dataclasses.replace(
    parse_config(recipe('janus_pro_7b')).run_stages[index], expected_tokens=(800.0, 1000.0, 650.0)
  )
  trained = frozenset({'vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head', 'language_model', 'vision_encoder'})
  mean = expected_mean(stage, 4096, holds_codes)
  work = StageWork(
    stage,
    PRESETS['janus_pro_7b'],
    batch_shape(stage.batch_size // 16, 4096, mean),
    16,
    mean,
    trained,
    frozenset(),
    remat='none',
    accumulation=1,
    state_bytes=0,
  )
  return dataclasses.replace(work, **changes)


NOTHING = dict.fromkeys(('all-gather', 'between-slices'), 0)


class Device:
  device_kind = 'TPU v5 lite'


class Mesh:
  """The part of a mesh that the figures read: 16 chips of v5e."""

  size, shape = 16, {'data': 16, 'fsdp': 1, 'tensor': 1}
  devices = np.array([Device()], object)


def test_full_batches_are_counted_as_documented():
  counts = token_counts(work_7b(2))
  assert counts.tokens == 128 * 4096
  # 5 : 1 : 4 of examples of 800, 1000 and 650 tokens.
  examples = 128 * 4096 / (0.5 * 800 + 0.1 * 1000 + 0.4 * 650)
  assert (counts.images_encoded, counts.images_tokenized) == (int(examples * 0.5), int(examples * 0.4))
  assert counts.understanding == counts.images_encoded * 576
  assert counts.generation == counts.images_tokenized * 575
  assert token_counts(work_7b(2, holds_codes=True)).images_tokenized == 0


def test_empty_slots_and_exact_products_take_time_but_are_no_flops_of_mfu():
  topology, work = parse_topology('v5e-16'), work_7b(2)
  more = dataclasses.replace(
    work, shape=dataclasses.replace(work.shape, generation_images=work.shape.generation_images + 10)
  )
  found, emptier = (stage_figures(one, topology, Mesh, NOTHING) for one in (work, more))
  assert emptier.flops == found.flops
  image, peak = vq_encoder_forward_flops(work.model.vq), 16 * 197e12
  assert emptier.executed_flops - found.executed_flops == pytest.approx(16 * 10 * image)
  # Six products in bfloat16 for one in float32.
  assert emptier.bound.compute - found.bound.compute == pytest.approx(6 * 16 * 10 * image / peak)
  stored = stage_figures(work_7b(2, holds_codes=True), topology, Mesh, NOTHING)
  exact = 6 * 16 * work.shape.generation_images * image / peak
  assert found.bound.compute - stored.bound.compute == pytest.approx(exact, rel=1e-3)


def test_days_and_bound_by_hand():
  work = work_7b(1)
  found = stage_figures(work, parse_topology('v5e-16'), Mesh, NOTHING)
  peak = 16 * 197e12
  assert found.tokens == 270_000 * 512 * 4096
  assert found.days[50] == pytest.approx(270_000 * found.flops.total / (0.5 * peak) / 86_400)
  assert found.days[40] / found.days[60] == pytest.approx(1.5)
  # Nothing to wait for but products, of which the logits are computed twice, and those of the VQ exactly.
  exact = 5 * 16 * work.shape.generation_images * vq_encoder_forward_flops(work.model.vq) / peak
  assert found.bound.seconds == found.bound.compute == pytest.approx(found.executed_flops / peak + exact)
  assert 0.9 < found.mfu_bound < 1
  # 41 GFLOP a token for text alone, with attention; logits of codes cost less, SigLIP and the VQ add some.
  assert found.flops.decoder / (512 * 4096) == pytest.approx(40e9, rel=0.05)


def test_rematerialisation_bounds_mfu():
  topology = parse_topology('v5e-16')
  by_remat = {
    r: stage_figures(work_7b(1, holds_codes=True, remat=r), topology, Mesh, NOTHING) for r in ('none', 'dots', 'full')
  }
  assert by_remat['none'].flops == by_remat['full'].flops
  bounds = [by_remat[remat].mfu_bound for remat in ('full', 'dots', 'none')]
  assert bounds == sorted(bounds)
  # Forward once more: 8 products instead of 6.
  assert bounds[0] == pytest.approx(0.75, abs=0.02)
  # Nothing passes gradients through the layers where the image head alone trains.
  head = frozenset({'gen_head'})
  alone = [stage_figures(work_7b(0, remat=r, trained=head), topology, Mesh, NOTHING) for r in ('none', 'full')]
  assert alone[0].executed_flops == alone[1].executed_flops


def test_slow_networks_bound_the_step():
  received = {'all-gather': 400e9, 'between-slices': 0}
  found = stage_figures(work_7b(2), parse_topology('v5e-16'), Mesh, received)
  assert found.bound.network == pytest.approx(400e9 / 200e9)
  across = {'all-gather': 0, 'between-slices': 400e9}
  assert stage_figures(work_7b(2), parse_topology('2xv5e-8'), Mesh, across).bound.network == pytest.approx(
    400e9 / 3.125e9
  )


def test_state_and_weights_bound_the_step():
  few = stage_figures(work_7b(2), parse_topology('v5e-16'), Mesh, NOTHING).bound.memory
  many = stage_figures(
    work_7b(2, accumulation=8, state_bytes=10**10), parse_topology('v5e-16'), Mesh, NOTHING
  ).bound.memory
  weights = 2 * (30 * (4 * 4096**2 + 3 * 4096 * 11008) + 102400 * 4096)
  assert few == pytest.approx(2 * weights / 819e9)
  assert many == pytest.approx((2e10 + 8 * 2 * weights) / 819e9)


def test_samples_are_counted_beside_data_or_alone():
  """128 images of the 7B on 16 chips: trained on once, passed through once more for each kind of log-probability."""
  preference = PreferenceConfig(num_prompts=16, group=8)
  of_data = token_counts(work_7b(2))
  for supervised, data in ((0.5, of_data.tokens), (0.0, 0)):
    own = dataclasses.replace(preference, supervised=supervised)
    stage = dataclasses.replace(work_7b(2).stage, objective='grpo', preference=own)
    work = work_7b(2, stage=stage, samples=BatchShape(128, 768, 0, 0))
    counts = token_counts(work)
    assert counts.tokens == data + 128 * 768
    assert counts.generation == (of_data.generation if supervised else 0) + 128 * 575
  llama, codebook = work.model.language_model, work.model.vq.codebook_size
  layers = 2 * trunk_parameters(llama) + 2 * llama.depth * llama.num_heads * llama.head_dim * work.shape.length
  one_pass = 128 * (768 * layers + 576 * 2 * llama.width * codebook)
  alone = recomputed_flops(work, counts)
  with_reference = dataclasses.replace(stage, preference=dataclasses.replace(own, beta=0.1))
  assert recomputed_flops(dataclasses.replace(work, stage=with_reference), counts) - alone == pytest.approx(one_pass)
  # 6.07 billion parameters in bfloat16, once for each of 576 codes, or 64 tokens, at 819 GB/s.
  assert sampling_seconds(work, 819e9) == pytest.approx(576 * 2 * 6.072e9 / 819e9, rel=1e-3)
  answers = dataclasses.replace(own, samples='answers', max_new_tokens=64)
  stage = dataclasses.replace(stage, preference=answers)
  work = dataclasses.replace(work, stage=stage, samples=BatchShape(128, 768, 128, 0))
  assert sampling_seconds(work, 819e9) == pytest.approx(64 * 2 * 6.072e9 / 819e9, rel=1e-3)
  counts = token_counts(work)
  assert (counts.tokens, counts.understanding, counts.images_encoded) == (128 * 768, 128 * 576, 128)
