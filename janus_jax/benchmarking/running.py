"""Modes of `janus_jax.benchmark`: each function measures, compares with the peer, and returns figures by name."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from janus_jax.benchmarking import accuracy, inference, peer, peer_train
from janus_jax.benchmarking.benchmark_model import BenchmarkModel, peak_memory
from janus_jax.benchmarking.checks import check_device
from janus_jax.benchmarking.evaluation_speed import EvaluatedQuestions
from janus_jax.benchmarking.inference_work import Answers, Images, Run
from janus_jax.benchmarking.operations import longest_operations
from janus_jax.benchmarking.peer import PeerProcess
from janus_jax.benchmarking.peer_inference import PeerInference
from janus_jax.benchmarking.report import environment
from janus_jax.benchmarking.scaling import Cost, decode_costs, train_costs
from janus_jax.benchmarking.settings import BenchmarkSettings, Request
from janus_jax.benchmarking.timing import Timing, speedup, time_in_turn, timed
from janus_jax.benchmarking.train import Trainer, TrainWork, make_work, train_figures
from janus_jax.errors import InputError
from janus_jax.runs.datasets import hold_codes

# For the losses of the first two steps. In bfloat16 each side rounds in its own order.
LOSS_TOLERANCE = {'float32': 1e-3, 'bfloat16': 2e-2}
# Greedy choices that have to agree in every row. Two that are as likely but for rounding part the rows for good.
LEADING = 8


def benchmark_check(model: BenchmarkModel) -> dict[str, Any]:
  """Checks of the first device, in float32 (`checks.check_device`)."""
  return {'mode': 'check', 'checks': [found.to_dict() for found in check_device(model)]} | environment()


def benchmark_train(model: BenchmarkModel, stage: str | None, settings: BenchmarkSettings) -> dict[str, Any]:
  """Training steps of a stage; None: the last one.

  Raises:
    InputError: no such stage, the mesh does not divide its batch, or the peer computes something else.
  """
  work = make_work(model, model.run.find_stage(stage), hold_codes(model.run.data))
  compute, about = work.step.compute, {}
  peer_losses, peer_runs, peer_timings = [], [], []
  if settings.peer:
    if work.stage.lora.rank:
      raise InputError('--peer trains without factors of LoRA: expected a stage without lora.rank')
    if work.samples:
      raise InputError(f"--peer learns from data alone: expected the objective 'sft', not {work.stage.objective!r}")
    about, other = _train_peer(work, settings)
    logging.info('the peer: two steps')
    peer_losses = [other.call('run', 1) for _ in range(2)]
    peer_runs = [functools.partial(other.call, 'run', settings.steps)]
    if jax.default_backend() != 'cpu':  # A card does not hold both.
      logging.info('the peer: %d runs of %d steps', settings.repeats, settings.steps)
      peer_timings, peer_runs = time_in_turn(peer_runs, settings.repeats), []
      other.close()
  trainer = Trainer(work)
  logging.info('%s: compiling', work.stage.name)
  compiling, first = timed(lambda: trainer.run(1))
  losses = [first, trainer.run(1)]
  for ours, theirs in zip(losses, peer_losses):
    check_same_loss(ours, theirs, LOSS_TOLERANCE[compute.dtype])
  memory = peak_memory()
  logging.info('%d runs of %d steps', settings.repeats, settings.steps)
  timings = time_in_turn([lambda: trainer.run(settings.steps), *peer_runs], settings.repeats) + peer_timings
  operations = _profile(lambda: trainer.run(1), settings)
  step, *peer_step = (timing.per(settings.steps) for timing in timings)
  found = {'mode': 'train', 'stage': work.stage.name, 'compile_seconds': compiling}
  found |= {'attention': compute.attention, 'remat': compute.remat, 'compute_dtype': compute.dtype}
  rows = sum(len(batch['tokens']) for batch in (work.batch, work.samples) if batch)
  found |= {'rows': rows, **train_figures(work, step)}
  if settings.peer:
    found |= about | {'second_loss': losses[-1], 'peer_second_loss': peer_losses[-1]}
    found |= _beside('step_seconds', step, *peer_step)
    found['peer_tokens_per_second'] = work.counts.tokens / peer_step[0].median
  return found | memory | operations | environment()


def _train_peer(work: TrainWork, settings: BenchmarkSettings) -> tuple[dict[str, Any], PeerProcess]:
  """Figures about the peer, and the peer."""
  peer.check_peer()
  compiled, dtype = peer.should_compile(settings.compile_peer), work.step.compute.dtype
  peer_work = peer_train.PeerWork(
    config=work.model.config,
    params=_on_host(work.model),
    batch=work.batch,
    trained=work.trained,
    stage=work.stage,
    rate=work.rate,
    optimizer=work.step.optimizer,
    dtype=dtype,
  )
  how = f'{peer_train.HOW}, {"causal" if peer_work.one_example else "block-diagonal"} attention'
  make = functools.partial(peer_train.PeerTrainer, peer_work, compiled)
  return {'peer': peer.described(dtype, compiled, how)}, PeerProcess(make)


def _on_host(model: BenchmarkModel) -> Any:
  """Parameters as numpy arrays, for another process."""
  return jax.tree.map(np.asarray, model.make_params())


def check_same_loss(ours: float, theirs: float, rtol: float) -> None:
  """Raises InputError where two losses differ."""
  if not abs(ours - theirs) <= rtol * abs(theirs):
    raise InputError(f'loss of ours {ours:.6f}, of the peer {theirs:.6f}: expected the same work, to {rtol:g}')


# Work of each mode.
WORK = {'generate': Images, 'understand': Answers, 'evaluate': EvaluatedQuestions}


def benchmark_inference(
  mode: str, model: BenchmarkModel, request: Request, settings: BenchmarkSettings
) -> dict[str, Any]:
  """Images, answers, or a benchmark's questions (`WORK` of the mode), a batch after the other.

  Raises:
    InputError: the peer chooses something else, or does not know the weight of guidance.
  """
  guidance = float(model.run.sampling.cfg_weight)
  if mode == 'generate' and settings.peer and guidance <= 1:
    raise InputError(f'sampling.cfg_weight is {guidance}: expected more than 1, the only weights the peer knows')
  work = WORK[mode](model, request)
  decoder = inference.benchmark_decoder(model, request.dtype, request.weights, request.cache_dtype)
  runs = {batch: work.runs(decoder, batch) for batch in request.batches}
  compiling, first = {}, request.batches[0]
  for batch in request.batches:
    logging.info('%s, %d at a time: compiling', work.rows, batch)
    compiling[batch] = sum(timed(run)[0] for run in runs[batch])
  found = {'mode': mode, **request.to_dict(), **work.about}
  memory, other = peak_memory(), None
  if request.is_rounded:
    full = inference.benchmark_decoder(model, request.dtype)
    logits = work.logits(full, first)
    found['rounding'] = accuracy.divergence(logits(full), logits(decoder))
  if settings.peer:
    about, other = _inference_peer(work, model, request, settings)
    found |= about

  def rows(batch: int) -> list[dict[str, Any]]:
    peer_runs = work.peer_runs(other, batch) if other else []
    for run in peer_runs:
      run()
    logging.info('%s, %d at a time: %d runs', work.rows, batch, settings.repeats)
    timings = time_in_turn([*runs[batch], *peer_runs], settings.repeats)
    count = len(work.windows)
    by_window, others = timings[:count], timings[count : count + len(work.names) - 1]
    return [row(batch, *pair, others, timings[len(runs[batch]) :]) for pair in zip(work.windows, by_window)]

  def row(
    batch: int, window: int | str, timing: Timing, others: Sequence[Timing], theirs: Sequence[Timing]
  ) -> dict[str, Any]:
    ours = [timing, *others]
    figures = {'batch': batch, **work.figures(decoder, batch, window, *ours), 'compile_seconds': compiling[batch]}
    figures |= {name: timing.spread() for name, timing in zip(work.names, ours)} | work.rates(batch, *ours)
    if theirs:
      figures |= {f'peer_{name}': value for name, value in work.rates(batch, *theirs).items()}
    for beside in zip(work.names, ours, theirs):
      figures |= _beside(*beside)
    return figures

  found[work.rows] = [row for batch in request.batches for row in rows(batch)]
  return found | memory | _profile(runs[first][0], settings) | environment()


def _inference_peer(
  work: Images | Answers | EvaluatedQuestions, model: BenchmarkModel, request: Request, settings: BenchmarkSettings
) -> tuple[dict[str, Any], PeerProcess]:
  """Figures about the peer, and the peer, once both sides choose the same greedily.

  That is checked in float32, whatever is timed: two sides that round to bfloat16 in their own order soon part.
  """
  peer.check_peer()
  logging.info('comparing greedy choices in float32')
  compiled = peer.should_compile(settings.compile_peer)
  other = PeerProcess(functools.partial(PeerInference, model.config, _on_host(model)))
  decoder = inference.benchmark_decoder(model, 'float32')
  agreement = check_same_choices(*work.greedy(decoder, other, request.batches[0]))
  other.call('prepare', request.dtype, compiled)
  how = "transformers' generate, static cache for images (on a GPU for answers too)"
  return {'peer': peer.described(request.dtype, compiled, how), 'greedy_agreement': agreement}, other


def check_same_choices(ours: np.ndarray, theirs: np.ndarray) -> float:
  """The fraction of greedy choices int[R, n] that agree; raises InputError where they do not begin alike."""
  same = ours == theirs if ours.shape == theirs.shape else np.zeros(1, bool)
  if not same.reshape(len(same), -1)[:, :LEADING].all():
    raise InputError(
      f'greedy choices: {same.mean():.1%} agree; ours begin {ours[0, :LEADING].tolist()}, of the peer '
      f'{theirs[0, :LEADING].tolist()}: expected the same work'
    )
  return float(same.mean())


def scale_training(
  model: BenchmarkModel, stage: str | None, settings: BenchmarkSettings
) -> tuple[dict[str, Any], list[Cost]]:
  """The cost of a training step against several sizes (`scaling.train_costs`), as figures and for charts."""
  found = model.run.find_stage(stage)
  costs = train_costs(model, found, settings.steps, settings.repeats)
  return _cost_figures({'mode': 'train', 'stage': found.name}, costs), costs


def scale_decoding(
  model: BenchmarkModel, request: Request, settings: BenchmarkSettings
) -> tuple[dict[str, Any], list[Cost]]:
  """The cost of a decoded token against several sizes (`scaling.decode_costs`), as figures and for charts."""
  decoder = inference.benchmark_decoder(model, request.dtype, request.weights, request.cache_dtype)
  costs = decode_costs(model, decoder, request.answer_tokens, settings.repeats)
  about = {'mode': 'understand', **request.to_dict(), 'answer_tokens': request.answer_tokens}
  return _cost_figures(about, costs), costs


def _cost_figures(about: dict[str, Any], costs: Sequence[Cost]) -> dict[str, Any]:
  return about | {'scaling': {cost.axis: cost.to_dict() for cost in costs}} | environment()


def _beside(name: str, ours: Timing, theirs: Timing) -> dict[str, Any]:
  return {f'peer_{name}': theirs.spread(), f'times_the_peer_by_{name}': speedup(ours, theirs).spread()}


def _profile(run: Run, settings: BenchmarkSettings) -> dict[str, Any]:
  """A trace of one run, and its longest operations; nothing where no trace is asked for.

  After everything else: on an H100 (jax 0.11.2) CUDA graphs failed to launch once a trace had been taken.
  """
  if not settings.profile:
    return {}
  with jax.profiler.trace(settings.profile):
    run()
  return {'longest_operations': longest_operations(settings.profile)}
