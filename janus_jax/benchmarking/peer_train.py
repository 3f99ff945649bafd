"""The train step as a good torch user writes it around transformers' modules, which have no training path for drawings.

Packed rows, logits at supervised positions only, no gradients for what is frozen, fused AdamW, clipping at 1; attention
by SDPA, causal where a row is one example and with a block-diagonal mask where it is several. On a GPU in bfloat16 by
autocast, with float32 masters for what trains.
"""

from typing import Any

import numpy as np

from janus_jax.benchmarking.peer import device_of, import_peer, peer_model
from janus_jax.benchmarking.train import Work
from janus_jax.conversion.lazy import from_numpy
from janus_jax.conversion.translate import parameter_shapes, tensors_from_params
from janus_jax.data.examples import CODE, GENERATION_LOSS, IMAGE, NO_LOSS, TEXT
from janus_jax.errors import InputError


class PeerTrainer:
  """As `train.Trainer`."""

  def __init__(self, work: Work, compiled: bool = False):
    """
    Args:
      work: what every step does; its config's optimizer and rates.
      compiled: whether the forward pass goes through `torch.compile`.
    """
    torch, _ = import_peer()
    self._torch, self._work = torch, work
    self._model = peer_model(work.subject.model, work.subject.params, 'float32').train()
    for dropout in (m for m in self._model.modules() if isinstance(m, torch.nn.Dropout)):
      dropout.p = 0.0
    names = _torch_names(work)
    for name, parameter in self._model.named_parameters():
      parameter.requires_grad_(name in names)
    self._trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
    settings = work.step.optimizer
    self._optimizer = torch.optim.AdamW(
      self._trained,
      lr=work.stage.learning_rate,
      betas=(settings.b1, settings.b2),
      eps=settings.eps,
      weight_decay=work.stage.weight_decay,
      fused=True,
    )
    self._batch = {name: torch.from_numpy(np.array(x)).to(device_of(torch)) for name, x in work.batch.items()}
    self._forward = torch.compile(self._loss) if compiled else self._loss
    self.loss = float('nan')

  def run(self, steps: int) -> None:
    """Takes steps and waits for the last; `loss` is its loss."""
    torch = self._torch
    on_gpu = device_of(torch) == 'cuda'
    for _ in range(steps):
      with torch.autocast('cuda', torch.bfloat16, enabled=on_gpu):
        loss = self._forward()
      self._optimizer.zero_grad(set_to_none=True)
      loss.backward()
      torch.nn.utils.clip_grad_norm_(self._trained, self._work.step.optimizer.max_grad_norm)
      self._optimizer.step()
    self.loss = float(loss.detach())

  def _loss(self) -> Any:
    torch, model, batch = self._torch, self._model.model, self._batch
    kinds, tokens, targets = batch['kinds'], batch['tokens'].long(), batch['targets'].long()
    if 'generation_pixels' in batch and batch['generation_pixels'].shape[1]:
      tokens, targets = self._with_codes(tokens, targets)
    x = model.language_model.embed_tokens(torch.where(kinds == TEXT, tokens, 0))
    is_code, is_image = kinds == CODE, kinds == IMAGE
    if is_code.any():
      drawn = self._model.prepare_embeddings_for_image_generation(tokens[is_code][None])[0]
      x = x.masked_scatter(is_code[..., None], drawn.to(x.dtype))
    if is_image.any():
      x = x.masked_scatter(is_image[..., None], self._image_features(is_image).to(x.dtype))
    hidden = model.language_model(
      inputs_embeds=x, position_ids=batch['positions'].long(), attention_mask=self._mask(x.dtype), use_cache=False
    ).last_hidden_state
    losses, weights = batch['losses'], batch['weights']
    of_kind = torch.tensor([0.0, *self._work.stage.loss_weights], device=weights.device)
    weights = weights * of_kind[losses.long()]
    total = 0.0
    for wanted, head in (
      ((losses != NO_LOSS) & (losses != GENERATION_LOSS), self._model.lm_head),
      (losses == GENERATION_LOSS, model.generation_head),
    ):
      if wanted.any():
        found = torch.nn.functional.cross_entropy(head(hidden[wanted]).float(), targets[wanted], reduction='none')
        total = total + (found * weights[wanted]).sum()
    return total / weights.sum()

  def _image_features(self, is_image: Any) -> Any:
    """Of those images that stand in the rows, in reading order; all places go through the encoder, as ours do."""
    torch, pixels = self._torch, self._batch['pixels']
    B, J = pixels.shape[:2]
    scaled = (pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    model = self._model.model
    features = model.aligner(model.vision_model(scaled).last_hidden_state)
    P = features.shape[1]
    filled = torch.arange(J, device=pixels.device)[None] < is_image.sum(1, keepdim=True) // P
    return features.reshape(B, J, P, -1)[filled].flatten(0, 1)

  def _with_codes(self, tokens: Any, targets: Any) -> tuple[Any, Any]:
    torch, pixels = self._torch, self._batch['generation_pixels']
    scaled = (pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
      codes = self._model.model.vqmodel.encode(scaled).image_tokens.reshape(len(tokens), -1)
    is_code, is_target = self._batch['kinds'] == CODE, self._batch['losses'] == GENERATION_LOSS

    def looked_up(places: Any, where: Any) -> Any:
      return torch.where(where, codes.gather(1, torch.where(where, places, 0)), places)

    return looked_up(tokens, is_code), looked_up(targets, is_target)

  def _mask(self, dtype: Any) -> Any:
    torch, segments = self._torch, self._batch['segments']
    if bool((segments == 1).all()):
      return None  # Causal: SDPA needs no mask.
    T = segments.shape[1]
    may = (segments[:, :, None] == segments[:, None, :]) & torch.ones(T, T, device=segments.device).tril().bool()
    return torch.where(may, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]


def _torch_names(work: Work) -> set[str]:
  """What trains, by transformers' names."""
  shapes = parameter_shapes(work.subject.model)
  flat = {path: np.full(shape, path in work.trained, np.float32) for path, shape in shapes.items()}
  tensors = tensors_from_params({path: from_numpy(leaf, path) for path, leaf in flat.items()}, 'huggingface')
  return {name for name, tensor in tensors.items() if np.any(tensor[...])}


def check_same_loss(ours: float, theirs: float, rtol: float) -> None:
  """Raises InputError where two first steps have different losses."""
  if not abs(ours - theirs) <= rtol * abs(theirs):
    raise InputError(f'first loss: ours {ours:.6f}, the peer {theirs:.6f}: expected the same work to {rtol:g}')
