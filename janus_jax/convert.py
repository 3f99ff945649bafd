"""Converts checkpoints between Orbax, transformers' layout and DeepSeek's; composes a new Janus from its parts.

    python -m janus_jax.convert --input=PATH --output=DIR --format=orbax|huggingface|deepseek [--dtype=bfloat16]
    python -m janus_jax.convert --input=ADAPTER --output=DIR --format=peft|peft_deepseek
    python -m janus_jax.convert --input=ADAPTER --output=DIR --format=orbax|huggingface|deepseek --merge
    python -m janus_jax.convert --vision_encoder=PATH --vq=FILE --language_model=PATH --output=DIR --format=...
    python -m janus_jax.convert --input=PATH --push=ORGANISATION/NAME --format=... [--private] [--output=DIR]

Tensors pass through one at a time, so a 7B needs little memory.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator

import tqdm
from absl import flags

from janus_jax import cli
from janus_jax.conversion import hub
from janus_jax.conversion.checkpoint import FORMATS, Checkpoint, export_bytes, open_checkpoint, write_checkpoint
from janus_jax.conversion.configs import janus_to_huggingface
from janus_jax.conversion.export import DTYPES, cast_params, exporting
from janus_jax.conversion.parts import GEN_EMBED_CHOICES, TEMPLATES, compose
from janus_jax.conversion.peft_files import PEFT_LAYOUTS
from janus_jax.data.whole_files import write_text
from janus_jax.errors import InputError
from janus_jax.runs.value_checks import SEED, Integer

_INPUT = cli.define_path('input', None, 'Checkpoint directory of any layout.')
_OUTPUT = cli.define_path('output', None, 'Directory to write; may be left out with --push.')
_PUSH = flags.DEFINE_string('push', None, 'ORGANISATION/NAME on the Hugging Face hub to upload to, with a model card.')
_PRIVATE = flags.DEFINE_bool('private', None, 'Whether a new model of --push is hidden; default: as its owner chose.')
_FORMAT = flags.DEFINE_enum('format', None, FORMATS, 'Layout to write.', required=True)
_DTYPE = flags.DEFINE_enum('dtype', None, list(DTYPES), 'Cast to this; default: as stored.')
_MERGE = flags.DEFINE_bool('merge', False, 'Write whole weights of an adapter, merged into its base.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace an existing checkpoint at --output.')
_IMAGE_SIZE = cli.define_number(
  'image_size', None, 'Resample to this image size in pixels; default: as it is.', Integer(1)
)
_GENERATION_SIZE = cli.define_number(
  'generation_size', None, 'Size of images to generate, where it is to differ from --image_size.', Integer(1)
)
_VISION_ENCODER = cli.define_path('vision_encoder', None, "Part: directory of transformers' Siglip(Vision)Model.")
_VQ = cli.define_path('vq', None, "Part: LlamaGen's VQ-16 as a .pt or .safetensors file.")
_LANGUAGE_MODEL = cli.define_path('language_model', None, "Part: directory of transformers' LlamaForCausalLM.")
_GEN_EMBED = flags.DEFINE_enum('gen_embed', 'codebook', GEN_EMBED_CHOICES, 'How a composed gen_embed starts.')
_TEMPLATE = flags.DEFINE_enum(
  'template', 'deepseek', TEMPLATES, "Roles of a composed model: tokens as Janus-Pro's, or words as Janus-1.3B's."
)
_SEED = cli.define_number('seed', 0, 'Seed of the new parts of a composed model.', SEED)


def _check_usage() -> None:
  if _PUSH.value is not None:
    hub.check_new_name(_PUSH.value)
  elif not _OUTPUT.value:
    raise flags.Error('expected --output=DIR, --push=ORGANISATION/NAME, or both')
  elif _PRIVATE.value is not None:
    raise flags.Error('--private says how --push makes a model: expected --push=ORGANISATION/NAME')


def _parts() -> dict[str, str | None]:
  return {'vision_encoder': _VISION_ENCODER.value, 'vq': _VQ.value, 'language_model': _LANGUAGE_MODEL.value}


def _open() -> Checkpoint:
  parts = _parts()
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


def _check_adapter(checkpoint: Checkpoint) -> None:
  writes_adapter = _FORMAT.value in PEFT_LAYOUTS
  if writes_adapter and (checkpoint.adapter is None or _MERGE.value):
    found = 'whole weights' if checkpoint.adapter is None else '--merge'
    raise InputError(
      f'--format={_FORMAT.value} with {found}: expected an adapter, or the workdir of a run with LoRA, as --input'
    )
  if checkpoint.adapter and not writes_adapter and not _MERGE.value:
    raise InputError(f'{_INPUT.value}: an adapter: expected --format=peft, or --merge for whole weights')


@contextlib.contextmanager
def _output() -> Iterator[str]:
  """The directory to write: --output, or a temporary one."""
  if _OUTPUT.value:
    yield _OUTPUT.value
  else:
    with tempfile.TemporaryDirectory(prefix='janus_jax-push-') as directory:
      yield os.path.join(directory, 'export')


def _card(checkpoint: Checkpoint) -> str:
  """The model card of --push. Raises InputError where the layout cannot express the model, before one is made."""
  from janus_jax.runs.model_card import model_card  # Conversions to a disk need not wait for what it imports.

  if _FORMAT.value in PEFT_LAYOUTS and not hub.is_name(base := checkpoint.adapter.base):
    raise InputError(
      f'{base}: nobody else has this base: expected its name on the hub, --input=ORGANISATION/BASE+ADAPTER'
    )
  if _FORMAT.value == 'huggingface':
    janus_to_huggingface(checkpoint.config, 'float32')
  return model_card(_PUSH.value, _INPUT.value or _parts(), checkpoint, _FORMAT.value)


def _write(checkpoint: Checkpoint, directory: str) -> None:
  size = export_bytes(checkpoint, _FORMAT.value)
  with tqdm.tqdm(
    desc='converting', total=size, unit='B', unit_scale=True, unit_divisor=1000, dynamic_ncols=True
  ) as bar:
    write_checkpoint(checkpoint, directory, _FORMAT.value, bar.update)


def main() -> None:
  _check_usage()
  checkpoint = cast_params(_open(), _DTYPE.value)
  _check_adapter(checkpoint)
  size = _IMAGE_SIZE.value or 0
  checkpoint = checkpoint.resized(size, _GENERATION_SIZE.value or size)
  card = _card(checkpoint) if _PUSH.value else ''
  with _output() as output:
    with exporting(checkpoint, output, _FORMAT.value, _OVERWRITE.value) as directory:
      if card:
        hub.create(_PUSH.value, _PRIVATE.value)  # Who may not upload is told so before the work.
        write_text(os.path.join(directory, 'README.md'), card)
      _write(checkpoint, directory)
    if _OUTPUT.value:
      logging.info('wrote %s (%s)', output, _FORMAT.value)
    if card:
      logging.info('uploaded %s (%s)', hub.upload(output, _PUSH.value), _FORMAT.value)


if __name__ == '__main__':
  cli.run(main)
