"""Architecture of a Janus model as frozen dataclasses, and the presets of the released models.

Sources: the Janus paper (arXiv 2410.13848), the Janus-Pro report (arXiv 2501.17811, Table 1) and the config files
of the released checkpoints. What the numbers mean is documented here once; modules take these objects whole.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax

from janus_jax.errors import InputError

Activation = str  # 'gelu' is the exact erf form that Janus runs; 'gelu_tanh' is what SigLIP was trained with.


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
  """The understanding encoder (SigLIP vision tower without its pooling head)."""

  image_size: int = 384
  patch_size: int = 16
  width: int = 1024
  mlp_dim: int = 4096
  depth: int = 24
  num_heads: int = 16
  norm_eps: float = 1e-6
  activation: Activation = 'gelu'

  @property
  def grid(self) -> int:
    """Patches along one side of the image."""
    return self.image_size // self.patch_size

  @property
  def num_tokens(self) -> int:
    return self.grid**2

  @property
  def head_dim(self) -> int:
    return self.width // self.num_heads


@dataclasses.dataclass(frozen=True)
class VQConfig:
  """The generation tokenizer (LlamaGen's VQ-16: convolutional encoder, L2-normalised codebook, decoder)."""

  image_size: int = 384
  codebook_size: int = 16384
  code_dim: int = 8
  z_channels: int = 256
  base_channels: int = 128
  channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  num_res_blocks: int = 2

  @property
  def downsampling(self) -> int:
    """Pixels along one side of what one code stands for."""
    return 2 ** (len(self.channel_multipliers) - 1)

  @property
  def grid(self) -> int:
    return self.image_size // self.downsampling

  @property
  def num_tokens(self) -> int:
    return self.grid**2


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """The decoder (DeepSeek-LLM, architecturally Llama with an untied `lm_head`)."""

  vocab_size: int = 102400
  width: int = 2048
  mlp_dim: int = 5632
  depth: int = 24
  num_heads: int = 16
  num_kv_heads: int = 16
  head_dim: int = 128
  rope_theta: float = 10000.0
  norm_eps: float = 1e-6
  max_positions: int = 16384


@dataclasses.dataclass(frozen=True)
class JanusConfig:
  """A whole Janus.

  `image_token_id` is the vocabulary id whose embedding is replaced by image features (`<image_placeholder>`); it
  depends on the tokenizer (100581 in Janus-Pro-1B, 100594 in Janus-Pro-7B and Janus-1.3B).

  With `shared_encoder` understanding sees an image as generation does: as codes, through `gen_embed` and `gen_aligner`
  (the VQ tokenizer for both tasks, row A of the Janus paper's Table 5). SigLIP and its adaptor stay in the tree without
  use.
  """

  vision_encoder: SiglipConfig = SiglipConfig()
  vq: VQConfig = VQConfig()
  language_model: LlamaConfig = LlamaConfig()
  image_token_id: int = 100581
  shared_encoder: bool = False

  def __post_init__(self):
    validate(self)

  @property
  def image_size(self) -> int:
    """Pixels along one side of an image that is understood."""
    return self.vq.image_size if self.shared_encoder else self.vision_encoder.image_size

  @property
  def num_image_tokens(self) -> int:
    """Positions that an image takes in a question."""
    return self.vq.num_tokens if self.shared_encoder else self.vision_encoder.num_tokens

  @property
  def sizes(self) -> tuple[int, int]:
    """Sizes of the images that SigLIP and the VQ take, in pixels along one side."""
    return self.vision_encoder.image_size, self.vq.image_size

  def resized(self, image_size: int = 0, generation_size: int = 0) -> 'JanusConfig':
    """Returns the model for images of other sizes to understand and to generate (`sizes`); 0 leaves one as it is.

    Only the table of patch positions changes its shape (`siglip.resample_positions`).

    Raises:
      InputError: a size that the patch or the VQ's downsampling does not divide.
    """
    vision_encoder = dataclasses.replace(self.vision_encoder, image_size=image_size or self.vision_encoder.image_size)
    vq = dataclasses.replace(self.vq, image_size=generation_size or self.vq.image_size)
    return dataclasses.replace(self, vision_encoder=vision_encoder, vq=vq)


class Layout(Protocol):
  """Splits of activations and parameters over `mesh`; `sharding/layout.py` implements them. Hashable."""

  mesh: jax.sharding.Mesh

  def spec(self, name: str, shape: tuple[int, ...]) -> jax.sharding.PartitionSpec:
    """Split of the activation called `name`; an unknown name and a shape that does not divide are errors."""

  def parameter(self, path: str) -> jax.sharding.PartitionSpec:
    """Split of the parameter at a path."""

  def constrain(self, name: str, x: jax.Array) -> jax.Array:
    """The same values, split so."""


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
  """Settings of how a model runs. None of them changes the parameter tree.

  Attributes:
    dtype: activations and matrix products.
    param_dtype: freshly initialised parameters.
    vq_dtype: `dtype` of the VQ decoder. The VQ encoder always runs in float32: in bfloat16 up to 6 % of the codes
      change.
    remat: activations of a layer that are kept for the backward pass, a key of `layers.REMAT_POLICIES`; or 'auto':
      'dots' where it fits the accelerator, else 'full' (`training.rematerialisation.with_remat`).
    unroll: layers in one iteration of the layer loop (compile time against scheduling freedom).
    attention: the decoder's attention kernel, see `attention.IMPLEMENTATIONS`; or 'auto' (`attention_choice.choose`).
    vision_attention: the understanding encoder's attention kernel, likewise.
    integer_products: whether inputs of kernels that are stored in int8 are rounded to int8 too.
    layout: splits of activations on a mesh; None leaves them to XLA.
  """

  dtype: str = 'float32'
  param_dtype: str = 'float32'
  vq_dtype: str = 'float32'
  remat: str = 'none'
  unroll: int = 1
  attention: str = 'xla'
  vision_attention: str = 'xla'
  integer_products: bool = False
  layout: Layout | None = None

  @property
  def is_whole(self) -> bool:
    """True where the layout is of one device, so that any axes of an activation may become one."""
    return self.layout is not None and self.layout.mesh.size == 1

  def constrain(self, name: str, x: jax.Array) -> jax.Array:
    """x, split as the layout splits an activation of that name."""
    return x if self.layout is None else self.layout.constrain(name, x)


def validate(config: JanusConfig) -> None:
  """Raises InputError, naming the field, where sizes do not fit each other."""
  vision, vq, llama = config.vision_encoder, config.vq, config.language_model
  for part in ('vision_encoder', 'vq', 'language_model'):
    for name, value in dataclasses.asdict(getattr(config, part)).items():
      numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, (int, float))]
      may_be_zero = name == 'num_res_blocks'
      if any(v < 0 or (v == 0 and not may_be_zero) for v in numbers):
        raise InputError(f'{part}.{name} is {value}: expected {"0 or more" if may_be_zero else "more than 0"}')
  divisions = [
    ('vision_encoder.image_size', vision.image_size, 'vision_encoder.patch_size', vision.patch_size),
    ('vision_encoder.width', vision.width, 'vision_encoder.num_heads', vision.num_heads),
    ('vq.image_size', vq.image_size, 'the downsampling of vq.channel_multipliers', vq.downsampling),
    ('language_model.num_heads', llama.num_heads, 'language_model.num_kv_heads', llama.num_kv_heads),
    ('language_model.head_dim', llama.head_dim, 'the halves that rotary embedding rotates', 2),
    ('vq.base_channels', vq.base_channels, 'the groups of its normalisation', 32),
  ]
  for name, value, divisor_name, divisor in divisions:
    if value % divisor:
      raise InputError(f'{name} is {value}: expected a multiple of {divisor} ({divisor_name})')
  if vision.activation not in ('gelu', 'gelu_tanh'):
    raise InputError(f"vision_encoder.activation is {vision.activation!r}: expected 'gelu' or 'gelu_tanh'")
  if config.image_token_id >= llama.vocab_size:
    raise InputError(f'image_token_id is {config.image_token_id}: expected less than vocab_size {llama.vocab_size}')


def config_to_dict(config: JanusConfig) -> dict[str, Any]:
  """A JSON-ready nested dict; `from_dict` inverts it."""
  return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> JanusConfig:
  """Inverts `config_to_dict` (tuples may have become lists). Unknown fields raise InputError."""
  return _build(JanusConfig, values, '')


def _build(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
  known, parts = [field.name for field in dataclasses.fields(kind)], {}
  for name, value in values.items():
    if name not in known:
      raise InputError(f'config field {prefix}{name} is unknown: expected one of {", ".join(known)}')
    part = getattr(kind, name)
    if dataclasses.is_dataclass(part):
      parts[name] = _build(type(part), value, f'{name}.')
    else:
      parts[name] = tuple(value) if isinstance(value, list) else value
  return kind(**parts)


PRESETS: dict[str, JanusConfig] = {
  # Janus-1.3B has the sizes of Janus-Pro-1B but the 7B's tokenizer layout.
  'janus_1_3b': JanusConfig(image_token_id=100594),
  'janus_pro_1b': JanusConfig(),
  'janus_pro_7b': JanusConfig(
    language_model=LlamaConfig(width=4096, mlp_dim=11008, depth=30, num_heads=32, num_kv_heads=32),
    image_token_id=100594,
  ),
  # Every mechanism of the real ones (grouped-query heads too) at a size that tests and laptops run in seconds.
  'test_tiny': JanusConfig(
    vision_encoder=SiglipConfig(image_size=32, patch_size=8, width=64, mlp_dim=128, depth=2, num_heads=4),
    vq=VQConfig(
      image_size=32,
      codebook_size=128,
      z_channels=32,
      base_channels=32,
      channel_multipliers=(1, 1, 2, 2),
      num_res_blocks=1,
    ),
    language_model=LlamaConfig(
      vocab_size=512, width=64, mlp_dim=160, depth=3, num_heads=4, num_kv_heads=2, head_dim=16, max_positions=512
    ),
    image_token_id=500,
  ),
  # What configs/small.py trains on a richer toy world: 56 px, 49 codes and 49 patches of 8 px.
  'small': JanusConfig(
    vision_encoder=SiglipConfig(image_size=56, patch_size=8, width=128, mlp_dim=256, depth=3, num_heads=4),
    vq=VQConfig(
      image_size=56,
      codebook_size=1024,
      z_channels=32,
      base_channels=32,
      channel_multipliers=(1, 1, 2, 4),
      num_res_blocks=0,
    ),
    language_model=LlamaConfig(
      vocab_size=512,
      width=192,
      mlp_dim=512,
      depth=6,
      num_heads=6,
      num_kv_heads=6,
      head_dim=32,
      max_positions=512,
      rope_theta=100.0,
    ),
    image_token_id=500,
  ),
  # Timed on a CPU against torch (configs/benchmarks/cpu.py): 32 M in the decoder's layers, the released codebook.
  'benchmark': JanusConfig(
    vision_encoder=SiglipConfig(width=192, mlp_dim=768, depth=4, num_heads=3),
    vq=VQConfig(base_channels=32, z_channels=64, num_res_blocks=1),
    language_model=LlamaConfig(
      vocab_size=8192, width=576, mlp_dim=1536, depth=8, num_heads=9, num_kv_heads=9, head_dim=64, max_positions=4096
    ),
    image_token_id=8191,
  ),
  # What the toy world is trained with on a CPU: 24 px, 36 codes of 4 px, 9 patches of 8 px.
  'toy': JanusConfig(
    vision_encoder=SiglipConfig(image_size=24, patch_size=8, width=128, mlp_dim=256, depth=3, num_heads=4),
    vq=VQConfig(
      image_size=24,
      codebook_size=256,
      z_channels=32,
      base_channels=32,
      channel_multipliers=(1, 1, 4),
      num_res_blocks=1,
    ),
    language_model=LlamaConfig(
      vocab_size=384,
      width=128,
      mlp_dim=352,
      depth=4,
      num_heads=4,
      num_kv_heads=4,
      head_dim=32,
      max_positions=512,
      rope_theta=100.0,
    ),
    image_token_id=5,
  ),
}
# The same with as many codes as cells of three sizes look different (configs/ablations/sizes.py).
PRESETS['toy_sizes'] = dataclasses.replace(
  PRESETS['toy'], vq=dataclasses.replace(PRESETS['toy'].vq, codebook_size=2048)
)
