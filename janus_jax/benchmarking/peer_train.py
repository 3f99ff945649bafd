"""The train step as a good torch user writes it around transformers' modules, which have no training path for images.

Packed rows; logits at supervised positions only; no gradients for what is frozen; clipping, and fused AdamW (on a CPU
too: 0.29 s against 0.40 s of `foreach` for 40 M parameters on 2 cores). Attention by SDPA, causal and without a mask
where every row is one example, else with a block-diagonal mask. Indices of each type of token are computed once, as the
workers of a user's data loader would do. bfloat16 is by autocast, with float32 masters for what trains.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from janus_jax.benchmarking.peer import device_of, import_peer, peer_model
from janus_jax.conversion.lazy import from_numpy
from janus_jax.conversion.translate import parameter_shapes, tensors_from_params
from janus_jax.data.examples import CODE, GENERATION_LOSS, IMAGE, NO_LOSS, TEXT
from janus_jax.models.config import JanusConfig
from janus_jax.training.optimizer import OptimizerConfig
from janus_jax.training.stages import Stage

HOW = 'logits at supervised positions only, frozen parts without gradients, fused AdamW'


@dataclasses.dataclass(frozen=True, eq=False)
class PeerWork:
  """The peer's part of `train.TrainWork`, without anything of jax, so that it can be sent to another process.

  Attributes:
    params: our tree, numpy arrays.
    batch, trained, rate: those of `train.TrainWork`.
    dtype: dtype of computation.
  """

  config: JanusConfig
  params: Any
  batch: Mapping[str, np.ndarray]
  trained: frozenset[str]
  stage: Stage
  rate: float
  optimizer: OptimizerConfig
  dtype: str

  @property
  def one_example(self) -> bool:
    """True if every row is one example and full."""
    return bool((self.batch['segments'] == 1).all())


class PeerTrainer:
  """The peer's `train.Trainer`; `compiled`: the forward pass goes through `torch.compile`."""

  def __init__(self, work: PeerWork, compiled: bool):
    torch, _ = import_peer()
    self._torch, self._work, self._device = torch, work, device_of(torch)
    self._dtype = getattr(torch, work.dtype)
    if self._device == 'cuda':
      torch.set_float32_matmul_precision('high')  # As jax does by default: float32 products through TF32.
    self._model = self._make_model()
    self._trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
    settings = work.optimizer
    self._optimizer = torch.optim.AdamW(
      self._trained,
      lr=work.rate,
      betas=(settings.b1, settings.b2),
      eps=settings.eps,
      weight_decay=work.stage.weight_decay,
      fused=True,
    )
    self._batch = {name: self._tensor(array) for name, array in work.batch.items()}
    self._indices = {name: self._tensor(array) for name, array in _indices(work).items()}
    self._forward = torch.compile(self._loss) if compiled else self._loss

  def _make_model(self) -> Any:
    """The model with gradients for what trains, no dropout, and frozen parts but the VQ in the dtype of computation."""
    torch, names = self._torch, _torch_names(self._work)
    model = peer_model(self._work.config, self._work.params, 'float32').train()
    for module in model.modules():
      if isinstance(module, torch.nn.Dropout):
        module.p = 0.0
    for name, parameter in model.named_parameters():
      parameter.requires_grad_(name in names)
      if name not in names and 'vqmodel' not in name:
        parameter.data = parameter.data.to(self._dtype)
    return model

  def run(self, steps: int) -> float:
    """Takes steps and waits for the last; its loss."""
    torch = self._torch
    for _ in range(steps):
      with torch.autocast(self._device, self._dtype, enabled=self._work.dtype != 'float32'):
        loss = self._forward()
      self._optimizer.zero_grad(set_to_none=True)
      loss.backward()
      torch.nn.utils.clip_grad_norm_(self._trained, self._work.optimizer.max_grad_norm)
      self._optimizer.step()
    return float(loss.detach())

  def _loss(self) -> Any:
    """The weighted mean over all supervised targets of the batch."""
    torch, model, batch, indices = self._torch, self._model.model, self._batch, self._indices
    token_types, tokens, targets = batch['token_types'], batch['tokens'].long(), batch['targets'].long()
    if 'generation_pixels' in batch and batch['generation_pixels'].shape[1]:
      tokens, targets = self._with_codes(tokens, targets)
    x = model.language_model.embed_tokens(torch.where(token_types == TEXT, tokens, 0)).flatten(0, 1)
    if len(indices['codes']):
      codes = self._model.prepare_embeddings_for_image_generation(tokens.flatten()[indices['codes']][None])[0]
      x = x.index_put((indices['codes'],), codes.to(x.dtype))
    if len(indices['images']):
      x = x.index_put((indices['images'],), self._image_features().to(x.dtype))
    x = x.reshape(*tokens.shape, -1)
    hidden = model.language_model(inputs_embeds=x, use_cache=False, **self._packing()).last_hidden_state.flatten(0, 1)
    total = 0.0
    for name, head in (('text_targets', self._model.lm_head), ('code_targets', model.generation_head)):
      at = indices[name]
      if len(at):
        logits = head(hidden[at]).float()
        found = torch.nn.functional.cross_entropy(logits, targets.flatten()[at], reduction='none')
        total = total + (found * indices['weights'][at]).sum()
    return total / indices['weights'].sum()

  def _image_features(self) -> Any:
    """Embeddings of the images that stand in the rows, in reading order."""
    pixels = self._scaled(self._batch['pixels'].flatten(0, 1)[self._indices['filled']])
    model = self._model.model
    return model.aligner(model.vision_model(pixels).last_hidden_state).flatten(0, 1)

  def _with_codes(self, tokens: Any, targets: Any) -> tuple[Any, Any]:
    torch = self._torch
    pixels = self._scaled(self._batch['generation_pixels'].flatten(0, 1))
    # In float32, as ours: rounded, other codes would be the nearest.
    with torch.no_grad(), torch.autocast(self._device, enabled=False):
      codes = self._codes(pixels).reshape(len(self._batch['generation_pixels']), -1)
    is_code, is_target = self._batch['token_types'] == CODE, self._batch['loss_ids'] == GENERATION_LOSS

    def codes_at(ids: Any, where: Any) -> Any:
      """Replaces indices among the codes of a stream by those codes."""
      by_stream = torch.where(where, ids, 0).reshape(len(codes), -1)
      return torch.where(where, codes.gather(1, by_stream).reshape(ids.shape), ids)

    return codes_at(tokens, is_code), codes_at(targets, is_target)

  def _codes(self, pixels: Any) -> Any:
    """int64[N, P]. Not transformers' own `encode`: it does not normalise, as DeepSeek's code and ours do."""
    torch, vq = self._torch, self._model.model.vqmodel
    latents = vq.quant_conv(vq.encoder(pixels)).permute(0, 2, 3, 1).flatten(1, 2)
    unit = torch.nn.functional.normalize
    return (unit(latents, dim=-1) @ unit(vq.quantize.embedding.weight, dim=-1).T).argmax(-1)

  def _scaled(self, pixels: Any) -> Any:
    """uint8[N, size, size, 3] to float32[N, 3, size, size], -1 to 1."""
    return (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5

  def _packing(self) -> dict[str, Any]:
    """Positions [B, T] and a mask bool[B, 1, T, T] for rows of several examples; SDPA is causal without a mask."""
    if self._work.one_example:  # Given positions, transformers looks for several examples in a row.
      return {}
    torch, segments = self._torch, self._batch['segments']
    T = segments.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    mask = ((segments[:, :, None] == segments[:, None, :]) & causal)[:, None]
    return {'position_ids': self._batch['positions'].long(), 'attention_mask': mask}

  def _tensor(self, array: np.ndarray) -> Any:
    return self._torch.from_numpy(np.array(array)).to(self._device)


def _indices(work: PeerWork) -> dict[str, np.ndarray]:
  """Indices (int64) into the flattened batch of codes, images, and targets of either head; of slots with an image; and
  the weight (float32) of each position's target, its loss's weight included.
  """
  batch, config = work.batch, work.config
  losses, is_image = batch['loss_ids'], batch['token_types'] == IMAGE
  streams, slots = batch['pixels'].shape[:2]
  filled = np.arange(slots) < is_image.reshape(streams, -1).sum(1, keepdims=True) // config.num_image_tokens
  loss_weights = np.array([0.0, *work.stage.loss_weights], np.float32)
  return {
    'codes': np.flatnonzero(batch['token_types'] == CODE),
    'images': np.flatnonzero(is_image),
    'text_targets': np.flatnonzero((losses != NO_LOSS) & (losses != GENERATION_LOSS)),
    'code_targets': np.flatnonzero(losses == GENERATION_LOSS),
    'filled': np.flatnonzero(filled),
    'weights': (batch['weights'] * loss_weights[losses]).ravel(),
  }


def _torch_names(work: PeerWork) -> set[str]:
  """Transformers' names of the parameters that train."""
  shapes = parameter_shapes(work.config)
  flat = {path: np.full(shape, path in work.trained, np.float32) for path, shape in shapes.items()}
  tensors = tensors_from_params({path: from_numpy(leaf, path) for path, leaf in flat.items()}, 'huggingface')
  return {name for name, tensor in tensors.items() if np.any(tensor[...])}
