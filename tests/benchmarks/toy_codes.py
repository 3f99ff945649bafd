"""Whether a toy tokenizer gives a look one code: what is left over is noise that a decoder can only guess.

    python tests/benchmarks/toy_codes.py --checkpoint=DIR --config=configs/small.py [--scenes=2000]

A look is the pixels of a cell. Of unseen scenes, cell by cell: how often a look has its usual code, and the entropy of
codes given the look, in nats per code of an image; of empty cells and of others. Last, the entropy of looks given the
code, which is what a code leaves to its neighbours.
"""

import argparse
import collections
from collections.abc import Iterable

import jax
import numpy as np

from janus_jax.models.config import ComputeConfig
from janus_jax.models.janus import normalize_pixels
from janus_jax.models.vq import VQ
from janus_jax.runs import loading
from janus_jax.runs.config import parse_config
from janus_jax.runs.recipes import read_recipe
from janus_jax.toy import dataset, scenes, shapes

Counts = dict[int, collections.Counter]


def count_pairs(first: np.ndarray, second: np.ndarray) -> Counts:
  """How often each value of the second stands beside each of the first; both int[n]."""
  found: Counts = collections.defaultdict(collections.Counter)
  for one, other in zip(first.tolist(), second.tolist()):
    found[one][other] += 1
  return found


def entropy(counters: Iterable[collections.Counter]) -> float:
  """Nats of all that is counted, within each counter."""
  total = 0.0
  for counter in counters:
    counts = np.array(list(counter.values()))
    total -= float((counts * np.log(counts / counts.sum())).sum())
  return total


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--config', required=True)
  parser.add_argument('--scenes', type=int, default=2000)
  options = parser.parse_args()
  janus = loading.load(options.checkpoint, 'float32')
  world = dataset.world_for(janus.config, 0, **parse_config(read_recipe(options.config)).data.toy)
  images = shapes.render_scene(world, [scenes.scene_at(world, 'test', index) for index in range(options.scenes)])
  vq, grid = VQ(janus.config.vq, ComputeConfig()), janus.config.vq.grid
  encode = jax.jit(lambda pixels: vq.apply({'params': janus.params['vq']}, normalize_pixels(pixels), method='encode'))
  codes = np.concatenate([np.asarray(encode(images[i : i + 100])) for i in range(0, len(images), 100)]).ravel()
  side = world.size // grid
  cells = images.reshape(len(images), grid, side, grid, side, 3).swapaxes(2, 3).reshape(len(codes), -1)
  _, looks = np.unique(cells, axis=0, return_inverse=True)
  by_look = count_pairs(looks.ravel(), codes)
  empty = max(by_look, key=lambda look: sum(by_look[look].values()))
  others = [counts for look, counts in by_look.items() if look != empty]
  for name, counters in (('empty cells', [by_look[empty]]), ('other cells', others)):
    number = sum(map(collections.Counter.total, counters))
    usual = sum(max(counter.values()) for counter in counters)
    print(f'{name}: {number}, {len(counters)} looks, usual code {100 * usual / number:.1f} %, ', end='')
    print(f'{entropy(counters) / len(codes):.3f} nats per code of an image')
  left = entropy(count_pairs(codes, looks.ravel()).values()) / len(codes)
  print(f'{len(set(codes.tolist()))} codes, which leave {left:.3f} nats of the look')


if __name__ == '__main__':
  main()
