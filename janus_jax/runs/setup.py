"""Puts a training run together from its config: model, data, devices, callbacks. The loop is in training/loop.py."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from janus_jax.conversion.adapters import check_base
from janus_jax.conversion.checkpoint import Checkpoint
from janus_jax.conversion.load import load_params
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.data.examples import ExampleSpec
from janus_jax.data.mean_sizes import mean_sizes
from janus_jax.data.mixture import make_mixture
from janus_jax.data.packing import MeanSize, batch_shape
from janus_jax.data.pipeline import StreamOptions, batches
from janus_jax.data.prompts import Template
from janus_jax.data.shard_state import all_shards
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import InputError
from janus_jax.inference.requests import ImageSettings, LoadedJanus, check_tokenizer
from janus_jax.models.attention_choice import faster_kernel, platform_of, with_attention
from janus_jax.models.config import JanusConfig
from janus_jax.models.lora import LoraConfig, is_adapter
from janus_jax.models.siglip import POSITIONS
from janus_jax.runs import identity, summary, workdir_mirror, workdirs
from janus_jax.runs.callbacks import BenchmarkScores, HeldOutLoss, Sampler, ToyScores
from janus_jax.runs.config import TrainConfig, replaced, to_json
from janus_jax.runs.datasets import RunData, Samples, check_codes, check_data, open_data, read_world
from janus_jax.runs.loading import load_tokenizer, spread_over
from janus_jax.runs.rollouts import open_rollouts
from janus_jax.runs.start import Start, open_start, start_of
from janus_jax.sharding.layout import ActivationLayout
from janus_jax.sharding.mesh import MeshConfig, make_mesh, rows_split
from janus_jax.training import hosts, loop
from janus_jax.training.optimizer import check_optimizer
from janus_jax.training.rematerialisation import FLOAT32, with_remat
from janus_jax.training.run_config import check_batches
from janus_jax.training.stages import (
  TRAINABLE,
  Stage,
  check_carried,
  stage_models,
  trained_groups,
  trained_paths,
)
from janus_jax.training.state import Placement
from janus_jax.training.step import StepConfig
from janus_jax.training.training_run import Callback, Phase, RunFiles, TrainingRun

# Made data and indices of a run whose workdir is in a bucket. They outlive the run: the next start needs them again.
DATA_BESIDE_BUCKETS = '~/.cache/janus_jax/data'


def train(config: TrainConfig, workdir: str, force: bool = False) -> Any:
  """Trains until the last stage is over, or a signal asks to save and stop; returns the parameters.

  Args:
    config: the run's.
    workdir: local or gs://BUCKET/...; made if missing; a run in it is resumed.
    force: also where it was begun with another config.

  Raises:
    InputError: something in the config, the data or the workdir is wrong, or the workdir is in use.
    OSError: the workdir cannot be written.
  """
  # In this order: agree on the settings, own the workdir, read and check, agree on the data, begin, train. What is
  # wrong shows before anything is written: a workdir remembers its config.
  identity.check_same_run(config, workdir, force)
  with contextlib.ExitStack() as stack:
    with hosts.together():
      files = stack.enter_context(workdir_mirror.opened(workdir))
    return _train(config, files, force)


def _train(config: TrainConfig, files: workdir_mirror.LocalWorkdir, force: bool) -> Any:
  workdir, is_new = files.path, not hosts.from_first(workdirs.is_begun(files.path))
  stages, written = config.run_stages, to_json(config)
  if files.url != workdir and not config.data.directory:
    config = replaced(config, {'data.directory': DATA_BESIDE_BUCKETS})
  with hosts.together():
    if not is_new:
      workdirs.check_config(workdir, written, force)
    start = functools.cache(lambda: open_start(config))
    checkpoint = start() if is_new else None
    models = stage_models(checkpoint.config if checkpoint else workdirs.read_model(workdir), stages)
    placement = make_placement(config.mesh, models[0], config.lora)
    dtypes = frozen_dtypes(config, start_of(start())) if config.lora.rank else FLOAT32
    mesh, steps = placement.mesh, check_run(config, models, placement, dtypes)
    if config.lora.rank and not is_new:
      check_base(workdir, parameter_shapes(start().config), start().adapter.base_params, start().adapter.base)
    if is_new:
      check_codes(config, models, start)
  with contextlib.nullcontext(workdir) if checkpoint is None else workdirs.tokenizer_of(checkpoint) as directory:
    with hosts.together():
      words = load_tokenizer(directory)
      check_tokenizer(models[0], words[0])
    opened = functools.cache(lambda first: _open_phase(config, steps, first, words, files, start, is_new, mesh))
    trained = frozenset().union(*(trained_paths(stage, placement.params) for stage in stages))

    def begin() -> None:
      workdirs.begin(workdir, written, checkpoint)
      files.upload()

    def initial_params() -> Any:
      return load_params(start().resized(*models[0].sizes), placement.params)

    run = TrainingRun(
      config=config,
      steps=steps,
      placement=placement,
      files=RunFiles(
        workdir,
        files.url,
        {'config': written, 'versions': {'jax': jax.__version__}},
        begin=begin,
        before_save=files.upload,
      ),
      open_phase=lambda index: opened(models.index(models[index])),
      base=_base_paths(start(), trained, models) if config.lora.rank else frozenset(),
    )
    if not jax.process_index():
      shapes = parameter_shapes(models[0], config.lora)
      logging.info('%s', summary.start_summary(config, steps[0].compute, models, shapes, mesh.shape, files.url))
    with jax.set_mesh(mesh):
      params, is_complete = loop.train_run(run, initial_params)
    if is_complete and not jax.process_index():
      logging.info('%s', summary.end_summary(config, workdir, files.url, models[-1]))
    return params


def _open_phase(
  config: TrainConfig,
  steps: Sequence[StepConfig],
  first: int,
  words: tuple[Tokenizer, Template],
  files: workdir_mirror.LocalWorkdir,
  start: Callable[[], Checkpoint],
  is_new: bool,
  mesh: jax.sharding.Mesh,
) -> Phase:
  """The phase that begins with the stage of an index; `words` are tokenizer and template of the run."""
  step, stages = steps[first], config.run_stages
  model, own = step.model, [stage for stage, other in zip(stages, steps) if other.model == step.model]
  with hosts.first_alone() as is_first:
    if not is_first:
      files.download()
    logging.info('opening the data, and measuring its examples ...')
    data = open_data(config, model, files.path, start, config.sampling.num_images, is_new)
    spec = example_spec(config.sequence_length, model, *words, data.holds_codes)
    means = _stage_means(stages, own, data, spec, config.seed)
    if is_first:
      files.upload()  # Codes, which the others then do not compute.
  identity.check_same_data(config.data, data, start() if is_new else None)
  streams = rows_split(mesh)
  held_out = HeldOutLoss(data.held_out, spec, config, own[-1], step, streams, config.held_out_batches)
  if config.patience and not held_out.has_data:
    raise InputError(f'patience is {config.patience} and no data is held out: expected data.sources.NAME.held_out')
  callbacks = {'measuring held-out losses': Callback(held_out, config.eval_every)} if held_out.has_data else {}
  janus = LoadedJanus(model, {}, *words, spread=spread_over(mesh))
  callbacks |= _request_callbacks(config, janus, data.samples, files.path)
  if not jax.process_index() and (advice := summary.short_rows(stages, means, config.sequence_length)):
    logging.warning('%s', advice)
  return Phase(data.train, spec, means, callbacks, open_rollouts(config, own, step, janus, streams))


def _stage_means(
  stages: Sequence[Stage], own: Sequence[Stage], data: RunData, spec: ExampleSpec, seed: int
) -> list[MeanSize]:
  """The mean size of the examples of each stage: a row's of one that reads no data, or has none of its `own` here."""
  reading = [stage in own and stage.reads_data for stage in stages]
  found = iter(mean_sizes(data.train, [(s.ratio, s.sources) for s, reads in zip(stages, reading) if reads], spec, seed))
  return [next(found) if reads else MeanSize(spec.max_length, 0, 0) for reads in reading]


def _base_paths(start: Checkpoint, trained: frozenset[str], models: Sequence[JanusConfig]) -> frozenset[str]:
  """Paths of the parameters of a run with LoRA that stay as its base has them."""
  own = {path for path in start.params if path in trained or path in start.adapter.full or is_adapter(path)}
  if any(model.vision_encoder != start.config.vision_encoder for model in models):
    own.add(POSITIONS)
  return frozenset(start.params) - own


def _request_callbacks(config: TrainConfig, janus: LoadedJanus, samples: Samples, workdir: str) -> dict[str, Callback]:
  """Callbacks that generate and answer along the way, by what they do; `janus` is without parameters."""
  callbacks = {}
  sampling = {name: getattr(config.sampling, name) for name in workdirs.SAMPLING}
  images = ImageSettings(**sampling, seed=config.seed)
  requests = {'images': samples.prompts, 'answers': samples.questions} if config.sampling.num_images else {}
  if sampled := [name for name, found in requests.items() if found]:
    sampler = Sampler(janus, samples, images)
    callbacks[f'generating {" and ".join(sampled)}'] = Callback(sampler, config.eval_every)
  if config.evaluation.toy:
    scores = ToyScores(janus, read_world(config, janus.config), images, config.evaluation.toy)
    callbacks['scoring the toy world'] = Callback(scores, config.evaluation.every)
  if config.evaluation.benchmarks:
    scores = BenchmarkScores(janus, config.compute.dtype, config.evaluation, workdir)
    callbacks[f'scoring {", ".join(config.evaluation.benchmarks)}'] = Callback(scores, config.evaluation.every)
  return callbacks


def example_spec(
  sequence_length: int, model: JanusConfig, tokenizer: Tokenizer, template: Template, holds_codes: bool
) -> ExampleSpec:
  """Settings by which records become examples; `holds_codes` says whether images to generate are codes.

  Raises:
    InputError: a tokenizer with other ids than the model's, rows longer than the model's positions.
  """
  check_tokenizer(model, tokenizer)
  check_length(sequence_length, model)
  return ExampleSpec(
    tokenizer=tokenizer,
    template=template,
    num_image_tokens=model.num_image_tokens,
    num_codes=model.vq.num_tokens,
    image_size=model.image_size,
    generation_size=None if holds_codes else model.vq.image_size,
    max_length=sequence_length,
    num_code_ids=model.vq.codebook_size,
  )


def open_examples(config: TrainConfig, start: Checkpoint, directory: str) -> tuple[RunData, ExampleSpec]:
  """Data and `example_spec` of a run that would begin with a checkpoint; indices of files go to a directory."""
  data = open_data(config, start.config, directory, lambda: start, 0)
  with workdirs.tokenizer_of(start) as scratch:
    return data, example_spec(config.sequence_length, start.config, *load_tokenizer(scratch), data.holds_codes)


def stage_batches(
  config: TrainConfig, stage: Stage, mean: MeanSize, data: RunData, spec: ExampleSpec, streams: int = 1
) -> Iterator[dict[str, np.ndarray]]:
  """The batches of a stage, by examples of a mean size, from its first one on."""
  rooms = stage.images_per_row, stage.generation_images_per_row
  shape = batch_shape(stage.batch_size // streams, config.sequence_length, mean, *rooms)
  options = StreamOptions(config.seed, config.guidance_dropout, shards=all_shards(streams))
  return batches(data.train, make_mixture(stage.ratio, stage.sources), spec, shape, options)


def make_placement(
  sizes: MeshConfig, model: JanusConfig, lora: LoraConfig, devices: Sequence[jax.Device] | None = None
) -> Placement:
  """Mesh (over all devices by default) and shardings of a model. Raises InputError for sizes that do not fit."""
  return Placement.of(make_mesh(dataclasses.asdict(sizes), devices), parameter_shapes(model, lora))


def frozen_dtypes(config: TrainConfig, start: Start) -> Mapping[str, str]:
  """Path -> dtype that frozen parameters are counted in: with LoRA, where they take most of the memory, their own."""
  return start.dtypes if config.lora.rank else FLOAT32


def check_run(
  config: TrainConfig, models: Sequence[JanusConfig], placement: Placement, dtypes: Mapping[str, str] = FLOAT32
) -> list[StepConfig]:
  """Returns `read_step` of each stage, whose architectures are `models`. Raises InputError for all that is wrong with a
  run and shows without its data.
  """
  stages, steps = config.run_stages, {}
  for model in dict.fromkeys(models):
    own = [stage for stage, other in zip(stages, models) if other == model]
    steps[model] = read_step(config, model, placement, own, dtypes)
    check_data(config, model)
    check_trainable(own, model, placement.params)
    check_room(own, model, config.sequence_length)
  check_batches(stages, placement.mesh, config, config.streams)
  check_carried(stages, placement.params)
  return [steps[model] for model in models]


def check_trainable(stages: Iterable[Stage], model: JanusConfig, paths: Collection[str]) -> None:
  """Raises InputError for a pattern that matches nothing, and for parts that would train and never can."""
  for stage in stages:
    where, trained = f'stages.{stage.name}.trainable has', trained_groups(trained_paths(stage, paths))
    if 'vq' in trained:  # By a regular expression: `parse_config` refuses the name.
      raise InputError(f'{where} {stage.trainable}: expected parameters of {", ".join(TRAINABLE)}: the VQ is frozen')
    unused = sorted(trained & {'vision_encoder', 'vision_aligner'})
    if model.shared_encoder and unused:
      raise InputError(f'{where} {" and ".join(unused)}: expected neither with shared_encoder')


def check_room(stages: Iterable[Stage], model: JanusConfig, sequence_length: int) -> None:
  """Raises InputError where a row is too short for an image that a stage trains on."""
  # An image stands between two marks and is asked about; one to generate has a prompt before it.
  least = {'understand': model.num_image_tokens + 3, 'generate': model.vq.num_tokens + 1}
  for stage in stages:
    for part, (what, tokens) in zip(stage.ratio[::2], least.items()):
      if part and sequence_length < tokens:
        expected = f'expected at least {tokens}, as an image to {what} takes in stages.{stage.name}'
        raise InputError(f'sequence_length is {sequence_length}: {expected}')


def check_length(sequence_length: int, model: JanusConfig) -> None:
  """Raises InputError where a row has more positions than the model."""
  positions = model.language_model.max_positions
  if sequence_length > positions:
    raise InputError(
      f'sequence_length is {sequence_length}: expected at most {positions}, the positions of the model: '
      f'--config.sequence_length={positions}'
    )


def read_step(
  config: TrainConfig,
  model: JanusConfig,
  placement: Placement,
  stages: Sequence[Stage] | None = None,
  dtypes: Mapping[str, str] = FLOAT32,
) -> StepConfig:
  """The settings that the step is compiled for, so that `stages` (default: all of the run) fit the memory.

  `dtypes` are those that parameters are stored in before they train, by path; float32 where nothing is said.

  Raises:
    InputError: rules that match nothing, a kernel that cannot be used, rows longer than the model's positions.
  """
  check_length(config.sequence_length, model)
  shapes = parameter_shapes(model, config.lora)
  check_optimizer(config.optimizer, shapes)
  mesh = placement.mesh
  platform, layout = platform_of(mesh.devices.flat[0]), ActivationLayout(mesh)
  compute = dataclasses.replace(config.compute, layout=layout)
  compute = with_attention(compute, model, platform, config.sequence_length, mesh.shape['context'])
  if found := faster_kernel(platform, compute.attention):
    logging.warning('%s', found)
  step = StepConfig(
    model,
    tuple(sorted(placement.params.items(), key=lambda item: item[0])),
    compute=compute,
    optimizer=config.optimizer,
    accumulation=config.accumulation,
    loss_chunk=config.loss_chunk,
  )
  stages = config.run_stages if stages is None else stages
  return with_remat(step, stages, placement, shapes, config.sequence_length, dtypes)
