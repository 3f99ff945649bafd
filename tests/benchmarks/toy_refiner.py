"""Whether a refiner of the toy world's images keeps what they show: the judge's score before and after.

    python tests/benchmarks/toy_refiner.py --checkpoint=DIR --refiner=DIR --config=configs/refiner.py [--scenes=300]

Unseen scenes of each layout are encoded and decoded by the VQ. The judge reads the decoded images as they are, enlarged
by a bicubic filter, and refined, with the originals beside them, each in the world of its size. Below: PSNR, gradient
energy and Fréchet distance of the same images, as `pretrain` measures them on others; and the time of an image. With
--prompts=N the checkpoint, a run, generates an image for each of N prompts of each skill in new phrasings, and the
judge reads those.
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

import janus_jax
from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.evaluation import reconstruction
from janus_jax.inference.refining import ImageRefiner, noise_key
from janus_jax.runs import loading, refining
from janus_jax.runs.config import parse_config
from janus_jax.runs.recipes import read_recipe
from janus_jax.toy import captions, dataset, scenes, shape_judge, shapes, test_set

BATCH = 20


def refine_all(refiner: ImageRefiner, images: np.ndarray, codes: np.ndarray) -> np.ndarray:
  """uint8[N, size, size, 3] and int32[N, P] -> uint8[N, scale size, scale size, 3]."""
  found = []
  for start in range(0, len(images), BATCH):
    chunk = slice(start, start + BATCH)
    keys = jnp.stack([noise_key(0, index) for index in range(len(images))[chunk]])
    found.append(refiner.refine(images[chunk], codes[chunk], keys))
  return np.concatenate(found)


def score(world: shapes.World, shown: list[shapes.Scene], images: np.ndarray) -> float:
  """Percentage of the images that show what all can be said of their scenes."""
  described = [captions.dense_descriptions(scene)[0] for scene in shown]
  right = [shape_judge.judge_image(world, text, image).right for text, image in zip(described, images)]
  return 100 * float(np.mean(right))


def generated_scores(path: str, refiner: ImageRefiner, world: shapes.World, count: int) -> None:
  """Prints the percentage of images right, by skill: as generated, enlarged, refined."""
  prompts = [case for case in test_set.build_prompts(world, count) if case.group == 'new_phrasing']
  prompts = [case for case in prompts if case.skill != 'digit']
  found = janus_jax.generate_images(
    janus_jax.load(path, 'float32'), [case.prompt for case in prompts], num_images=1, batch_size=BATCH
  )
  images, codes = (np.stack([getattr(one, name) for (one,) in found]) for name in ('pixels', 'codes'))
  scale = refiner.config.scale
  larger = dataclasses.replace(world, size=scale * world.size)
  shown = {
    'as generated': (world, images),
    'bicubic': (larger, refining.enlarged(images, scale)),
    'refined': (larger, refine_all(refiner, images, codes)),
  }
  print(f'\n{"generated, right, %":24}' + ''.join(f'{skill:>16}' for skill in test_set.SKILLS[:-1]))
  for name, (sized, pixels) in shown.items():
    right: dict[str, list[bool]] = {}
    for case, image in zip(prompts, pixels, strict=True):
      right.setdefault(case.skill, []).append(shape_judge.judge_image(sized, case.expected, image).right)
    print(f'{name:24}' + ''.join(f'{100 * np.mean(right[skill]):16.1f}' for skill in test_set.SKILLS[:-1]))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--refiner', required=True)
  parser.add_argument('--config', required=True)
  parser.add_argument('--scenes', type=int, default=300)
  parser.add_argument('--flow_steps', type=int, nargs='+', help='Others than the refiner says.')
  parser.add_argument('--prompts', type=int, default=0, help='Of each skill, for images that the checkpoint generates.')
  options = parser.parse_args()
  checkpoint = open_checkpoint(options.checkpoint)
  size = checkpoint.config.vq.image_size
  refiner = loading.load_refiner(options.refiner, checkpoint, (size, size))
  scale = refiner.config.scale
  world = dataset.world_for(checkpoint.config, 0, **parse_config(read_recipe(options.config)).data.toy)
  larger = dataclasses.replace(world, size=scale * world.size)
  read, features = refining.vq_reader(checkpoint), refining.feature_reader(checkpoint)
  of_all: dict[str, list[np.ndarray]] = {}
  print(f'{"judged right, %":24}' + ''.join(f'{name:>10}' for name in scenes.LAYOUTS))
  scores: dict[str, list[float]] = {}
  for layout in scenes.LAYOUTS:
    shown = [scenes.scene_at(world, 'test', index, layout) for index in range(options.scenes)]
    small, large = (shapes.render_scene(sized, shown) for sized in (world, larger))
    codes, decoded = read(small)
    found = {'bicubic': refining.enlarged(decoded, scale)}
    for steps in options.flow_steps or [refiner.config.flow_steps]:
      other = dataclasses.replace(refiner, config=dataclasses.replace(refiner.config, flow_steps=steps))
      found[f'refined, {steps} steps'] = refine_all(other, decoded, codes)
    for name, sized, images in (('original, small', world, small), ('decoded, small', world, decoded)):
      scores.setdefault(name, []).append(score(sized, shown, images))
    for name, images in {'original': large, **found}.items():
      scores.setdefault(name, []).append(score(larger, shown, images))
      of_all.setdefault(name, []).append(images)
  for name, values in scores.items():
    print(f'{name:24}' + ''.join(f'{value:10.1f}' for value in values))
  originals = np.concatenate(of_all.pop('original'))
  reference, energy = features(originals), reconstruction.gradient_energy(originals)
  print(f'\n{len(originals)} images of {larger.size} px{"":6}{"PSNR":>10}{"energy":>10}{"Fréchet":>10}')
  for name, parts in of_all.items():
    images = np.concatenate(parts)
    psnr, ratio = reconstruction.psnr(images, originals), reconstruction.gradient_energy(images) / energy
    print(f'{name:24}{psnr:10.2f}{ratio:10.3f}{reconstruction.frechet_distance(features(images), reference):10.4f}')
  if options.prompts:
    generated_scores(options.checkpoint, refiner, world, options.prompts)
  refiner.refine(decoded[:1], codes[:1], noise_key(0, 0)[None])
  began = time.perf_counter()
  for index in range(10):
    jax.block_until_ready(refiner.refine(decoded[:1], codes[:1], noise_key(0, index)[None]))
  print(f'\none image, {refiner.config.flow_steps} steps: {100 * (time.perf_counter() - began):.0f} ms')


if __name__ == '__main__':
  main()
