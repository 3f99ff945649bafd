"""One function for each mode of `janus_jax.benchmark`: measures, compares with the peer, returns figures by name."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from janus_jax.benchmarking import inference, report
from janus_jax.benchmarking.subject import Subject, peak_memory
from janus_jax.benchmarking.timing import seconds_of, speedup, time_in_turn
from janus_jax.benchmarking.train import Trainer, figures, read_work
from janus_jax.errors import InputError
from janus_jax.inference.sampling import Sampling
from janus_jax.planning import hold_codes

# Of two first losses. On a GPU both sides compute in bfloat16, each in its own order.
LOSS_TOLERANCE = {'float32': 1e-4, 'bfloat16': 2e-2}
# Greedy choices agree until two are as likely but for rounding; from there on two sides say different things.
LEADING = 8


@dataclasses.dataclass(frozen=True)
class Settings:
  """How it is measured.

  Attributes:
    repeats: runs of which the median counts.
    steps: training steps of a run.
    peer: whether transformers does the same work in turn.
    compile_peer: whether the peer's forward pass goes through `torch.compile`.
    profile: directory for a trace of our side, '' for none.
  """

  repeats: int
  steps: int
  peer: bool
  compile_peer: bool = False
  profile: str = ''


def train(subject: Subject, stage: str | None, settings: Settings) -> dict[str, Any]:
  """Training steps of a stage.

  Raises:
    InputError: no such stage, or the peer computes something else.
  """
  work = read_work(subject, stage, hold_codes(subject.config))
  trainer = Trainer(work)
  logging.info('compiling')
  compiling = seconds_of(lambda: trainer.run(1))
  first = trainer.loss
  runs: list[Callable[[], None]] = [lambda: trainer.run(settings.steps)]
  found: dict[str, Any] = {'mode': 'train', 'stage': work.stage.name, 'compile_seconds': compiling}
  if settings.peer:
    from janus_jax.benchmarking import peer
    from janus_jax.benchmarking.peer_train import PeerTrainer, check_same_loss

    peer.check_platform()
    other = PeerTrainer(work, settings.compile_peer)
    other.run(1)
    check_same_loss(first, other.loss, LOSS_TOLERANCE[work.step.compute.dtype])
    runs.append(lambda: other.run(settings.steps))
  _warm_and_profile(runs, settings)
  timings = [timing.per(settings.steps) for timing in time_in_turn(runs, settings.repeats)]
  found |= {'attention': work.step.compute.attention, 'compute_dtype': work.step.compute.dtype}
  found |= figures(work, timings[0])
  if settings.peer:
    found['peer'] = peer.described() + (', fused AdamW, torch.compile' if settings.compile_peer else ', fused AdamW')
    found['peer_step_seconds'] = timings[1].median
    found['peer_tokens_per_second'] = work.counts.tokens / timings[1].median
    found['times_the_peer'] = report.spread(speedup(*timings))
  return found | _memory()


def generate(subject: Subject, batches: Sequence[int], words: int, dtype: str, settings: Settings) -> dict[str, Any]:
  """Images, with guidance: their codes, and those made pixels.

  Args:
    subject: what is measured.
    batches: images at a time.
    words: tokens of a prompt.
    dtype: what weights are stored and computed in.
    settings: how.

  Raises:
    InputError: the peer draws something else.
  """
  guidance = float(subject.config.sampling.cfg_weight)
  decoder = inference.make_decoder(subject, dtype)
  other = inference.PeerInference(subject, dtype) if settings.peer else None

  def of(batch: int) -> dict[str, Any]:
    prompts = inference.drawing_prompts(subject, batch, words)

    def draw() -> np.ndarray:
      return inference.draw_codes(decoder, prompts, guidance, Sampling())

    logging.info('%d images: compiling', batch)
    compiling, codes = seconds_of(draw), draw()
    runs = [draw, lambda: decoder.method('decode_codes', codes).block_until_ready()]
    if other:
      greedy = inference.draw_codes(decoder, prompts, guidance, Sampling(temperature=0.0))
      _check_leading('codes', greedy, other.draw_codes(prompts, guidance, 0.0))
      runs.append(lambda: other.draw_codes(prompts, guidance, 1.0))
    _warm_and_profile(runs, settings)
    drawn, decoded, *theirs = time_in_turn(runs, settings.repeats)
    row = {
      'batch': batch,
      'compile_seconds': compiling,
      'seconds_of_codes': report.spread(drawn),
      'seconds_of_pixels': report.spread(decoded),
      'images_per_second': batch / (drawn.median + decoded.median),
      'codes_per_second': batch * subject.model.vq.num_tokens / drawn.median,
    }
    if theirs:
      row['peer_seconds_of_codes'] = report.spread(theirs[0])
      row['times_the_peer'] = report.spread(speedup(drawn, theirs[0]))
    return row

  about = {'mode': 'generate', 'compute_dtype': dtype, 'guidance': guidance, 'prompt_tokens': words}
  return about | _peer(settings) | {'images': [of(batch) for batch in batches]} | _memory()


def understand(
  subject: Subject, batches: Sequence[int], words: int, answer: int, dtype: str, settings: Settings
) -> dict[str, Any]:
  """Answers of a fixed length, each about an image of its own.

  Args:
    subject: what is measured.
    batches: questions at a time.
    words: tokens of a question beside its image.
    answer: tokens of an answer.
    dtype: what weights are stored and computed in.
    settings: how.

  Raises:
    InputError: the peer answers something else.
  """
  decoder = inference.make_decoder(subject, dtype)
  other = inference.PeerInference(subject, dtype) if settings.peer else None

  def of(batch: int) -> dict[str, Any]:
    prompts = inference.questions(subject, batch, words)

    def say(count: int) -> np.ndarray:
      return inference.answer_tokens(decoder, prompts, count)

    logging.info('%d answers: compiling', batch)
    compiling = seconds_of(lambda: say(answer))
    runs: list[Callable[[], Any]] = [lambda: say(answer), lambda: say(1)]
    if other:
      _check_leading('answers', say(answer), other.answer_tokens(prompts, answer))
      runs += [lambda: other.answer_tokens(prompts, answer), lambda: other.answer_tokens(prompts, 1)]
    _warm_and_profile(runs, settings)
    whole, first, *theirs = time_in_turn(runs, settings.repeats)
    row = {
      'batch': batch,
      'compile_seconds': compiling,
      'seconds_to_first_token': report.spread(first),
      'seconds_of_answer': report.spread(whole),
      'tokens_per_second': batch * answer / whole.median,
    }
    if theirs:
      row['peer_seconds_to_first_token'] = report.spread(theirs[1])
      row['peer_seconds_of_answer'] = report.spread(theirs[0])
      row['times_the_peer'] = report.spread(speedup(whole, theirs[0]))
      row['times_the_peer_to_first_token'] = report.spread(speedup(first, theirs[1]))
    return row

  about = {'mode': 'understand', 'compute_dtype': dtype, 'prompt_tokens': words, 'answer_tokens': answer}
  return about | _peer(settings) | {'answers': [of(batch) for batch in batches]} | _memory()


def _check_leading(what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
  """Raises InputError where two sides do not begin alike."""
  count = min(LEADING, ours.shape[1])
  if ours.shape != theirs.shape or not np.array_equal(ours[:, :count], theirs[:, :count]):
    raise InputError(
      f'greedy {what}: ours begin {ours[0, :count].tolist()}, of the peer {theirs[0, :count].tolist()}: expected the '
      'same work'
    )


def _warm_and_profile(runs: Sequence[Callable[[], Any]], settings: Settings) -> None:
  for run in runs:
    run()
  if settings.profile:
    with jax.profiler.trace(settings.profile):
      runs[0]()


def _peer(settings: Settings) -> dict[str, str]:
  if not settings.peer:
    return {}
  from janus_jax.benchmarking import peer

  return {'peer': peer.described()}


def _memory() -> dict[str, Any]:
  name, peak = peak_memory()
  return {name: peak, **report.environment()}
