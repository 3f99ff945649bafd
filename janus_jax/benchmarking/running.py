"""One function for each mode of `janus_jax.benchmark`: measures, compares with the peer, returns figures by name."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from janus_jax.benchmarking import accuracy, inference
from janus_jax.benchmarking.benchmark_model import BenchmarkModel, peak_memory
from janus_jax.benchmarking.checks import check_device
from janus_jax.benchmarking.operations import longest_operations
from janus_jax.benchmarking.peer_process import PeerProcess
from janus_jax.benchmarking.report import environment
from janus_jax.benchmarking.scaling import Cost, decode_costs, train_costs
from janus_jax.benchmarking.settings import BenchmarkSettings, Request
from janus_jax.benchmarking.timing import Timing, speedup, time_in_turn, timed
from janus_jax.benchmarking.train import Trainer, TrainWork, make_work, train_figures
from janus_jax.errors import InputError
from janus_jax.inference.decoder import Decoder
from janus_jax.inference.sampling import Sampling
from janus_jax.runs.config import replaced
from janus_jax.runs.datasets import hold_codes

# Of the losses of the first two steps. In bfloat16 each side rounds in its own order.
LOSS_TOLERANCE = {'float32': 1e-3, 'bfloat16': 2e-2}
# So many greedy choices have to agree in every row. Two that are as likely but for rounding part the rows for good.
LEADING = 8

Run = Callable[[], Any]


def benchmark_train(subject: BenchmarkModel, stage: str | None, settings: BenchmarkSettings) -> dict[str, Any]:
  """Training steps of a stage; None: the last one.

  Raises:
    InputError: no such stage, the mesh does not divide its batch, or the peer computes something else.
  """
  work = make_work(subject, subject.config.find_stage(stage), hold_codes(subject.config.data))
  about, theirs, other, runs = {}, [], None, []
  if settings.peer:
    about, other = _train_peer(work, settings)
    logging.info('the peer: two steps')
    theirs = [other.call('run', 1) for _ in range(2)]
    runs = [functools.partial(other.call, 'run', settings.steps)]
  in_turn = jax.default_backend() == 'cpu'
  if other and not in_turn:  # A card does not hold both.
    logging.info('the peer: %d runs of %d steps', settings.repeats, settings.steps)
    peer_timings = time_in_turn(runs, settings.repeats)
    other.close()
    runs = []
  trainer = Trainer(work)
  logging.info('%s: compiling', work.stage.name)
  compiling, first = timed(lambda: trainer.run(1))
  losses = [first, trainer.run(1)]
  for ours, its in zip(losses, theirs):
    check_same_loss(ours, its, LOSS_TOLERANCE[work.step.compute.dtype])
  memory = _memory()
  runs.insert(0, lambda: trainer.run(settings.steps))
  logging.info('%d runs of %d steps', settings.repeats, settings.steps)
  timings = time_in_turn(runs, settings.repeats)
  kernels = _profile(lambda: trainer.run(1), settings)
  if other and not in_turn:
    timings += peer_timings
  timings = [timing.per(settings.steps) for timing in timings]
  compute = work.step.compute
  found = {'mode': 'train', 'stage': work.stage.name, 'compile_seconds': compiling}
  found |= {'attention': compute.attention, 'remat': compute.remat, 'compute_dtype': compute.dtype}
  found |= {'rows': work.stage.batch_size, **train_figures(work, timings[0])}
  if settings.peer:
    found |= about | {'second_loss': losses[-1], 'peer_second_loss': theirs[-1]}
    found |= _beside('step_seconds', timings[0], timings[1])
    found['peer_tokens_per_second'] = work.counts.tokens / timings[1].median
  return found | memory | kernels | environment()


def _train_peer(work: TrainWork, settings: BenchmarkSettings) -> tuple[dict[str, Any], PeerProcess]:
  """What there is to say of the peer, and the peer itself."""
  from janus_jax.benchmarking import peer, peer_train

  peer.check_peer()
  compiled, dtype = peer.should_compile(settings.compile_peer), work.step.compute.dtype
  todo = peer_train.PeerWork(
    model=work.subject.model,
    params=_on_host(work.subject),
    batch=work.batch,
    trained=work.trained,
    stage=work.stage,
    rate=work.rate,
    optimizer=work.step.optimizer,
    dtype=dtype,
  )
  how = f'{peer_train.HOW}, {"causal" if todo.one_example else "block-diagonal"} attention'
  return {'peer': peer.described(dtype, compiled, how)}, PeerProcess(
    functools.partial(peer_train.PeerTrainer, todo, compiled)
  )


def _on_host(subject: BenchmarkModel) -> Any:
  """The parameters as numpy arrays, for another process."""
  return jax.tree.map(np.asarray, subject.make_params())


def check(subject: BenchmarkModel) -> dict[str, Any]:
  """Whether the first device computes what it should (`checks.check_device`), in float32."""
  config = replaced(subject.config, {'compute.dtype': 'float32'})
  checks = [found.to_dict() for found in check_device(config, subject)]
  return {'mode': 'check', 'checks': checks} | environment()


def check_same_loss(ours: float, theirs: float, rtol: float) -> None:
  """Raises InputError where two losses differ."""
  if not abs(ours - theirs) <= rtol * abs(theirs):
    raise InputError(f'loss of ours {ours:.6f}, of the peer {theirs:.6f}: expected the same work, to {rtol:g}')


def generate(subject: BenchmarkModel, request: Request, settings: BenchmarkSettings) -> dict[str, Any]:
  """Images, with guidance: their codes, and those made pixels.

  Raises:
    InputError: the peer draws something else, or does not know the weight of guidance.
  """
  guidance, codes_per_image = float(subject.config.sampling.cfg_weight), subject.model.vq.num_tokens
  if settings.peer and guidance <= 1:
    raise InputError(f'sampling.cfg_weight is {guidance}: expected more than 1, the only weights the peer knows')
  decoder = inference.benchmark_decoder(subject, request.dtype, request.weights, request.cache_dtype)
  asked = {n: inference.drawing_prompts(subject, n, request.words, guidance, request.share) for n in request.batches}

  def draw(batch: int) -> np.ndarray:
    return inference.draw_codes(decoder, asked[batch], guidance, Sampling())

  def decode(batch: int) -> np.ndarray:
    return inference.decode_codes(decoder, codes[batch])

  codes, compiling = {}, {}
  for batch in request.batches:
    logging.info('%d images: compiling', batch)
    seconds, codes[batch] = timed(functools.partial(draw, batch))
    compiling[batch] = seconds + timed(functools.partial(decode, batch))[0]
  memory, first = _memory(), request.batches[0]
  rounding, about, other = {}, {}, None
  if request.is_rounded:
    full = inference.benchmark_decoder(subject, request.dtype)
    drawn = inference.draw_codes(full, asked[first], guidance, Sampling())
    rounding = {'rounding': accuracy.of_codes(full, decoder, asked[first], drawn, guidance)}
  if settings.peer:
    about, other = _inference_peer(
      subject,
      request,
      settings,
      lambda decoder: inference.draw_codes(decoder, asked[first], guidance, Sampling(temperature=0.0)),
      lambda peer: peer.call('draw_codes', asked[first], first, guidance, 0.0),
    )

  def row(batch: int) -> dict[str, Any]:
    runs: list[Run] = [functools.partial(draw, batch), functools.partial(decode, batch)]
    if other:
      runs += [
        functools.partial(other.call, 'draw_codes', asked[batch], batch, guidance, 1.0),
        functools.partial(other.call, 'decode_codes', codes[batch]),
      ]
      for run in runs[2:]:
        run()
    logging.info('%d images: %d runs', batch, settings.repeats)
    drawn, decoded, *theirs = time_in_turn(runs, settings.repeats)
    read = inference.bytes_per_step(decoder, 'gen_head', asked[batch].slots_read(codes_per_image / 2))
    found = {
      'batch': batch,
      'compile_seconds': compiling[batch],
      'seconds_of_codes': drawn.spread(),
      'seconds_of_pixels': decoded.spread(),
      'seconds_per_image': (drawn.median + decoded.median) / batch,
      'images_per_second': batch / (drawn.median + decoded.median),
      'codes_per_second': batch * codes_per_image / drawn.median,
      'share_of_roofline': _share(read, drawn.median / codes_per_image),
    }
    if theirs:
      found |= _beside('seconds_of_codes', drawn, theirs[0]) | _beside('seconds_of_pixels', decoded, theirs[1])
    return found

  found = {'mode': 'generate', **request.described(), 'guidance': guidance, 'prompt_tokens': request.words}
  found |= about | rounding | {'images': [row(batch) for batch in request.batches]}
  return found | memory | _profile(lambda: draw(request.batches[0]), settings) | environment()


def understand(subject: BenchmarkModel, request: Request, settings: BenchmarkSettings) -> dict[str, Any]:
  """Answers of a fixed length, each about an image of its own.

  Raises:
    InputError: the peer answers something else.
  """
  decoder = inference.benchmark_decoder(subject, request.dtype, request.weights, request.cache_dtype)
  asked = {n: inference.questions(subject, n, request.words, request.share) for n in request.batches}

  def say(batch: int, count: int) -> float:
    """Seconds after the first token."""
    return inference.answer_tokens(decoder, asked[batch], count)[1]

  compiling = {}
  for batch in request.batches:
    logging.info('%d answers: compiling', batch)
    compiling[batch] = sum(timed(functools.partial(say, batch, count))[0] for count in (request.answer, 1))
  memory, first = _memory(), request.batches[0]
  rounding, about, other = {}, {}, None
  if request.is_rounded:
    full = inference.benchmark_decoder(subject, request.dtype)
    said = inference.answer_tokens(full, asked[first], request.answer)[0]
    rounding = {'rounding': accuracy.of_answers(full, decoder, asked[first], said)}
  if settings.peer:
    about, other = _inference_peer(
      subject,
      request,
      settings,
      lambda decoder: inference.answer_tokens(decoder, asked[first], request.answer)[0],
      lambda peer: peer.call('answer_tokens', asked[first], request.answer),
    )

  def row(batch: int) -> dict[str, Any]:
    rest: list[float] = []
    runs: list[Run] = [lambda: rest.append(say(batch, request.answer)), lambda: say(batch, 1)]
    if other:
      runs += [functools.partial(other.call, 'answer_tokens', asked[batch], count) for count in (request.answer, 1)]
      for run in runs[2:]:
        run()
    logging.info('%d answers: %d runs', batch, settings.repeats)
    whole, first, *theirs = time_in_turn(runs, settings.repeats)
    token = Timing(tuple(rest)).per(request.answer - 1)
    read = inference.bytes_per_step(decoder, 'lm_head', asked[batch].slots_read(request.answer / 2))
    found = {
      'batch': batch,
      'compile_seconds': compiling[batch],
      'seconds_to_first_token': first.spread(),
      'seconds_of_answer': whole.spread(),
      'tokens_per_second': batch * request.answer / whole.median,
      'tokens_per_second_after_first': batch / token.median,
      'share_of_roofline': _share(read, token.median),
    }
    if theirs:
      found |= _beside('seconds_to_first_token', first, theirs[1]) | _beside('seconds_of_answer', whole, theirs[0])
    return found

  found = {'mode': 'understand', **request.described()}
  found |= {'prompt_tokens': request.words, 'answer_tokens': request.answer}
  found |= about | rounding | {'answers': [row(batch) for batch in request.batches]}
  return found | memory | _profile(lambda: say(request.batches[0], request.answer), settings) | environment()


def scale_training(
  subject: BenchmarkModel, stage: str | None, settings: BenchmarkSettings
) -> tuple[dict[str, Any], list[Cost]]:
  """The cost of a training step against several sizes (`scaling.train_costs`), for people and for charts."""
  found = subject.config.find_stage(stage)
  costs = train_costs(subject, found, settings.steps, settings.repeats)
  return {'mode': 'train', 'stage': found.name, **_costs(costs)}, costs


def scale_decoding(
  subject: BenchmarkModel, request: Request, settings: BenchmarkSettings
) -> tuple[dict[str, Any], list[Cost]]:
  """The cost of a decoded token against several sizes (`scaling.decode_costs`), for people and for charts."""
  decoder = inference.benchmark_decoder(subject, request.dtype, request.weights, request.cache_dtype)
  costs = decode_costs(subject, decoder, request.answer, settings.repeats)
  about = {'mode': 'understand', **request.described(), 'answer_tokens': request.answer}
  return {**about, **_costs(costs)}, costs


def _costs(costs: Sequence[Cost]) -> dict[str, Any]:
  return {'scaling': {cost.axis: cost.to_dict() for cost in costs}, **environment()}


def _inference_peer(
  subject: BenchmarkModel,
  request: Request,
  settings: BenchmarkSettings,
  ours: Callable[[Decoder], np.ndarray],
  theirs: Callable[[PeerProcess], np.ndarray],
) -> tuple[dict[str, Any], PeerProcess]:
  """What there is to say of the peer, and the peer itself, once both sides choose the same greedily.

  That is checked in float32, whatever is timed: two sides that round to bfloat16 in their own order soon part.
  """
  from janus_jax.benchmarking import peer
  from janus_jax.benchmarking.peer_inference import PeerInference

  peer.check_peer()
  logging.info('comparing greedy choices in float32')
  compiled = peer.should_compile(settings.compile_peer)
  make = functools.partial(PeerInference, subject.model, _on_host(subject))
  exact = PeerProcess(functools.partial(make, 'float32', compiled=False))
  agreement = check_same_choices(ours(inference.benchmark_decoder(subject, 'float32')), theirs(exact))
  how = "transformers' generate, static cache for images (on a GPU for answers too)"
  about = {'peer': peer.described(request.dtype, compiled, how), 'greedy_agreement': agreement}
  if request.dtype == 'float32' and not compiled:
    return about, exact
  return about, PeerProcess(functools.partial(make, request.dtype, compiled))


def check_same_choices(ours: np.ndarray, theirs: np.ndarray) -> float:
  """The share of greedy choices int[R, n] that agree.

  Raises:
    InputError: they do not begin alike.
  """
  same = ours == theirs if ours.shape == theirs.shape else np.zeros(1, bool)
  if not same.reshape(len(same), -1)[:, :LEADING].all():
    raise InputError(
      f'greedy choices: {same.mean():.1%} agree; ours begin {ours[0, :LEADING].tolist()}, of the peer '
      f'{theirs[0, :LEADING].tolist()}: expected the same work'
    )
  return float(same.mean())


def _beside(name: str, ours: Timing, theirs: Timing) -> dict[str, Any]:
  return {f'peer_{name}': theirs.spread(), f'times_the_peer_by_{name}': speedup(ours, theirs).spread()}


def _share(bytes_read: float, seconds: float) -> float | None:
  return inference.roofline_share(bytes_read, seconds, jax.devices()[0].device_kind)


def _profile(run: Run, settings: BenchmarkSettings) -> dict[str, Any]:
  """A trace of one run, and the operations of it that took longest; nothing where no trace is asked for.

  After everything else: on an H100 (jax 0.11.2) CUDA graphs failed to launch once a trace had been taken.
  """
  if not settings.profile:
    return {}
  with jax.profiler.trace(settings.profile):
    run()
  return {'longest_operations': longest_operations(settings.profile)}


def _memory() -> dict[str, Any]:
  """Before there is a peer: the peak counts whatever runs in the process."""
  return dict([peak_memory()])
