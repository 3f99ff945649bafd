"""Pictures full of objects, for the image tokenizer alone.

A real tokenizer is pretrained on pictures richer than those it is then used on. On scenes of one object colour is so
small a part of the reconstruction error that a short training never learns it; on crowds it does.
"""

import numpy as np

from janus_jax.toy import shapes
from janus_jax.toy.scenes import HELD_OUT_TRIPLES
from janus_jax.toy.shapes import COLOURS, SHAPES, SIZES, World

SHARE = 0.7  # Of the places that hold an object.


def crowds(world: World, count: int, rng: np.random.Generator) -> np.ndarray:
  """Objects side by side, of any kind that training may show.

  Args:
    world: how it looks.
    count: n.
    rng: what is drawn.

  Returns:
    uint8[n, size, size, 3].
  """
  held_out = {
    (list(COLOURS).index(colour), SHAPES.index(shape), SIZES.index(size)) for colour, shape, size in HELD_OUT_TRIPLES
  }
  kinds = [
    (shape, colour, size)
    for shape in range(len(SHAPES))
    for colour in range(len(COLOURS))
    for size in range(len(SIZES))
    if (colour, shape, size) not in held_out
  ]
  places = [(x, y) for y in world.positions[::2] for x in world.positions[::2]]
  chosen = np.array(kinds)[rng.integers(len(kinds), size=(count, len(places)))]
  where = np.broadcast_to(np.array(places), (count, len(places), 2))
  rows = np.concatenate([chosen, where], axis=-1).astype(np.int8)
  rows[rng.random(rows.shape[:2]) >= SHARE] = -1
  return shapes.render_encoded(world, rows)
