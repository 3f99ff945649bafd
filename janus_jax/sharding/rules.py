"""Every PartitionSpec of the project: parameter path -> how its axes are split.

Rules are tried in order against the whole path; the first that matches decides. Parameters of the VQ tokenizer and
the few small tables are replicated.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.errors import InputError

Rules = tuple[tuple[str, PartitionSpec], ...]

# Stacked parameters begin with the layer axis, which is never split: the layer loop slices it.
PARAMETER_RULES: Rules = (
  # Decoder. [V, D]; [L, N, H, D]; [L, D, N, H]; [L, F, D]; [L, D, F].
  (r'language_model/(embed_tokens/table|lm_head/kernel)', PartitionSpec('tensor', 'fsdp')),
  (r'language_model/layers/attn/[qkv]/kernel', PartitionSpec(None, 'tensor', None, 'fsdp')),
  (r'language_model/layers/attn/o/kernel', PartitionSpec(None, 'fsdp', 'tensor')),
  (r'language_model/layers/mlp/(gate|up)/kernel', PartitionSpec(None, 'tensor', 'fsdp')),
  (r'language_model/layers/mlp/down/kernel', PartitionSpec(None, 'fsdp', 'tensor')),
  (r'language_model/.*norm/scale', PartitionSpec()),
  # Understanding encoder. As the decoder, with biases.
  (r'vision_encoder/patch_embed/kernel', PartitionSpec('fsdp')),
  (r'vision_encoder/pos_embed', PartitionSpec(None, 'fsdp')),
  (r'vision_encoder/layers/attn/[qkv]/kernel', PartitionSpec(None, 'tensor', None, 'fsdp')),
  (r'vision_encoder/layers/attn/[qkv]/bias', PartitionSpec(None, 'tensor')),
  (r'vision_encoder/layers/attn/o/kernel', PartitionSpec(None, 'fsdp', 'tensor')),
  (r'vision_encoder/layers/mlp/fc1/kernel', PartitionSpec(None, 'tensor', 'fsdp')),
  (r'vision_encoder/layers/mlp/fc1/bias', PartitionSpec(None, 'tensor')),
  (r'vision_encoder/layers/mlp/fc2/kernel', PartitionSpec(None, 'fsdp', 'tensor')),
  (r'vision_encoder/.*', PartitionSpec()),
  # Adaptors and image head: [F, D] then [D, F]; the head's last map is split over the codes.
  (r'(vision_aligner|gen_head)/fc1/kernel', PartitionSpec('tensor', 'fsdp')),
  (r'(vision_aligner|gen_head)/fc1/bias', PartitionSpec('tensor')),
  (r'(vision_aligner|gen_aligner)/fc2/kernel', PartitionSpec('fsdp', 'tensor')),
  (r'gen_head/fc2/kernel', PartitionSpec('tensor', 'fsdp')),
  (r'gen_head/fc2/bias', PartitionSpec('tensor')),
  (r'(gen_aligner/fc1|vision_aligner/fc2|gen_aligner/fc2)/.*', PartitionSpec()),
  # 131 K and 72 M parameters: not worth a collective.
  (r'gen_embed/table', PartitionSpec()),
  (r'vq/.*', PartitionSpec()),
)


def parameter_shardings(
  shapes: Mapping[str, tuple[int, ...]], mesh: jax.sharding.Mesh, rules: Rules = PARAMETER_RULES
) -> dict[str, Any]:
  """path -> NamedSharding.

  Raises:
    InputError: a parameter that no rule covers, a rule that matches nothing, or an axis that the mesh does not divide.
  """
  used = set()
  shardings = {}
  for path, shape in shapes.items():
    match = next((i for i, (pattern, _) in enumerate(rules) if re.fullmatch(pattern, path)), None)
    if match is None:
      raise InputError(f'parameter {path} is covered by no sharding rule')
    used.add(match)
    spec = rules[match][1]
    for axis, (size, name) in enumerate(zip(shape, spec)):
      if name is not None and size % mesh.shape[name]:
        raise InputError(
          f'parameter {path} has {size} on axis {axis}: the mesh axis {name!r} of {mesh.shape[name]} does not divide it'
        )
    shardings[path] = NamedSharding(mesh, spec)
  unused = [pattern for i, (pattern, _) in enumerate(rules) if i not in used]
  if unused:
    raise InputError(f'sharding rule {unused[0]!r} matches no parameter')
  return shardings
