"""The toy model learns a colour from 40 pictures: what it then knows of it, and what is left of everything else.

    python tests/benchmarks/new_colour.py --checkpoint=quickstart-output/run --out=DIR

Tunes by LoRA and in full, on the new pictures and questions alone and mixed with old ones, as `configs/finetune/` does.
The colour is maroon, which the toy world does not have and the model's frozen image tokenizer can show (96 of 96
renderings are right after it; pink, 0 of 96). Scores: images of maroon
objects that are right (every shape and size), answers that name the colour of maroon objects, and the toy world's own
test (`janus_jax.evaluate`), on which nothing maroon occurs. DIR/table.md has the table.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image

import janus_jax
from janus_jax.data.images import save_png
from janus_jax.runs import setup
from janus_jax.runs.config import parse_config
from janus_jax.runs.finetuning import lora_config
from janus_jax.toy import captions, dataset, digits, questions, scenes, shape_judge, shapes
from janus_jax.toy.shapes import Object, Scene, World
from janus_jax.training.metrics import read_metrics

MAROON = (120, 20, 40)
PICTURES, HELD_OUT, OLD = 40, 8, 300
IMAGES = 96  # Of maroon objects, to score: twelve of each shape and size.
VARIANTS = {
  'LoRA': {'lora': True, 'mixed': False},
  'LoRA, mixed': {'lora': True, 'mixed': True},
  'all parameters': {'lora': False, 'mixed': False},
  'all parameters, mixed': {'lora': False, 'mixed': True},
}
PARTS = ('vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head', 'language_model', 'vision_encoder')


def maroon_scenes(world: World, seed: int, count: int) -> list[Scene]:
  """One maroon object each, of every shape and size in turn."""
  rng, kinds = np.random.default_rng(seed), itertools.cycle(itertools.product(world.shapes, world.sizes))
  places = rng.choice(list(world.positions), (count, 2))
  return [Scene((Object(s, 'maroon', z, int(x), int(y)),)) for (s, z), (x, y) in zip(kinds, places)]


def write_data(folder: pathlib.Path, images: np.ndarray, prompts: list[str], turns: list[list[str]]) -> None:
  """`pictures/` and `questions.jsonl`, as configs/finetune/mixed.py reads them."""
  (folder / 'pictures').mkdir(parents=True)
  lines = []
  for i, (image, prompt, said) in enumerate(zip(images, prompts, turns)):
    save_png(str(folder / 'pictures' / f'{i:04}.png'), image, {})
    (folder / 'pictures' / f'{i:04}.txt').write_text(prompt)
    roles = itertools.cycle(('human', 'gpt'))
    spoken = [{'from': role, 'value': text} for role, text in zip(roles, [f'<image>\n{said[0]}', *said[1:]])]
    lines.append(json.dumps({'image': f'pictures/{i:04}.png', 'conversations': spoken}))
  (folder / 'questions.jsonl').write_text('\n'.join(lines))


def write_scenes(folder: pathlib.Path, world: World, chosen: list[Scene], with_digits: int = 0) -> None:
  rng = np.random.default_rng(0)
  images = [*shapes.render_scene(world, chosen)]
  phrases = [
    descriptions[rng.integers(len(descriptions))].text for descriptions in map(captions.scene_descriptions, chosen)
  ]
  asked = [questions.sample_turns(questions.ask(scene), rng, 3) for scene in chosen]
  if with_digits:
    scans, labels = digits.load_digits(world.size, 'train')
    picked = rng.choice(len(labels), with_digits, replace=False)
    images += [*scans[picked]]
    phrases += [digits.phrase(int(label)) for label in labels[picked]]
    asked += [questions.sample_turns(questions.ask_digit(int(label)), rng, 3) for label in labels[picked]]
  prompts = [captions.sample_prompt(phrase, rng) for phrase in phrases]
  write_data(folder, np.stack(images), prompts, asked)


def recipe(checkpoint: str, data: pathlib.Path, lora: bool, mixed: bool):
  """configs/finetune/mixed.py for the toy model."""
  sources = {}
  for age in ('new', 'old') if mixed else ('new',):
    shared = {'held_out': HELD_OUT}
    folder = data / age
    sources[f'{age}_pictures'] = {**shared, 'kind': 'generation', 'format': 'folder', 'path': str(folder / 'pictures')}
    sources[f'{age}_questions'] = {
      **shared,
      'kind': 'understanding',
      'format': 'json_lines',
      'path': str(folder / 'questions.jsonl'),
      'image_folder': str(folder),
      'conversations': 'conversations',
    }
  config = lora_config(sources, (1, 0, 1), '1b_16gb')
  stage = config.stages.finetune
  # A model of a million parameters: short rows, the rate of its own Stage III, ten times as much for the factors.
  config.init_from, config.sequence_length, config.accumulation, config.workers = checkpoint, 104, 1, 0
  config.compute.dtype, config.loss_chunk = 'float32', 104
  config.sampling.update({'num_images': 0, 'cfg_weight': 1.5, 'temperature': 0.6})
  config.optimizer.b2, stage.batch_size = 0.98, 8
  stage.learning_rate, stage.lora.rank = (3e-3, 8) if lora else (3e-4, 0)
  stage.trainable = () if lora else PARTS
  return parse_config(config)


def maroon_scores(checkpoint: str, world: World) -> tuple[float, float]:
  """Percent of images of maroon objects that are right, and of questions about the colour of one."""
  janus = janus_jax.load(checkpoint, 'float32')
  asked = maroon_scenes(world, 2, IMAGES)
  wanted = [captions.scene_descriptions(scene)[-1] for scene in asked]
  how = {'num_images': 1, 'cfg_weight': 1.5, 'temperature': 0.6, 'seed': 0, 'batch_size': IMAGES}
  images = janus_jax.generate_images(janus, [one.text for one in wanted], **how)
  right = [shape_judge.judge_image(world, one, found[0].pixels).right for one, found in zip(wanted, images)]
  shown = [[Image.fromarray(image)] for image in shapes.render_scene(world, asked)]
  answers = janus_jax.answer(janus, shown, ['What colour is the object?'] * IMAGES, max_new_tokens=8)
  named = [answer.text.strip() == 'maroon' for answer in answers]
  return 100 * float(np.mean(right)), 100 * float(np.mean(named))


def old_scores(checkpoint: str, directory: pathlib.Path) -> tuple[float, float]:
  """Percent of the toy world's questions and images that are right, of combinations that training has seen."""
  command = [sys.executable, '-m', 'janus_jax.evaluate', f'--checkpoint={checkpoint}', f'--out={directory}']
  subprocess.run(command, check=True)
  found = json.loads((directory / 'scores.json').read_text())
  groups = {'questions': ('new_scene',), 'generations': ('seen', 'new_phrasing')}

  def percent(kind: str) -> float:
    kept = [score for score in found[kind] if score['group'] in groups[kind]]
    return 100 * sum(score['right'] for score in kept) / sum(score['total'] for score in kept)

  return percent('questions'), percent('generations')


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--out', required=True)
  args = parser.parse_args()
  out, checkpoint = pathlib.Path(args.out), os.path.abspath(args.checkpoint)
  world = dataset.world_for(janus_jax.load(checkpoint).config, 0)
  if not (out / 'data').exists():
    old = [scenes.scene_at(world, 'train', i) for i in range(OLD)]
    write_scenes(out / 'data' / 'old', world, old, with_digits=OLD // 3)
  # From here on, and in this process only. A world has the first colours: maroon takes the place of the others.
  for name in list(shapes.COLOURS)[world.num_colours :]:
    del shapes.COLOURS[name]
  shapes.COLOURS['maroon'] = MAROON
  world = dataclasses.replace(world, num_colours=world.num_colours + 1)
  if not (out / 'data' / 'new').exists():
    write_scenes(out / 'data' / 'new', world, maroon_scenes(world, 1, PICTURES + HELD_OUT))
  rows = [('before', '', 0, '', checkpoint)]
  for name, how in VARIANTS.items():
    workdir = out / name.replace(', ', '_').replace(' ', '_')
    setup.train(recipe(checkpoint, out / 'data', **how), str(workdir))
    metrics = read_metrics(str(workdir / 'metrics.jsonl'))
    losses = {
      line['step']: np.mean([v for k, v in line.items() if k.startswith('held_out/')])
      for line in metrics
      if any(key.startswith('held_out/') for key in line)
    }
    best = min(losses, key=losses.get)
    size = sum(file.stat().st_size for file in (workdir / 'checkpoints' / str(best)).rglob('*') if file.is_file())
    rows.append((name, f'{size / 1e6:.1f}', best, f'{max(line["step"] for line in metrics)}', str(workdir)))
  lines = ['| tuned | best step, of | checkpoint, MB | maroon drawn | maroon named | old questions | old images |']
  lines.append('|---|---|---|---|---|---|---|')
  for name, size, best, last, path in rows:
    new = maroon_scores(path, world)
    kept = old_scores(path, out / 'scores' / pathlib.Path(path).name)
    scores = ' | '.join(f'{value:.0f} %' for value in (*new, *kept))
    lines.append(f'| {name} | {f"{best}, {last}" if last else ""} | {size} | {scores} |')
    print(lines[-1], flush=True)
  (out / 'table.md').write_text('\n'.join(lines) + '\n')
  print('\n'.join(lines))


if __name__ == '__main__':
  main()
