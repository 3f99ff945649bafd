"""The one table between our parameter tree and the two PyTorch layouts, used for import and for export.

A row says: parameters whose path matches `path` are the tensors named by the two templates, and the transforms say
how an array of ours becomes a torch tensor. In templates `\\1` ... are the groups of `path`, and `{layer}` stands for
every layer of a stack: our one array [L, ...] is L torch tensors. Names and shapes are those of the released files.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

Layout = Literal['huggingface', 'deepseek']


@dataclasses.dataclass(frozen=True)
class Transform:
  """How one array (one layer of a stack) is laid out on either side.

  Attributes:
    torch_shape: our shape -> torch's.
    to_torch: our array -> torch's (a view where possible).
    from_torch: (torch's array, our shape) -> ours (a view where possible).
  """

  torch_shape: Callable[[tuple[int, ...]], tuple[int, ...]]
  to_torch: Callable[[np.ndarray], np.ndarray]
  from_torch: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


SAME = Transform(lambda s: s, lambda a: a, lambda t, s: t)
# Linear maps are stored [out, in] on both sides; ours keeps heads apart ([N, H, D] <-> [N * H, D]) ...
SPLIT_OUT = Transform(
  lambda s: (s[0] * s[1], *s[2:]),
  lambda a: a.reshape(-1, *a.shape[2:]),
  lambda t, s: t.reshape(s),
)
# ... or, where they are merged, [D, N, H] <-> [D, N * H].
SPLIT_IN = Transform(
  lambda s: (s[0], s[1] * s[2]),
  lambda a: a.reshape(a.shape[0], -1),
  lambda t, s: t.reshape(s),
)
CONV = Transform(
  lambda s: (s[3], s[2], s[0], s[1]),
  lambda a: a.transpose(3, 2, 0, 1),
  lambda t, s: t.transpose(2, 3, 1, 0),
)
CONV_1X1 = Transform(
  lambda s: (*s, 1, 1),
  lambda a: a[:, :, None, None],
  lambda t, s: t[:, :, 0, 0],
)
LEADING_ONE = Transform(lambda s: (1, *s), lambda a: a[None], lambda t, s: t[0])


@dataclasses.dataclass(frozen=True)
class MappingRow:
  """One line of the table. `third` marks the q, k or v part of DeepSeek's fused projection (stacked along axis 0)."""

  path: str
  transform: Transform
  huggingface: str
  deepseek: str
  deepseek_transform: Transform | None = None
  third: int | None = None


def _siglip_rows() -> list[MappingRow]:
  hf, ds = 'model.vision_model.', 'vision_model.vision_tower.'
  hf_layer, ds_layer = hf + 'encoder.layers.{layer}.', ds + 'blocks.{layer}.'
  rows = [
    MappingRow(
      'vision_encoder/patch_embed/kernel',
      SAME,
      hf + 'embeddings.patch_embedding.weight',
      ds + 'patch_embed.proj.weight',
    ),
    MappingRow(
      'vision_encoder/patch_embed/bias', SAME, hf + 'embeddings.patch_embedding.bias', ds + 'patch_embed.proj.bias'
    ),
    MappingRow(
      'vision_encoder/pos_embed', SAME, hf + 'embeddings.position_embedding.weight', ds + 'pos_embed', LEADING_ONE
    ),
    MappingRow('vision_encoder/final_norm/scale', SAME, hf + 'post_layernorm.weight', ds + 'norm.weight'),
    MappingRow('vision_encoder/final_norm/bias', SAME, hf + 'post_layernorm.bias', ds + 'norm.bias'),
    MappingRow(
      'vision_encoder/layers/norm([12])/scale', SAME, hf_layer + r'layer_norm\1.weight', ds_layer + r'norm\1.weight'
    ),
    MappingRow(
      'vision_encoder/layers/norm([12])/bias', SAME, hf_layer + r'layer_norm\1.bias', ds_layer + r'norm\1.bias'
    ),
    MappingRow(
      'vision_encoder/layers/attn/o/kernel',
      SPLIT_IN,
      hf_layer + 'self_attn.projection_layer.weight',
      ds_layer + 'attn.proj.weight',
    ),
    MappingRow(
      'vision_encoder/layers/attn/o/bias',
      SAME,
      hf_layer + 'self_attn.projection_layer.bias',
      ds_layer + 'attn.proj.bias',
    ),
    MappingRow(
      'vision_encoder/layers/mlp/fc([12])/kernel', SAME, hf_layer + r'mlp.fc\1.weight', ds_layer + r'mlp.fc\1.weight'
    ),
    MappingRow(
      'vision_encoder/layers/mlp/fc([12])/bias', SAME, hf_layer + r'mlp.fc\1.bias', ds_layer + r'mlp.fc\1.bias'
    ),
  ]
  for third, name in enumerate('qkv'):
    path, hf_name = f'vision_encoder/layers/attn/{name}', f'{hf_layer}self_attn.{name}_proj'
    rows += [
      MappingRow(f'{path}/kernel', SPLIT_OUT, f'{hf_name}.weight', ds_layer + 'attn.qkv.weight', third=third),
      MappingRow(f'{path}/bias', SPLIT_OUT, f'{hf_name}.bias', ds_layer + 'attn.qkv.bias', third=third),
    ]
  return rows


def _adaptor_rows() -> list[MappingRow]:
  names = [  # ours, transformers' two layers, DeepSeek's two layers
    (
      'vision_aligner',
      ('model.aligner.fc1', 'model.aligner.hidden_layers.0'),
      ('aligner.layers.0', 'aligner.layers.2'),
    ),
    (
      'gen_aligner',
      ('model.generation_aligner.fc1', 'model.generation_aligner.hidden_layers.0'),
      ('gen_aligner.layers.0', 'gen_aligner.layers.2'),
    ),
    (
      'gen_head',
      ('model.generation_head.proj_out', 'model.generation_head.vision_head'),
      ('gen_head.output_mlp_projector', 'gen_head.vision_head'),
    ),
  ]
  rows = [MappingRow('gen_embed/table', SAME, 'model.generation_embeddings.weight', 'gen_embed.weight')]
  for ours, hf, ds in names:
    for i in range(2):
      rows += [
        MappingRow(f'{ours}/fc{i + 1}/kernel', SAME, f'{hf[i]}.weight', f'{ds[i]}.weight'),
        MappingRow(f'{ours}/fc{i + 1}/bias', SAME, f'{hf[i]}.bias', f'{ds[i]}.bias'),
      ]
  return rows


def _decoder_rows() -> list[MappingRow]:
  hf, ds = 'model.language_model.', 'language_model.model.'
  same_names = [  # ours, transform, the tail that both layouts share
    ('embed_tokens/table', SAME, 'embed_tokens.weight'),
    ('final_norm/scale', SAME, 'norm.weight'),
    ('layers/attn_norm/scale', SAME, 'layers.{layer}.input_layernorm.weight'),
    ('layers/mlp_norm/scale', SAME, 'layers.{layer}.post_attention_layernorm.weight'),
    ('layers/attn/([qkv])/kernel', SPLIT_OUT, r'layers.{layer}.self_attn.\1_proj.weight'),
    ('layers/attn/o/kernel', SPLIT_IN, 'layers.{layer}.self_attn.o_proj.weight'),
    ('layers/mlp/(gate|up|down)/kernel', SAME, r'layers.{layer}.mlp.\1_proj.weight'),
  ]
  rows = [MappingRow(f'language_model/{ours}', transform, hf + tail, ds + tail) for ours, transform, tail in same_names]
  return [*rows, MappingRow('language_model/lm_head/kernel', SAME, 'lm_head.weight', 'language_model.lm_head.weight')]


def _vq_rows() -> list[MappingRow]:
  hf, ds = 'model.vqmodel.', 'gen_vision_model.'
  rows = [MappingRow('vq/codebook', SAME, hf + 'quantize.embedding.weight', ds + 'quantize.embedding.weight')]
  modules = [  # our module, transform of its kernel or scale, transformers' module, DeepSeek's
    ('(quant_conv|post_quant_conv)', CONV_1X1, r'\1', r'\1'),
    ('(encoder|decoder)/(conv_in|conv_out)', CONV, r'\1.\2', r'\1.\2'),
    ('(encoder|decoder)/norm_out', SAME, r'\1.norm_out', r'\1.norm_out'),
  ]
  # transformers calls the levels of the encoder `down` and those of the decoder `up`; both keep the original's order.
  blocks = [
    (rf'{half}/level_(\d+)/res_(\d+)', rf'{half}.{level}.\1.block.\2', rf'{half}.conv_blocks.\1.res.\2')
    for half, level in (('encoder', 'down'), ('decoder', 'up'))
  ]
  attentions = [
    (rf'{half}/level_(\d+)/attn_(\d+)', rf'{half}.{level}.\1.attn.\2', rf'{half}.conv_blocks.\1.attn.\2')
    for half, level in (('encoder', 'down'), ('decoder', 'up'))
  ]
  for half, level, resample in (('encoder', 'down', 'downsample'), ('decoder', 'up', 'upsample')):
    hf_resample, ds_resample = rf'{half}.{level}.\1.{resample}.conv', rf'{half}.conv_blocks.\1.{resample}.conv'
    modules.append((rf'{half}/level_(\d+)/{resample}', CONV, hf_resample, ds_resample))
    blocks += [(f'{half}/mid/res_{i}', f'{half}.mid.block_{i + 1}', f'{half}.mid.{2 * i}') for i in range(2)]
    attentions.append((f'{half}/mid/attn', f'{half}.mid.attn_1', f'{half}.mid.1'))
  for ours, hf_block, ds_block in blocks:
    for name in ('norm1', 'norm2'):
      modules.append((f'{ours}/{name}', SAME, f'{hf_block}.{name}', f'{ds_block}.{name}'))
    for name in ('conv1', 'conv2'):
      modules.append((f'{ours}/{name}', CONV, f'{hf_block}.{name}', f'{ds_block}.{name}'))
    modules.append((f'{ours}/shortcut', CONV_1X1, f'{hf_block}.nin_shortcut', f'{ds_block}.nin_shortcut'))
  for ours, hf_block, ds_block in attentions:
    modules.append((f'{ours}/norm', SAME, f'{hf_block}.norm', f'{ds_block}.norm'))
    for name, torch_name in (('q', 'q'), ('k', 'k'), ('v', 'v'), ('proj', 'proj_out')):
      modules.append((f'{ours}/{name}', CONV_1X1, f'{hf_block}.{torch_name}', f'{ds_block}.{torch_name}'))
  for ours, transform, hf_module, ds_module in modules:
    rows += [
      MappingRow(f'vq/{ours}/(?:kernel|scale)', transform, f'{hf}{hf_module}.weight', f'{ds}{ds_module}.weight'),
      MappingRow(f'vq/{ours}/bias', SAME, f'{hf}{hf_module}.bias', f'{ds}{ds_module}.bias'),
    ]
  return rows


TABLE: tuple[MappingRow, ...] = (*_siglip_rows(), *_adaptor_rows(), *_decoder_rows(), *_vq_rows())


@dataclasses.dataclass(frozen=True)
class Piece:
  """Where one torch tensor (or a third of one) lives in our tree.

  Attributes:
    path: "/"-joined parameter path.
    layer: index into the leading axis of a stacked parameter, or None.
    shape: our shape, without the layer axis.
    transform: between the two.
    third: which third of the torch tensor along axis 0 this is, or None for all of it.
  """

  path: str
  layer: int | None
  shape: tuple[int, ...]
  transform: Transform
  third: int | None

  @property
  def torch_shape(self) -> tuple[int, ...]:
    """Shape of this piece alone on the torch side."""
    return self.transform.torch_shape(self.shape)


def _row_of(path: str) -> tuple[MappingRow, re.Match]:
  matches = [(row, match) for row in TABLE if (match := re.fullmatch(row.path, path))]
  if len(matches) != 1:
    raise ValueError(f'parameter {path} is covered by {len(matches)} rows of the conversion table: expected 1')
  return matches[0]


def torch_names(shapes: Mapping[str, tuple[int, ...]], layout: Layout) -> dict[str, list[Piece]]:
  """The torch side of a parameter tree: tensor name -> the pieces it is made of, in their order along axis 0.

  Args:
    shapes: parameter path -> shape, the whole tree or a part of it (`parameter_shapes`).
    layout: whose names.

  Raises:
    ValueError: a path that not exactly one row of the table covers (a mistake in the table, not in the input).
  """
  names: dict[str, list[Piece]] = {}
  for path, shape in shapes.items():
    row, match = _row_of(path)
    template = row.huggingface if layout == 'huggingface' else row.deepseek
    transform, third = row.transform, None
    if layout == 'deepseek':
      transform, third = row.deepseek_transform or transform, row.third
    name = match.expand(template)
    if '{layer}' in name:
      for layer in range(shape[0]):
        piece = Piece(path, layer, tuple(shape[1:]), transform, third)
        names.setdefault(name.replace('{layer}', str(layer)), []).append(piece)
    else:
      names.setdefault(name, []).append(Piece(path, None, tuple(shape), transform, third))
  return {name: sorted(pieces, key=lambda piece: piece.third or 0) for name, pieces in names.items()}


def tensor_shape(pieces: list[Piece]) -> tuple[int, ...]:
  """Shape of the torch tensor that `pieces` make up."""
  first = pieces[0].torch_shape
  return (first[0] * len(pieces), *first[1:]) if first else first
