"""The one table between our parameter tree and the two PyTorch layouts, used for import and for export.

A row says: parameters whose path matches `path` are the tensors named by the two templates, and the transforms say
how an array of ours becomes a torch tensor. In templates `\\1` ... are the groups of `path`, and `{layer}` stands for
every layer of a stack: our one array [L, ...] is L torch tensors. Names and shapes are those of the released files.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

Layout = Literal['huggingface', 'deepseek']
AdapterFormat = Literal['peft', 'peft_deepseek']
Format = Literal['orbax', Layout, AdapterFormat]


@dataclasses.dataclass(frozen=True)
class Transform:
  """Difference of one array (one layer of a stack) between our side and torch's: another shape, or permuted axes.

  Attributes:
    torch_shape: our shape -> torch's.
    axes: our axes in torch's order; None where it is the same.
  """

  torch_shape: Callable[[tuple[int, ...]], tuple[int, ...]]
  axes: tuple[int, ...] | None = None

  def to_torch(self, array: np.ndarray) -> np.ndarray:
    """Our array as torch's: a view where possible."""
    return array.transpose(self.axes) if self.axes else array.reshape(self.torch_shape(array.shape))

  def from_torch(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Torch's array as ours, which has `shape`: a view where possible."""
    return tensor.transpose(np.argsort(self.axes)) if self.axes else tensor.reshape(shape)


SAME = Transform(lambda shape: shape)
# Linear maps are stored [out, in] on both sides; ours keeps heads apart ([N, H, D] <-> [N * H, D]) ...
SPLIT_OUT = Transform(lambda shape: (shape[0] * shape[1], *shape[2:]))
# ... or, where they are merged, [D, N, H] <-> [D, N * H].
SPLIT_IN = Transform(lambda shape: (shape[0], shape[1] * shape[2]))
CONV = Transform(lambda shape: (shape[3], shape[2], shape[0], shape[1]), axes=(3, 2, 0, 1))
CONV_1X1 = Transform(lambda shape: (*shape, 1, 1))
LEADING_ONE = Transform(lambda shape: (1, *shape))


@dataclasses.dataclass(frozen=True)
class MappingRow:
  """One line of the table. `third` marks the q, k or v part of DeepSeek's fused projection (stacked along axis 0)."""

  path: str
  huggingface: str
  deepseek: str
  transform: Transform = SAME
  deepseek_transform: Transform | None = None
  third: int | None = None


def _module_rows(
  path: str, huggingface: str, deepseek: str, transform: Transform = SAME, third: int | None = None
) -> list[MappingRow]:
  """Rows of a module's weight (with us `kernel`, or `scale` of a norm), which has the transform, and of its bias."""
  bias_transform = SPLIT_OUT if transform is SPLIT_OUT else SAME  # [N, H] <-> [N * H]
  return [
    MappingRow(f'{path}/(?:kernel|scale)', f'{huggingface}.weight', f'{deepseek}.weight', transform, third=third),
    MappingRow(f'{path}/bias', f'{huggingface}.bias', f'{deepseek}.bias', bias_transform, third=third),
  ]


def _siglip_rows() -> list[MappingRow]:
  hf, ds = 'model.vision_model.', 'vision_model.vision_tower.'
  hf_layer, ds_layer = hf + 'encoder.layers.{layer}.', ds + 'blocks.{layer}.'
  layers = 'vision_encoder/layers'
  rows = [
    MappingRow(
      'vision_encoder/pos_embed', f'{hf}embeddings.position_embedding.weight', f'{ds}pos_embed', SAME, LEADING_ONE
    ),
    *_module_rows('vision_encoder/patch_embed', f'{hf}embeddings.patch_embedding', f'{ds}patch_embed.proj'),
    *_module_rows('vision_encoder/final_norm', f'{hf}post_layernorm', f'{ds}norm'),
    *_module_rows(f'{layers}/norm([12])', rf'{hf_layer}layer_norm\1', rf'{ds_layer}norm\1'),
    *_module_rows(f'{layers}/attn/o', f'{hf_layer}self_attn.projection_layer', f'{ds_layer}attn.proj', SPLIT_IN),
    *_module_rows(f'{layers}/mlp/fc([12])', rf'{hf_layer}mlp.fc\1', rf'{ds_layer}mlp.fc\1'),
  ]
  for third, name in enumerate('qkv'):
    hf_name, ds_name = f'{hf_layer}self_attn.{name}_proj', f'{ds_layer}attn.qkv'
    rows += _module_rows(f'{layers}/attn/{name}', hf_name, ds_name, SPLIT_OUT, third)
  return rows


def _adaptor_rows() -> list[MappingRow]:
  return [
    MappingRow('gen_embed/table', 'model.generation_embeddings.weight', 'gen_embed.weight'),
    *_module_rows('vision_aligner/fc1', 'model.aligner.fc1', 'aligner.layers.0'),
    *_module_rows('vision_aligner/fc2', 'model.aligner.hidden_layers.0', 'aligner.layers.2'),
    *_module_rows('gen_aligner/fc1', 'model.generation_aligner.fc1', 'gen_aligner.layers.0'),
    *_module_rows('gen_aligner/fc2', 'model.generation_aligner.hidden_layers.0', 'gen_aligner.layers.2'),
    *_module_rows('gen_head/fc1', 'model.generation_head.proj_out', 'gen_head.output_mlp_projector'),
    *_module_rows('gen_head/fc2', 'model.generation_head.vision_head', 'gen_head.vision_head'),
  ]


def _decoder_rows() -> list[MappingRow]:
  hf, ds = 'model.language_model.', 'language_model.model.'
  same_names = [  # ours, the tail that both layouts share, transform
    ('embed_tokens/table', 'embed_tokens.weight', SAME),
    ('final_norm/scale', 'norm.weight', SAME),
    ('layers/attn_norm/scale', 'layers.{layer}.input_layernorm.weight', SAME),
    ('layers/mlp_norm/scale', 'layers.{layer}.post_attention_layernorm.weight', SAME),
    ('layers/attn/([qkv])/kernel', r'layers.{layer}.self_attn.\1_proj.weight', SPLIT_OUT),
    ('layers/attn/o/kernel', 'layers.{layer}.self_attn.o_proj.weight', SPLIT_IN),
    ('layers/mlp/(gate|up|down)/kernel', r'layers.{layer}.mlp.\1_proj.weight', SAME),
  ]
  rows = [MappingRow(f'language_model/{ours}', hf + tail, ds + tail, transform) for ours, tail, transform in same_names]
  return [*rows, MappingRow('language_model/lm_head/kernel', 'lm_head.weight', 'language_model.lm_head.weight')]


def _vq_rows() -> list[MappingRow]:
  modules = [  # our module, transformers', DeepSeek's, transform of the weight
    ('(quant_conv|post_quant_conv)', r'\1', r'\1', CONV_1X1),
    ('(encoder|decoder)/(conv_in|conv_out)', r'\1.\2', r'\1.\2', CONV),
    ('(encoder|decoder)/norm_out', r'\1.norm_out', r'\1.norm_out', SAME),
  ]
  blocks, attentions = [], []
  # transformers calls the levels of the encoder `down` and those of the decoder `up`; both keep the original's order.
  for half, level, resample in (('encoder', 'down', 'downsample'), ('decoder', 'up', 'upsample')):
    ours, hf_level, ds_level = rf'{half}/level_(\d+)', rf'{half}.{level}.\1', rf'{half}.conv_blocks.\1'
    modules.append((f'{ours}/{resample}', f'{hf_level}.{resample}.conv', f'{ds_level}.{resample}.conv', CONV))
    blocks.append((rf'{ours}/res_(\d+)', rf'{hf_level}.block.\2', rf'{ds_level}.res.\2'))
    blocks += [(f'{half}/mid/res_{i}', f'{half}.mid.block_{i + 1}', f'{half}.mid.{2 * i}') for i in range(2)]
    attentions.append((rf'{ours}/attn_(\d+)', rf'{hf_level}.attn.\2', rf'{ds_level}.attn.\2'))
    attentions.append((f'{half}/mid/attn', f'{half}.mid.attn_1', f'{half}.mid.1'))
  of_block = {'norm1': SAME, 'norm2': SAME, 'conv1': CONV, 'conv2': CONV, 'shortcut': CONV_1X1}
  of_attention = {'norm': SAME, **dict.fromkeys(('q', 'k', 'v', 'proj'), CONV_1X1)}
  renamed = {'shortcut': 'nin_shortcut', 'proj': 'proj_out'}
  for parents, members in ((blocks, of_block), (attentions, of_attention)):
    for (ours, hf, ds), (name, transform) in itertools.product(parents, members.items()):
      torch_name = renamed.get(name, name)
      modules.append((f'{ours}/{name}', f'{hf}.{torch_name}', f'{ds}.{torch_name}', transform))
  hf, ds = 'model.vqmodel.', 'gen_vision_model.'
  rows = [MappingRow('vq/codebook', f'{hf}quantize.embedding.weight', f'{ds}quantize.embedding.weight')]
  for ours, hf_module, ds_module, transform in modules:
    rows += _module_rows(f'vq/{ours}', hf + hf_module, ds + ds_module, transform)
  return rows


TABLE: tuple[MappingRow, ...] = (*_siglip_rows(), *_adaptor_rows(), *_decoder_rows(), *_vq_rows())


@dataclasses.dataclass(frozen=True)
class Piece:
  """Part of our tree that is one torch tensor, or a third of one.

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
    matches = [(row, match) for row in TABLE if (match := re.fullmatch(row.path, path))]
    if len(matches) != 1:
      raise ValueError(f'parameter {path} is covered by {len(matches)} rows of the conversion table: expected 1')
    row, match = matches[0]
    template, transform, third = row.huggingface, row.transform, None
    if layout == 'deepseek':
      template, transform, third = row.deepseek, row.deepseek_transform or row.transform, row.third
    name = match.expand(template)
    for layer in range(shape[0]) if '{layer}' in name else (None,):
      piece = Piece(path, layer, tuple(shape if layer is None else shape[1:]), transform, third)
      names.setdefault(name.replace('{layer}', str(layer)), []).append(piece)
  return {name: sorted(pieces, key=lambda piece: piece.third or 0) for name, pieces in names.items()}


def tensor_shape(pieces: list[Piece]) -> tuple[int, ...]:
  """Shape of the torch tensor that `pieces` make up."""
  first = pieces[0].torch_shape
  return (first[0] * len(pieces), *first[1:]) if first else first
