"""Every PartitionSpec of the project, by parameter path and by activation.

Parameter rules are tried in order against the whole path; the first that matches decides. Large parameters that may be
replicated are listed.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.errors import InputError
from janus_jax.sharding.mesh import ROW_AXES

Rules = tuple[tuple[str, PartitionSpec], ...]

# Stacked parameters begin with the layer axis, which is never split: the layer loop slices it.
PARAMETER_RULES: Rules = (
  # Layers of the decoder and, with biases, the understanding encoder: [L, N, H, D]; [L, D, N, H]; [L, F, D]; [L, D, F].
  (r'(language_model|vision_encoder)/layers/attn/[qkv]/kernel', PartitionSpec(None, 'tensor', None, 'fsdp')),
  (r'(language_model|vision_encoder)/layers/attn/o/kernel', PartitionSpec(None, 'fsdp', 'tensor')),
  (r'(language_model|vision_encoder)/layers/mlp/(gate|up|fc1)/kernel', PartitionSpec(None, 'tensor', 'fsdp')),
  (r'(language_model|vision_encoder)/layers/mlp/(down|fc2)/kernel', PartitionSpec(None, 'fsdp', 'tensor')),
  (r'vision_encoder/layers/(attn/[qkv]|mlp/fc1)/bias', PartitionSpec(None, 'tensor')),
  # Tables. [V, D].
  (r'language_model/(embed_tokens/table|lm_head/kernel)', PartitionSpec('tensor', 'fsdp')),
  (r'language_model/.*norm/scale', PartitionSpec()),
  (r'vision_encoder/patch_embed/kernel', PartitionSpec('fsdp')),
  (r'vision_encoder/pos_embed', PartitionSpec(None, 'fsdp')),
  (r'vision_encoder/.*(bias|scale)', PartitionSpec()),
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
# Of the factors of LoRA, whose rank is never split, and of frozen kernels in int8 (`models/lora.py`). [L, F, D] lies as
# the kernel does: `lora_a` [L, r, D], `lora_b` [L, F, r], `int8` [L, F, D], `scale` [L, F].
_STACKED = r'(language_model|vision_encoder)/layers/'
ADAPTER_RULES: Rules = (
  (rf'{_STACKED}(attn/[qkv]|mlp/(gate|up|fc1))/lora_a', PartitionSpec(None, None, 'fsdp')),
  (rf'{_STACKED}(attn/[qkv]|mlp/(gate|up|fc1))/(lora_b|scale)', PartitionSpec(None, 'tensor')),
  (rf'{_STACKED}(attn/[qkv]|mlp/(gate|up|fc1))/int8', PartitionSpec(None, 'tensor', 'fsdp')),
  (rf'{_STACKED}(attn/o|mlp/(down|fc2))/lora_a', PartitionSpec(None, None, 'tensor')),
  (rf'{_STACKED}(attn/o|mlp/(down|fc2))/(lora_b|scale)', PartitionSpec(None, 'fsdp')),
  (rf'{_STACKED}(attn/o|mlp/(down|fc2))/int8', PartitionSpec(None, 'fsdp', 'tensor')),
  (r'language_model/lm_head/lora_a', PartitionSpec(None, 'fsdp')),
  (r'language_model/lm_head/lora_b', PartitionSpec('tensor')),
  (r'(vision_aligner|gen_aligner|gen_head)/fc[12]/lora_[ab]', PartitionSpec()),
  (r'.*/lora_scale', PartitionSpec()),
)
# Parameters of more elements than this must be split, but for those that are replicated on purpose.
LARGE = 2**20
REPLICATED = (r'gen_embed/table', r'vq/.*')

# By the names that models give activations. Images are not split over `context`: their patches are few.
ACTIVATION_RULES: Rules = (
  ('hidden', PartitionSpec(ROW_AXES, 'context')),  # [B, T, D]
  ('embedded', PartitionSpec('data', 'context', 'fsdp')),  # [B, T, D], rows of a table that `fsdp` splits along D.
  ('queries', PartitionSpec(ROW_AXES, 'context', 'tensor')),  # [B, T, N, H], and what attention gives.
  ('keys', PartitionSpec(ROW_AXES, None, 'tensor')),  # [B, S, K, H], values too: gathered along the sequence.
  ('mlp', PartitionSpec(ROW_AXES, 'context', 'tensor')),  # [B, T, F]
  ('logits', PartitionSpec(ROW_AXES, 'context', 'tensor')),  # [B, T, V] or [B, T, C]
  ('patches', PartitionSpec(ROW_AXES)),  # [I, P, D]
  ('patch_heads', PartitionSpec(ROW_AXES, None, 'tensor')),  # [I, P, N, H]
  ('patch_mlp', PartitionSpec(ROW_AXES, None, 'tensor')),  # [I, P, F]
)


Entry = str | tuple[str, ...] | None


def mesh_axes(entry: Entry) -> tuple[str, ...]:
  """The axes of a mesh that one entry of a PartitionSpec names."""
  return (entry,) if isinstance(entry, str) else entry or ()


def ways(entry: Entry, mesh: jax.sharding.Mesh) -> int:
  """Number of parts into which one entry of a PartitionSpec splits its axis."""
  return math.prod(mesh.shape[name] for name in mesh_axes(entry))


def check_divides(what: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: jax.sharding.Mesh) -> None:
  """Raises InputError, naming `what`, for an axis of an array that the mesh does not divide."""
  for axis, (size, entry) in enumerate(zip(shape, spec)):
    if size % ways(entry, mesh):
      name = entry if isinstance(entry, str) else ' x '.join(entry)
      raise InputError(
        f'{what} has {size} on axis {axis}: the mesh axis {name!r} of {ways(entry, mesh)} does not divide it'
      )


def find_rule(path: str, rules: Rules = PARAMETER_RULES) -> tuple[str, PartitionSpec]:
  """The rule that decides about a parameter, of these or of ADAPTER_RULES. Raises InputError if there is none."""
  found = next((rule for rule in (*ADAPTER_RULES, *rules) if re.fullmatch(rule[0], path)), None)
  if found is None:
    raise InputError(f'parameter {path} is covered by no sharding rule')
  return found


def parameter_shardings(
  shapes: Mapping[str, tuple[int, ...]], mesh: jax.sharding.Mesh, rules: Rules = PARAMETER_RULES
) -> dict[str, Any]:
  """path -> NamedSharding.

  Raises:
    InputError: a parameter that no rule covers, a rule that matches nothing, an axis that the mesh does not divide, or
      a large parameter that the rules leave whole on every device.
  """
  used, shardings = set(), {}
  splits = mesh.shape['fsdp'] * mesh.shape['tensor'] > 1
  for path, shape in shapes.items():
    pattern, spec = find_rule(path, rules)
    used |= {pattern, find_rule(re.sub('/int8$', '/kernel', path), rules)[0]}
    check_divides(f'parameter {path}', shape, spec, mesh)
    whole = math.prod(ways(entry, mesh) for entry in spec) == 1
    if splits and whole and math.prod(shape) > LARGE and not any(re.fullmatch(p, path) for p in REPLICATED):
      raise InputError(
        f'parameter {path} has {math.prod(shape)} elements and is whole on every device of mesh {dict(mesh.shape)}: '
        f'expected a sharding rule that splits what has more than {LARGE}, or its path in sharding.rules.REPLICATED'
      )
    shardings[path] = NamedSharding(mesh, spec)
  if unused := [pattern for pattern, _ in rules if pattern not in used]:
    raise InputError(f'sharding rule {unused[0]!r} matches no parameter')
  return shardings
