"""What linear probes read off a toy model: its understanding encoder, and each layer of its decoder.

    python tests/benchmarks/toy_probes.py --checkpoint=RUN [--scenes=3000]

Scenes of two objects that training never had. `encoder` is read off all patches at once, by a linear map and by one
hidden layer; `layer n` off the decoder's hidden state at the last token of the question, from which the answer follows.
Two thirds of the scenes fit a probe, the rest score it. Accuracies in percent; chance is the most frequent answer.
"""

import argparse
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from janus_jax.inference.answering import prepare_question
from janus_jax.models.config import ComputeConfig
from janus_jax.models.janus import Janus
from janus_jax.runs import loading, workdirs
from janus_jax.runs.config import DataConfig
from janus_jax.toy import dataset, questions, scenes, shapes

KINDS = ('colour', 'shape', 'size', 'where', 'beside')
STEPS, BATCH, HIDDEN = 1500, 128, 256


def probe(features: np.ndarray, labels: np.ndarray, hidden: int = 0) -> float:
  """Percentage right of a classifier float32[N, D] -> int[N] on the last third."""
  count, fitted, width = int(labels.max()) + 1, 2 * len(features) // 3, features.shape[1]
  mean, deviation = features[:fitted].mean(0), features[:fitted].std(0) + 1e-3
  inputs = jnp.asarray((features - mean) / deviation)
  keys = jax.random.split(jax.random.key(0))
  sizes = (width, hidden, count) if hidden else (width, count)
  weights = [jax.random.normal(k, pair) / np.sqrt(pair[0]) for k, pair in zip(keys, itertools.pairwise(sizes))]

  def logits(weights, x):
    return jax.nn.relu(x @ weights[0]) @ weights[1] if hidden else x @ weights[0]

  optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, STEPS), weight_decay=0.01)

  @jax.jit
  def step(weights, state, rows):
    def loss(weights):
      return optax.softmax_cross_entropy_with_integer_labels(logits(weights, inputs[rows]), labels[rows]).mean()

    updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
    return optax.apply_updates(weights, updates), state

  state, rng, labels = optimizer.init(weights), np.random.default_rng(0), jnp.asarray(labels)
  for _ in range(STEPS):
    weights, state = step(weights, state, rng.integers(fitted, size=BATCH))
  return 100 * float((logits(weights, inputs[fitted:]).argmax(-1) == labels[fitted:]).mean())


def labels_of(answers: list[str]) -> np.ndarray:
  """Each answer's place among the different ones."""
  return np.unique(answers, return_inverse=True)[1]


@functools.partial(jax.jit, static_argnames=('config', 'depth'))
def hidden_at(params, ids, last, pixels, *, config, depth):
  """float32[B, D] at the positions int[B] of rows int[B, T] after `depth` layers, normalised as the last are."""
  llama = dataclasses.replace(config.language_model, depth=depth)
  cut = jax.tree.map(lambda leaf: leaf[:depth], params['language_model']['layers'])
  params = {**params, 'language_model': {**params['language_model'], 'layers': cut}}
  janus = Janus(dataclasses.replace(config, language_model=llama), ComputeConfig())
  embedded = janus.apply({'params': params}, ids, pixels, method='embed_prompt')
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  hidden, _ = janus.apply({'params': params}, embedded, positions, method='hidden')
  return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--scenes', type=int, default=3000)
  options = parser.parse_args()
  janus = loading.load(options.checkpoint, 'float32')
  data = DataConfig(**workdirs.read_config(options.checkpoint).get('data', {}))
  world = dataset.world_for(janus.config, 0, **data.toy)
  found = dict.fromkeys(scenes.scene_at(world, 'test', index, 'two') for index in range(2 * options.scenes))
  shown = list(found)[: options.scenes]
  pixels = shapes.render_scene(world, shown)
  encode = jax.jit(lambda params, x: Janus(janus.config).apply({'params': params}, x, method='encode_images'))
  chunks = range(0, len(shown), 100)
  features = np.concatenate([np.asarray(encode(janus.params, pixels[i : i + 100])) for i in chunks])
  features = features.reshape(len(shown), -1)
  print(f'{len(shown)} scenes{"":14}' + ''.join(f'{kind:>9}' for kind in KINDS))
  rng = np.random.default_rng(0)
  about = [{q.kind: q for q in rng.permutation(questions.ask(scene))} for scene in shown]
  asked = {kind: [one[kind] for one in about] for kind in KINDS}
  labels = {kind: labels_of([question.answers[0] for question in asked[kind]]) for kind in KINDS}

  def line(name: str, values: list[float]) -> None:
    print(f'{name:28}' + ''.join(f'{value:9.1f}' for value in values), flush=True)

  line('chance', [100 * np.bincount(labels[kind]).max() / len(shown) for kind in KINDS])
  # A probe of the patches has to be told what is asked about: the object's shape or colour, as one of the words.
  for name, hidden in (('encoder, linear', 0), ('encoder, one hidden layer', HIDDEN)):
    values = []
    for kind in KINDS:
      words = labels_of([question.text for question in asked[kind]])
      values.append(
        probe(np.concatenate([features, 10 * np.eye(words.max() + 1)[words]], axis=1), labels[kind], hidden)
      )
    line(name, values)
  ids = {kind: [ids_of(janus, image, q.text) for image, q in zip(pixels, asked[kind])] for kind in KINDS}
  for depth in range(1, janus.config.language_model.depth + 1):
    read = functools.partial(hidden_at, config=janus.config, depth=depth)
    values = []
    for kind in KINDS:
      last = np.array([len(row) - 1 for row in ids[kind]])
      rows = np.zeros((len(shown), last.max() + 1), np.int32)
      for row, own in zip(rows, ids[kind]):
        row[: len(own)] = own
      cuts = [slice(start, start + 100) for start in chunks]
      states = [np.asarray(read(janus.params, rows[cut], last[cut], pixels[cut])) for cut in cuts]
      values.append(probe(np.concatenate(states), labels[kind]))
    line(f'layer {depth}', values)


def ids_of(janus, image: np.ndarray, question: str) -> list[int]:
  return prepare_question(janus.config, [Image.fromarray(image)], question, janus.tokenizer, janus.template).ids


if __name__ == '__main__':
  main()
