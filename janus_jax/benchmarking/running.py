"""Modes of `janus_jax.benchmark`: each function measures, compares with the peer, and returns figures by name."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from janus_jax.benchmarking import accuracy, inference, peer, peer_train
from janus_jax.benchmarking.benchmark_model import BenchmarkModel, peak_memory
from janus_jax.benchmarking.checks import check_device
from janus_jax.benchmarking.evaluation_speed import EvaluatedQuestions
from janus_jax.benchmarking.operations import longest_operations
from janus_jax.benchmarking.peer import PeerProcess
from janus_jax.benchmarking.peer_inference import PeerInference
from janus_jax.benchmarking.report import environment
from janus_jax.benchmarking.scaling import Cost, decode_costs, train_costs
from janus_jax.benchmarking.settings import BenchmarkSettings, Request
from janus_jax.benchmarking.timing import Timing, speedup, time_in_turn, timed
from janus_jax.benchmarking.train import Trainer, TrainWork, make_work, train_figures
from janus_jax.errors import InputError
from janus_jax.inference.decoder import Decoder
from janus_jax.inference.drawing import Drawn, Window
from janus_jax.inference.sampling import Sampling
from janus_jax.inference.windows import AUTO, choose_window
from janus_jax.runs.datasets import hold_codes

# For the losses of the first two steps. In bfloat16 each side rounds in its own order.
LOSS_TOLERANCE = {'float32': 1e-3, 'bfloat16': 2e-2}
# Greedy choices that have to agree in every row. Two that are as likely but for rounding part the rows for good.
LEADING = 8

Run = Callable[[], Any]


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
  found |= {'rows': work.stage.batch_size, **train_figures(work, step)}
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


class _Images:
  """Images with guidance. `runs` of ours and of the peer are timed under `names`; ours draw codes by each window."""

  rows, names = 'images', ('seconds_of_codes', 'seconds_of_pixels')

  def __init__(self, model: BenchmarkModel, request: Request):
    self._codes_per_image, self._guidance = model.config.vq.num_tokens, float(model.run.sampling.cfg_weight)
    self.windows, shared = request.windows, request.rows_per_prefix

    def prompts(batch: int) -> inference.Prompts:
      if request.prompts:
        return inference.described_images(model, request.prompts, batch, self._guidance, shared)
      return inference.image_prompts(model, batch, request.prompt_tokens, self._guidance, shared)

    self._prompts = {batch: prompts(batch) for batch in request.batches}
    self._drawn: dict[tuple[int, int | str], Drawn] = {}
    self._chosen: dict[tuple[int, int | str], Window] = {}
    length = self._prompts[request.batches[0]].tokens.shape[1]
    self.about = {'guidance': self._guidance, 'prompt_tokens': length}

  def _sample(self, decoder: Decoder, batch: int, window: int | str, sampling: Sampling) -> np.ndarray:
    prompts, key = self._prompts[batch], (batch, window)
    if key not in self._chosen:
      self._chosen[key] = self._choose(decoder, prompts, sampling) if window == AUTO else Window(int(window))
    self._drawn[key] = inference.sample_codes(decoder, prompts, self._guidance, sampling, self._chosen[key])
    return self._drawn[key].codes

  def _choose(self, decoder: Decoder, prompts: inference.Prompts, sampling: Sampling) -> Window:
    return choose_window(decoder, prompts.tokens.shape, self._guidance, sampling, batches=100)  # As in a long run.

  def _peer_sample(self, other: PeerProcess, batch: int, temperature: float) -> np.ndarray:
    return other.call('sample_codes', self._prompts[batch], batch, self._guidance, temperature)

  def _codes(self, batch: int) -> np.ndarray:
    return self._drawn[batch, self.windows[0]].codes

  def runs(self, decoder: Decoder, batch: int) -> list[Run]:
    return [
      *(functools.partial(self._sample, decoder, batch, window, Sampling()) for window in self.windows),
      lambda: inference.decode_codes(decoder, self._codes(batch)),
    ]

  def peer_runs(self, other: PeerProcess, batch: int) -> list[Run]:
    return [lambda: self._peer_sample(other, batch, 1.0), lambda: other.call('decode_codes', self._codes(batch))]

  def greedy(self, decoder: Decoder, other: PeerProcess, batch: int) -> tuple[np.ndarray, np.ndarray]:
    ours = self._sample(decoder, batch, self.windows[0], inference.GREEDY)
    return ours, self._peer_sample(other, batch, 0.0)

  def logits(self, full: Decoder, batch: int) -> Callable[[Decoder], jax.Array]:
    codes = self._sample(full, batch, 1, Sampling())
    return lambda decoder: accuracy.code_logits(decoder, self._prompts[batch], codes, self._guidance)

  def rates(self, batch: int, codes: Timing, pixels: Timing) -> dict[str, Any]:
    seconds = codes.median + pixels.median
    rates = {'seconds_per_image': seconds / batch, 'images_per_second': batch / seconds}
    return {**rates, 'codes_per_second': batch * self._codes_per_image / codes.median}

  def figures(self, decoder: Decoder, batch: int, window: int | str, codes: Timing, pixels: Timing) -> dict[str, Any]:
    drawn, first = self._drawn[batch, window], self._drawn[batch, self.windows[0]]
    chosen = self._chosen[batch, window].size
    found: dict[str, Any] = {'window': window, 'codes_of_a_pass_at_most': chosen}
    found['passes_per_image'] = float(drawn.passes.mean())
    # The pass over the prompt draws the first code.
    found['codes_per_pass'] = float(np.mean((self._codes_per_image - 1) / (drawn.passes - 1)))
    if window != self.windows[0]:
      found['same_images_as_by_first_window'] = float((drawn.codes == first.codes).all(axis=1).mean())
    slots = self._prompts[batch].slots_read(self._codes_per_image / 2)
    seconds = codes.median / int(drawn.passes.max())
    return {**found, 'share_of_roofline': _roofline(decoder, 'gen_head', slots, seconds)}


class _Answers:
  """Greedy answers of a fixed length about an image each, whole and then first tokens, as `_Images` does it."""

  rows, names, windows = 'answers', ('seconds_of_answer', 'seconds_to_first_token'), (1,)

  def __init__(self, model: BenchmarkModel, request: Request):
    self._length = request.answer_tokens
    shape = request.prompt_tokens, request.rows_per_prefix
    self._prompts = {batch: inference.questions(model, batch, *shape) for batch in request.batches}
    self._after_first: dict[int, list[float]] = {batch: [] for batch in request.batches}
    self.about = {'prompt_tokens': request.prompt_tokens, 'answer_tokens': self._length}

  def _answer(self, decoder: Decoder, batch: int) -> np.ndarray:
    tokens, seconds = inference.answer_tokens(decoder, self._prompts[batch], self._length)
    self._after_first[batch].append(seconds)
    return tokens

  def runs(self, decoder: Decoder, batch: int) -> list[Run]:
    return [lambda: self._answer(decoder, batch), lambda: inference.answer_tokens(decoder, self._prompts[batch], 1)]

  def peer_runs(self, other: PeerProcess, batch: int) -> list[Run]:
    return [functools.partial(other.call, 'answer_tokens', self._prompts[batch], count) for count in (self._length, 1)]

  def greedy(self, decoder: Decoder, other: PeerProcess, batch: int) -> tuple[np.ndarray, np.ndarray]:
    return self._answer(decoder, batch), self.peer_runs(other, batch)[0]()

  def logits(self, full: Decoder, batch: int) -> Callable[[Decoder], jax.Array]:
    answers = self._answer(full, batch)
    return lambda decoder: accuracy.answer_logits(decoder, self._prompts[batch], answers)

  def rates(self, batch: int, answer: Timing, first: Timing) -> dict[str, Any]:
    return {'tokens_per_second': batch * self._length / answer.median}

  def figures(self, decoder: Decoder, batch: int, window: int | str, answer: Timing, first: Timing) -> dict[str, Any]:
    after_first = tuple(self._after_first[batch][-len(answer.values) :])
    token, slots = Timing(after_first).per(self._length - 1), self._prompts[batch].slots_read(self._length / 2)
    return {
      'tokens_per_second_after_first': batch / token.median,
      'share_of_roofline': _roofline(decoder, 'lm_head', slots, token.median),
    }


# Work of each mode.
WORK = {'generate': _Images, 'understand': _Answers, 'evaluate': EvaluatedQuestions}


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
    figures = {'batch': batch, 'compile_seconds': compiling[batch]}
    figures |= {name: timing.spread() for name, timing in zip(work.names, ours)}
    figures |= work.rates(batch, *ours) | work.figures(decoder, batch, window, *ours)
    if theirs:
      figures |= {f'peer_{name}': value for name, value in work.rates(batch, *theirs).items()}
    for beside in zip(work.names, ours, theirs):
      figures |= _beside(*beside)
    return figures

  found[work.rows] = [row for batch in request.batches for row in rows(batch)]
  return found | memory | _profile(runs[first][0], settings) | environment()


def _inference_peer(
  work: _Images | _Answers | EvaluatedQuestions, model: BenchmarkModel, request: Request, settings: BenchmarkSettings
) -> tuple[dict[str, Any], PeerProcess]:
  """Figures about the peer, and the peer, once both sides choose the same greedily.

  That is checked in float32, whatever is timed: two sides that round to bfloat16 in their own order soon part.
  """
  peer.check_peer()
  logging.info('comparing greedy choices in float32')
  compiled = peer.should_compile(settings.compile_peer)
  make = functools.partial(PeerInference, model.config, _on_host(model))
  exact = PeerProcess(functools.partial(make, 'float32', compiled=False))
  decoder = inference.benchmark_decoder(model, 'float32')
  agreement = check_same_choices(*work.greedy(decoder, exact, request.batches[0]))
  how = "transformers' generate, static cache for images (on a GPU for answers too)"
  about = {'peer': peer.described(request.dtype, compiled, how), 'greedy_agreement': agreement}
  if request.dtype == 'float32' and not compiled:
    return about, exact
  return about, PeerProcess(functools.partial(make, request.dtype, compiled))


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


def _roofline(decoder: Decoder, head: str, slots: float, step_seconds: float) -> float | None:
  read = inference.bytes_per_step(decoder, head, slots)
  return inference.roofline_fraction(read, step_seconds, jax.devices()[0].device_kind)


def _profile(run: Run, settings: BenchmarkSettings) -> dict[str, Any]:
  """A trace of one run, and its longest operations; nothing where no trace is asked for.

  After everything else: on an H100 (jax 0.11.2) CUDA graphs failed to launch once a trace had been taken.
  """
  if not settings.profile:
    return {}
  with jax.profiler.trace(settings.profile):
    run()
  return {'longest_operations': longest_operations(settings.profile)}
