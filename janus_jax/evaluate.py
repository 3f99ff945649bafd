"""Scores a checkpoint on benchmarks, or on the toy world.

    python -m janus_jax.evaluate --checkpoint=PATH --benchmarks=pope,mme,geneval --data=DIR --out=DIR
                                 [--prompt=trained|vlmevalkit|lmms-eval --limit=N --shard=i/n --dtype=bfloat16]
                                 [--max_new_tokens=512 --num_images=4 --cfg_weight=5 --mesh=... --json]

answers the questions of pope, mme, mmbench, seedbench, gqa, mmmu and mmvet and generates the images of geneval and dpg,
from the datasets' files below --data (evaluation/questions.py), goes on where it was stopped, writes answers as
VLMEvalKit and the authors' scorers read them, scores what needs no judge under every rule, and puts the default rule's
figures beside the report's (scores.md, scores.html).

    python -m janus_jax.evaluate --checkpoint=PATH [--out=DIR --questions_per_kind=40 --images_per_group=20
                                 --cfg_weight=1.5 --temperature=0.8 --top_k=0 --seed=0 --json]
                                 [--weights=int8 --cache_dtype=int8]

asks questions about images of the toy world and for images that training never had, of a model that was trained on it.
PATH is a training workdir (its newest checkpoint is scored; WORKDIR@ema: its averages) or a checkpoint of any layout.
Every answer and every generated image is right or wrong; percentages come with 95 % intervals that count prompts and
images, not cases (reporting/intervals.py). DIR gets scores.txt (what is printed), scores.json (all scores and all
cases), generations.png (every generated image, framed green where it is right), images.npz.
"""

import json
import logging
import os
import time

from absl import flags

from janus_jax import cli
from janus_jax.conversion.buckets import absolute
from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.conversion.export import DTYPES
from janus_jax.evaluation.prompt_styles import STYLES
from janus_jax.evaluation.reference import COLUMNS
from janus_jax.evaluation.runner import Shard
from janus_jax.evaluation.scoreboard import scoreboard_to_markdown
from janus_jax.evaluation.scores import PRINTED
from janus_jax.inference import image_files
from janus_jax.inference.requests import AnswerSettings, ImageSettings, check_tokenizer
from janus_jax.inference.windows import check_window
from janus_jax.runs import loading, workdirs
from janus_jax.runs.config import DataConfig
from janus_jax.runs.evaluating import EvaluationSettings, evaluate
from janus_jax.runs.value_checks import SEED, Integer
from janus_jax.sharding.mesh import parse_mesh
from janus_jax.toy import scoring
from janus_jax.toy.dataset import world_for
from janus_jax.toy.test_set import IMAGES_PER_GROUP, QUESTIONS_PER_KIND

_CHECKPOINT = cli.define_checkpoint()
_OUT = cli.define_path('out', None, 'Directory for scores; of the toy world: replaced.')
_BENCHMARKS = flags.DEFINE_list('benchmarks', [], f'Any of {", ".join(COLUMNS)}; none: the toy world.')
_DATA = cli.define_path('data', None, "Directory with the benchmarks' files.")
_PROMPT = flags.DEFINE_enum('prompt', 'trained', list(STYLES), "Whose prompt: the checkpoint's own, or a harness's.")
_LIMIT = cli.define_number('limit', None, 'Questions or prompts of each benchmark, from the first on.', Integer(1))
_SHARD = flags.DEFINE_string('shard', '0/1', 'Part i/n of each benchmark; the last part to end scores all.')
_DTYPE = flags.DEFINE_enum('dtype', 'bfloat16', list(DTYPES), 'What to compute benchmarks in.')
_MESH = flags.DEFINE_string('mesh', None, 'Spread the parameters over devices, e.g. tensor=2,fsdp=-1.')
(_NUM_IMAGES,) = cli.define_settings(ImageSettings, 'num_images')
_MAX_NEW_TOKENS, _TILES, _BATCH_SIZE = cli.define_settings(AnswerSettings, 'max_new_tokens', 'tiles', 'batch_size')
_QUESTIONS = cli.define_number(
  'questions_per_kind', QUESTIONS_PER_KIND, 'Questions of each kind, content and group.', Integer(1)
)
_IMAGES = cli.define_number('images_per_group', IMAGES_PER_GROUP, 'Images of each skill and group.', Integer(1))
_CFG_WEIGHT, _TEMPERATURE, _TOP_K = cli.define_settings(ImageSettings, *scoring.SAMPLING, stored=scoring.SAMPLING)
_SEED = cli.define_number('seed', 0, 'Seed of the choice of questions and prompts, and of generation.', SEED)
_WEIGHTS, _CACHE_DTYPE, _WINDOW = cli.define_settings(ImageSettings, 'weights', 'cache_dtype', 'window')
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object on stdout in place of the tables.')


def _settings(sampling: dict) -> dict:
  """Settings that the scores depend on, apart from the checkpoint."""
  given = {'cfg_weight': _CFG_WEIGHT.value, 'temperature': _TEMPERATURE.value, 'top_k': _TOP_K.value}
  return {
    'questions_per_kind': _QUESTIONS.value,
    'images_per_group': _IMAGES.value,
    **{name: sampling[name] if value is None else value for name, value in given.items()},
    'seed': _SEED.value,
    'weights': _WEIGHTS.value,
    'cache_dtype': _CACHE_DTYPE.value or 'float32',
  }


def _benchmarks() -> None:
  if not _DATA.value or not _OUT.value:
    raise flags.Error('--benchmarks needs --data and --out')
  given = cli.values(_SEED, _BATCH_SIZE, _WEIGHTS, _CACHE_DTYPE)
  settings = EvaluationSettings(
    benchmarks=_BENCHMARKS.value,
    data=_DATA.value,
    out=_OUT.value,
    prompt=_PROMPT.value,
    limit=_LIMIT.value,
    shard=Shard(*cli.parse_shard(_SHARD.value)),
    dtype=_DTYPE.value,
    answers=AnswerSettings(**given, **cli.values(_MAX_NEW_TOKENS, _TILES)),
    images=ImageSettings(**given, **cli.values(_NUM_IMAGES, _WINDOW, _CFG_WEIGHT, _TEMPERATURE, _TOP_K)),
  )
  scores = evaluate(_CHECKPOINT.value, settings, parse_mesh(_MESH.value))
  if _JSON.value:
    for score in scores:
      print(json.dumps({name: score[name] for name in PRINTED if name in score}))
  elif scores:
    print(scoreboard_to_markdown(os.path.basename(absolute(_CHECKPOINT.value)), scores), end='')


def main() -> None:
  if _BENCHMARKS.value:
    _benchmarks()
  else:
    _toy_world()


def _toy_world() -> None:
  checkpoint = _CHECKPOINT.value
  # Opening is quick; whatever is wrong with the arguments shows before the weights are read.
  config = open_checkpoint(checkpoint).config
  data = workdirs.read_config(checkpoint).get('data', {})
  settings = _settings(workdirs.read_sampling(checkpoint, scoring.SAMPLING))
  world = world_for(config, 0, **DataConfig(**data).toy)
  check_tokenizer(config, loading.load_tokenizer(checkpoint)[0])
  check_window(config.vq.num_tokens, _WINDOW.value)
  if _OUT.value:
    image_files.prepare_directory(_OUT.value)
  start = time.perf_counter()
  scored = scoring.score(loading.load(checkpoint, 'float32'), world, **settings, window=_WINDOW.value)
  seconds = time.perf_counter() - start
  found = {'checkpoint': absolute(checkpoint), 'settings': settings, **scoring.scores_to_dict(scored)}
  found['seconds']['all'] = seconds
  if _OUT.value:
    scoring.write_scores(_OUT.value, found, scored)
  summary = {key: value for key, value in found.items() if not key.endswith('_cases')}
  print(json.dumps(summary) if _JSON.value else scored.tables())
  written = f', written to {_OUT.value}' if _OUT.value else ''
  logging.info('%d questions and %d images in %.0f s%s', len(scored.questions), len(scored.images), seconds, written)


if __name__ == '__main__':
  cli.run(main)
