"""How far a toy model's images follow their prompts, without noise of sampling: what it finds likely.

    python tests/benchmarks/toy_ties.py --checkpoint=RUN [--scenes=300]

For unseen scenes of one object and of two, each with a prompt that says all of it: in how many percent the model finds
the image likelier with its prompt than with any that is false in one attribute (`chance` if it ignored that one), and
how many nats likelier than with the mean of these. Of two objects also the relation turned round, and colours
exchanged: the binding.
"""

import argparse
import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.benchmarking.accuracy import code_logits
from janus_jax.benchmarking.inference import Prompts
from janus_jax.data import prompts as prompts_lib
from janus_jax.inference.generation import prompt_rows
from janus_jax.inference.requests import decoder_for
from janus_jax.models.config import ComputeConfig
from janus_jax.models.janus import normalize_pixels
from janus_jax.models.vq import VQ
from janus_jax.runs import loading, workdirs
from janus_jax.runs.config import DataConfig
from janus_jax.toy import captions, dataset, scenes, shapes

ROWS = 200
Claim = captions.Description


def false_claims(world: shapes.World, claim: Claim) -> Iterator[tuple[str, Claim]]:
  """Names of what is false, and the claims that are false in it."""
  values = {'colour': world.colours, 'shape': world.shapes, 'size': world.sizes}
  if len(claim.parts) == 1:
    (part,) = claim.parts
    for name, choices in values.items():
      for value in choices:
        if value != getattr(part, name):
          yield name, Claim((dataclasses.replace(part, **{name: value}),))
    return
  first, second = claim.parts
  for name in values:
    if getattr(first, name) != getattr(second, name):
      swapped = [dataclasses.replace(a, **{name: getattr(b, name)}) for a, b in ((first, second), (second, first))]
      yield f'{name}s exchanged', Claim(tuple(swapped), claim.relation)
  for name in scenes.RELATIONS:
    if name != claim.relation:
      yield 'relation', Claim(claim.parts, name)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--scenes', type=int, default=300)
  options = parser.parse_args()
  janus = loading.load(options.checkpoint, 'float32')
  data = DataConfig(**workdirs.read_config(options.checkpoint).get('data', {}))
  world = dataset.world_for(janus.config, 0, **data.toy)
  vq = VQ(janus.config.vq, ComputeConfig())
  encode = jax.jit(lambda pixels: vq.apply({'params': janus.params['vq']}, normalize_pixels(pixels), method='encode'))
  decoder = decoder_for(janus, 'full', None)
  pad = janus.tokenizer.special.pad

  @jax.jit
  def log_likelihood(tokens, mask, codes):
    logits = code_logits(decoder, Prompts(tokens, mask, None), codes, 1.0)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), codes[..., None], -1).sum((1, 2))

  for layout in ('one', 'two'):
    rng = np.random.default_rng(0)
    rows = []  # (scene number, name of what is false or '', text)
    shown = [scenes.scene_at(world, 'test', index, layout) for index in range(options.scenes)]
    for number, scene in enumerate(shown):
      dense = captions.dense_descriptions(scene)
      claim = dense[rng.integers(len(dense))]
      rows.append((number, '', claim.text))
      rows += [(number, name, false.text) for name, false in false_claims(world, claim)]
    images = shapes.render_scene(world, shown)
    codes = np.concatenate([np.asarray(encode(images[i : i + 100])) for i in range(0, len(images), 100)])
    codes = codes.reshape(len(images), -1)
    ids = prompt_rows(janus.config, [text for _, _, text in rows], janus.tokenizer, janus.template)
    length = max(map(len, ids))
    found = []
    for i in range(0, len(rows), ROWS):
      chunk = list(range(i, min(i + ROWS, len(rows))))
      chunk += chunk[-1:] * (ROWS - len(chunk))
      tokens, mask = prompts_lib.left_pad([ids[j] for j in chunk], pad, length)
      found.append(np.asarray(log_likelihood(tokens, mask, codes[[rows[j][0] for j in chunk]])))
    values = np.concatenate(found)[: len(rows)]
    true = {number: value for (number, name, _), value in zip(rows, values) if not name}
    print(f'{layout}: {-np.mean(list(true.values())) / codes.shape[1]:.3f} nats per code')
    for name in dict.fromkeys(name for _, name, _ in rows if name):
      others: dict[int, list[float]] = {}
      for (number, what, _), value in zip(rows, values):
        if what == name:
          others.setdefault(number, []).append(value)
      right = np.mean([true[number] > max(each) for number, each in others.items()])
      gap = np.mean([true[number] - np.mean(each) for number, each in others.items()])
      chance = np.mean([1 / (1 + len(each)) for each in others.values()])
      print(f'  {name:18} {100 * right:5.1f} % (chance {100 * chance:4.1f})  {gap:+6.2f} nats')


if __name__ == '__main__':
  main()
