"""Converts checkpoints between Orbax, transformers' layout and DeepSeek's; composes a new Janus from its parts.

    python -m janus_jax.convert --input=PATH --output=DIR --format=orbax|huggingface|deepseek [--dtype=bfloat16]
    python -m janus_jax.convert --input=ADAPTER --output=DIR --format=peft [--peft_layout=deepseek]
    python -m janus_jax.convert --input=ADAPTER --output=DIR --format=... --merge
    python -m janus_jax.convert --vision_encoder=PATH --vq=FILE --language_model=PATH --output=DIR --format=...

Tensors pass through one at a time, so a 7B needs little memory.
"""

import logging
import typing

import tqdm
from absl import flags

from janus_jax import cli
from janus_jax.conversion.checkpoint import FORMATS, Checkpoint, open_checkpoint, write_checkpoint
from janus_jax.conversion.export import DTYPES, cast_params, export_bytes, exporting, published
from janus_jax.conversion.mapping import Layout
from janus_jax.conversion.parts import GEN_EMBED_CHOICES, TEMPLATES, compose
from janus_jax.conversion.peft_files import write_peft
from janus_jax.conversion.resample import resize_images
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.errors import InputError
from janus_jax.runs.value_checks import SEED, Integer

PEFT = 'peft'

_INPUT = cli.define_path('input', None, 'Checkpoint directory of any layout.')
_OUTPUT = cli.define_path('output', None, 'Directory to write.', required=True)
_FORMAT = flags.DEFINE_enum('format', None, [*FORMATS, PEFT], 'Layout to write.', required=True)
_DTYPE = flags.DEFINE_enum('dtype', None, list(DTYPES), 'Cast to this; default: as stored.')
_MERGE = flags.DEFINE_bool('merge', False, 'Write whole weights of an adapter, merged into its base.')
_PEFT_LAYOUT = flags.DEFINE_enum(
  'peft_layout', 'huggingface', typing.get_args(Layout), 'Whose class --format=peft writes an adapter for.'
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace an existing checkpoint at --output.')
_IMAGE_SIZE = cli.define_number(
  'image_size', None, 'Resample to this image size in pixels; default: as it is.', Integer(1)
)
_VISION_ENCODER = cli.define_path('vision_encoder', None, "Part: directory of transformers' Siglip(Vision)Model.")
_VQ = cli.define_path('vq', None, "Part: LlamaGen's VQ-16 as a .pt or .safetensors file.")
_LANGUAGE_MODEL = cli.define_path('language_model', None, "Part: directory of transformers' LlamaForCausalLM.")
_GEN_EMBED = flags.DEFINE_enum('gen_embed', 'codebook', GEN_EMBED_CHOICES, 'How a composed gen_embed starts.')
_TEMPLATE = flags.DEFINE_enum(
  'template', 'deepseek', TEMPLATES, "Roles of a composed model: tokens as Janus-Pro's, or words as Janus-1.3B's."
)
_SEED = cli.define_number('seed', 0, 'Seed of the new parts of a composed model.', SEED)


def _open() -> Checkpoint:
  parts = {'vision_encoder': _VISION_ENCODER.value, 'vq': _VQ.value, 'language_model': _LANGUAGE_MODEL.value}
  given = [name for name, value in parts.items() if value]
  if _INPUT.value and given:
    raise flags.Error(f'--input and --{given[0]} exclude each other')
  if _INPUT.value:
    return open_checkpoint(_INPUT.value)
  missing = [name for name in parts if name not in given]
  if missing == list(parts):
    raise flags.Error('expected --input, or --vision_encoder, --vq and --language_model')
  if missing:
    raise flags.Error(f'--{missing[0]} is missing: a composed model needs all of {", ".join(parts)}')
  return compose(**parts, gen_embed=_GEN_EMBED.value, seed=_SEED.value, template=_TEMPLATE.value)


def main() -> None:
  checkpoint = cast_params(_open(), _DTYPE.value)
  if _FORMAT.value == PEFT:
    _export_adapter(checkpoint)
    return
  if checkpoint.adapter and not _MERGE.value:
    raise InputError(f'{_INPUT.value}: an adapter: expected --format=peft, or --merge for whole weights')
  if _IMAGE_SIZE.value is not None:
    checkpoint = resize_images(checkpoint, _IMAGE_SIZE.value)
  size = export_bytes(checkpoint, _FORMAT.value)
  with (
    exporting(checkpoint, _OUTPUT.value, _FORMAT.value, _OVERWRITE.value) as directory,
    tqdm.tqdm(desc='converting', total=size, unit='B', unit_scale=True, unit_divisor=1000, dynamic_ncols=True) as bar,
  ):
    write_checkpoint(checkpoint, directory, _FORMAT.value, bar.update)
  logging.info('wrote %s (%s)', _OUTPUT.value, _FORMAT.value)


def _export_adapter(checkpoint: Checkpoint) -> None:
  adapter = checkpoint.adapter
  if adapter is None or _MERGE.value:
    found = 'whole weights' if adapter is None else '--merge'
    raise InputError(f'--format=peft with {found}: expected an adapter, or the workdir of a run with LoRA, as --input')
  size = sum(array.nbytes for array in (*adapter.factors.values(), *adapter.full.values()))
  with (
    published(_OUTPUT.value, _OVERWRITE.value, size) as directory,
    tqdm.tqdm(desc='converting', total=size, unit='B', unit_scale=True, unit_divisor=1000, dynamic_ncols=True) as bar,
  ):
    write_peft(adapter, parameter_shapes(checkpoint.config), directory, _PEFT_LAYOUT.value, bar.update)
  logging.info('wrote %s (peft, %s)', _OUTPUT.value, _PEFT_LAYOUT.value)


if __name__ == '__main__':
  cli.run(main)
