"""FLOPs by formula, and the fraction of the peak that they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.conversion.translate import parameter_shapes
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS, ComputeConfig
from janus_jax.models.vq import VQ
from janus_jax.training.throughput import (
  GROUPS,
  TokenCounts,
  siglip_forward_flops,
  step_flops,
  throughput,
  trunk_parameters,
  vq_encoder_forward_flops,
)

PRO_7B, PRO_1B = PRESETS['janus_pro_7b'], PRESETS['janus_pro_1b']


def one_token(kind: str) -> TokenCounts:
  """Text that is predicted, an image's position or a code."""
  return TokenCounts(**{kind: 1}, text_targets=int(kind == 'text'))


def matrices(config, prefix):
  """Parameters of rank 2 or more (each layer's, where stacked) below `prefix`, counted in the real tree."""
  shapes = {path: shape for path, shape in parameter_shapes(config).items() if path.startswith(prefix)}
  return sum(int(np.prod(shape)) for path, shape in shapes.items() if path.endswith('/kernel'))


@pytest.mark.parametrize('preset', ['test_tiny', 'janus_pro_1b', 'janus_pro_7b'])
def test_parameters_are_counted_as_in_the_tree(preset):
  config = PRESETS[preset]
  assert trunk_parameters(config.language_model) == matrices(config, 'language_model/layers/')
  kinds = {
    'text': 'language_model/lm_head/',
    'understanding': 'vision_aligner/',
    'generation': ('gen_head/', 'gen_aligner/'),
  }
  for kind, prefixes in kinds.items():
    # With no attention what is left is 6 N.
    flops = step_flops(config, one_token(kind), sequence_length=0).decoder
    assert flops == 6 * (trunk_parameters(config.language_model) + matrices(config, prefixes)), kind


@pytest.mark.parametrize(
  ('config', 'kind', 'expected'),
  [
    (PRO_7B, 'text', 41.97e9),
    (PRO_7B, 'generation', 40.05e9),
    (PRO_1B, 'text', 9.87e9),
    (PRO_1B, 'generation', 8.86e9),
  ],
)
def test_flops_per_token_are_the_published_ones(config, kind, expected):
  """6 N + 6 L d S at S = 4096."""
  assert step_flops(config, one_token(kind), 4096).total == pytest.approx(expected, rel=1e-3)


def test_encoder_flops_are_the_published_ones():
  assert siglip_forward_flops(PRO_7B.vision_encoder) == pytest.approx(0.38e12, rel=0.01)
  assert vq_encoder_forward_flops(PRO_7B.vq) == pytest.approx(313e9, rel=0.01)
  both = TokenCounts(images_encoded=1, images_tokenized=1)
  assert step_flops(PRO_7B, both, 4096).vision_encoder == pytest.approx(1.15e12, rel=0.01)
  assert step_flops(PRO_7B, both, 4096).vq == vq_encoder_forward_flops(PRO_7B.vq)
  frozen = step_flops(PRO_7B, both, 4096, trained=['language_model'])
  assert frozen.vision_encoder == siglip_forward_flops(PRO_7B.vision_encoder)


def test_with_a_shared_encoder_the_vq_and_the_adaptor_of_generation_do_the_understanding():
  shared = dataclasses.replace(PRO_7B, shared_encoder=True)
  images = step_flops(shared, TokenCounts(images_encoded=2, images_tokenized=3), 4096)
  assert (images.vision_encoder, images.vq) == (0, 5 * vq_encoder_forward_flops(PRO_7B.vq))
  # The first matrix of the adaptor is narrower, the second the same.
  adaptors = [step_flops(config, TokenCounts(understanding=1), 4096).decoder for config in (PRO_7B, shared)]
  width, siglip, codes = PRO_7B.language_model.width, PRO_7B.vision_encoder.width, PRO_7B.vq.code_dim
  assert adaptors[0] - adaptors[1] == pytest.approx(6 * (siglip - codes) * width)


@pytest.mark.parametrize(('preset', 'tolerance'), [('janus_pro_1b', 0.03), ('small', 0.08)])
def test_vq_flops_are_those_of_the_compiled_encoder(preset, tolerance):
  config = PRESETS[preset].vq
  vq = VQ(config, ComputeConfig())
  pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
  params = jax.eval_shape(lambda x: vq.init(jax.random.key(0), x, method=VQ.encode), pixels)
  lowered = jax.jit(lambda p, x: vq.apply(p, x, method=VQ.encode)).lower(params, pixels)
  # XLA counts norms and activations too, and leaves out what padding multiplies.
  assert vq_encoder_forward_flops(config) == pytest.approx(lowered.cost_analysis()['flops'], rel=tolerance)


def test_frozen_parts_cost_less():
  counts = TokenCounts(text=10, text_targets=5, understanding=20, generation=30)
  full = step_flops(PRO_1B, counts, 4096).decoder
  stage1 = step_flops(PRO_1B, counts, 4096, trained=['vision_aligner', 'gen_aligner', 'gen_head']).decoder
  head = step_flops(PRO_1B, counts, 4096, trained=['gen_head']).decoder
  nothing = step_flops(PRO_1B, counts, 4096, trained=[]).decoder
  assert nothing < head < stage1 < full
  assert nothing == pytest.approx(full / 3)
  with pytest.raises(InputError, match="'vq' is unknown"):
    step_flops(PRO_1B, counts, 4096, trained=['vq'])
  assert step_flops(PRO_1B, counts, 4096, trained=GROUPS).decoder == full


def test_text_that_is_not_predicted_meets_no_head():
  seen, predicted = (step_flops(PRO_1B, TokenCounts(text=3, text_targets=targets), 4096).decoder for targets in (0, 3))
  llama = PRO_1B.language_model
  assert predicted - seen == 3 * 6 * llama.width * llama.vocab_size


def test_mfu_of_a_published_run():
  """Janus-Pro-7B at 2,210 tokens/s per v5e chip is 46 %, image tokens and text at 41.0 G."""
  counts = TokenCounts(text=1105 * 256, text_targets=1105 * 256, generation=1105 * 256)
  flops = step_flops(PRO_7B, counts, 4096)
  values = throughput(counts, flops, seconds=1.0, device_kind='TPU v5 lite', num_devices=256)
  assert values['tokens_per_second_per_device'] == 2210
  assert values['tokens_per_second'] == 2210 * 256
  assert values['mfu'] == pytest.approx(0.46, rel=0.005)


def test_mfu_with_and_without_encoders_and_none_on_a_cpu():
  counts = TokenCounts(text=1000, text_targets=1000, images_encoded=2, images_tokenized=3)
  flops = step_flops(PRO_1B, counts, 4096)
  values = throughput(counts, flops, 2.0, 'NVIDIA H100 80GB HBM3', 4)
  assert values['mfu'] == pytest.approx(flops.decoder / 2 / 4 / 989e12)
  assert values['mfu_with_encoders'] == pytest.approx(flops.total / 2 / 4 / 989e12)
  assert values['images_per_second'] == 2.5
  assert not [name for name in throughput(counts, flops, 2.0, 'cpu', 1) if 'mfu' in name]
