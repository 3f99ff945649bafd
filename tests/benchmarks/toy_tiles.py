"""Whether tiles answer questions about objects that are too small for one image of the size that the model understands.

    python tests/benchmarks/toy_tiles.py --checkpoint=quickstart-output/run --out=DIR [--seeds=0,1,2] [--steps=2000]

Scenes twice as wide as the model's images, their objects as large in pixels as it knows them: in the whole, resized,
they are half as wide. From one checkpoint of `configs/tiny.py` two models go on, on understanding alone and for as many
updates of as many positions: one reads the whole, the other the whole and four tiles (and so fewer scenes an update).
Both are asked about the same unseen scenes. DIR/table.md has percent right over all seeds, and the least and most of a
seed.
"""

import argparse
import base64
import io
import itertools
import json
import os
import pathlib

import numpy as np
from PIL import Image

import janus_jax
from janus_jax.runs import setup
from janus_jax.runs.config import parse_config, set_stages
from janus_jax.runs.recipes import read_recipe
from janus_jax.toy import questions, scenes, shapes, test_set
from janus_jax.toy.scores import CONTENTS

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
VARIANTS = {'the whole': 1, 'the whole and 4 tiles': 4}
SEQUENCE = 160  # An image of 24 px has 9 patches and two marks, and a row three to ten scenes.
TRAINING_SCENES = 8000


def write_scenes(path: pathlib.Path, world: shapes.World, count: int) -> None:
  """Training scenes with conversations about them, as a JSON object a line."""
  rng = np.random.default_rng(0)
  with path.open('w') as file:
    for index in range(count):
      scene = scenes.scene_at(world, 'train', index)
      Image.fromarray(shapes.render_scene(world, [scene])[0]).save(png := io.BytesIO(), 'PNG')
      image = base64.b64encode(png.getvalue()).decode()
      said = questions.sample_turns(questions.ask(scene), rng, world.questions)
      roles = itertools.cycle(('human', 'gpt'))
      turns = [{'from': role, 'value': text} for role, text in zip(roles, [f'<image>\n{said[0]}', *said[1:]])]
      file.write(json.dumps({'image': f'data:image/png;base64,{image}', 'conversations': turns}) + '\n')


def recipe(checkpoint: str, data: pathlib.Path, tiles: int, steps: int, seed: int):
  """Stage III of configs/tiny.py on these questions alone."""
  config = read_recipe(str(CONFIGS / 'tiny.py'))
  config.init_from, config.seed, config.sequence_length, config.loss_chunk = checkpoint, seed, SEQUENCE, SEQUENCE
  config.sampling.num_images = 0
  config.data.name, config.data.precompute_codes = 'files', False
  config.data.sources = {
    'scenes': {
      'kind': 'understanding',
      'format': 'json_lines',
      'path': str(data),
      'image': 'image',
      'conversations': 'conversations',
      'tiles': tiles,
    }
  }
  stage = config.stages.stage3.to_dict()
  stage |= {
    'steps': steps,
    'ratio': (1, 0, 0),
    'sources': {'understanding': {'scenes': 1}},
    'expected_tokens': (110 if tiles > 1 else 45, 8, 48),
  }
  set_stages(config, {'stage3': stage})
  return parse_config(config)


def scores(checkpoint: str, tiles: int, cases: list[test_set.QuestionCase]) -> dict[str, float]:
  """Percent of the questions that are right, by what they are about."""
  janus = janus_jax.load(checkpoint, 'float32')
  shown = [[Image.fromarray(case.image)] for case in cases]
  answers = janus_jax.answer(janus, shown, [case.question for case in cases], tiles=tiles, max_new_tokens=16)
  right: dict[str, list[bool]] = {}
  for case, said in zip(cases, answers, strict=True):
    right.setdefault(f'{CONTENTS[case.content]}: {case.kind}', []).append(case.is_right(said.text))
  return {name: 100 * float(np.mean(found)) for name, found in right.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--out', required=True)
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--steps', type=int, default=2000)
  parser.add_argument('--questions', type=int, default=200, help='Of each kind.')
  options = parser.parse_args()
  out, checkpoint = pathlib.Path(options.out), os.path.abspath(options.checkpoint)
  out.mkdir(parents=True, exist_ok=True)
  size = 2 * janus_jax.load(checkpoint).config.image_size
  world = shapes.World(size=size, grid=size // 4)
  data = out / 'scenes.jsonl'
  if not data.exists():
    write_scenes(data, world, TRAINING_SCENES)
  cases = [
    case
    for case in test_set.build_questions(world, options.questions)
    if case.group == 'new_scene' and case.content != 'digit' and case.kind != 'describe'
  ]
  found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
  for seed, (name, tiles) in itertools.product(map(int, options.seeds.split(',')), VARIANTS.items()):
    workdir = out / f'tiles{tiles}_seed{seed}'
    setup.train(recipe(checkpoint, data, tiles, options.steps, seed), str(workdir))
    found[name].append(scores(str(workdir), tiles, cases))
    print(seed, name, json.dumps(found[name][-1]), flush=True)
  lines = [f'| questions about | {" | ".join(VARIANTS)} |', '|---|---|---|']
  for kind in found[next(iter(VARIANTS))][0]:
    columns = [[one[kind] for one in found[name]] for name in VARIANTS]
    lines.append(
      f'| {kind} | ' + ' | '.join(f'{np.mean(v):.0f} ({min(v):.0f} to {max(v):.0f})' for v in columns) + ' |'
    )
  (out / 'table.md').write_text('\n'.join(lines) + '\n')
  print('\n'.join(lines))


if __name__ == '__main__':
  main()
