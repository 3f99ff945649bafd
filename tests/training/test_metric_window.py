"""What is counted of batches that go by."""

import numpy as np
from training import batches

from janus_jax.data.examples import CODE, IMAGE, TEXT
from janus_jax.training.losses import target_counts
from janus_jax.training.metric_window import Window
from janus_jax.training.throughput import TokenCounts


def test_a_window_counts_tokens_by_what_they_cost(tmp_path):
  spec = batches.make_spec(tmp_path, batches.GENERATION_SIZE)
  records = [
    (task, {'prompt': record['prompt'], 'image': np.zeros((batches.GENERATION_SIZE,) * 2 + (3,), np.uint8)})
    if task == 'generation'
    else (task, record)
    for task, record in batches.records()
  ]
  batch = batches.batch_of(batches.make_examples(spec, records), batches.ROWS, batches.GENERATION_SIZE)
  window = Window(batches.CONFIG, batches.SHAPE.length, ())
  for _ in range(2):
    window.add(batch, 0.0)
  understood, said, generated = (int(weight) for weight in target_counts(batch))
  expected = TokenCounts(
    text=2 * int((batch['token_types'] == TEXT).sum()),
    understanding=2 * int((batch['token_types'] == IMAGE).sum()),
    generation=2 * int((batch['token_types'] == CODE).sum()),
    images_encoded=2 * 4,
    images_tokenized=2 * 3,
    text_targets=2 * (understood + said),
  )
  assert window.counts == expected  # Of images that exist; there is room for one more of each kind.
  stream = {'examples': {}, 'skipped': {}}
  metrics = {'loss': 0.0, 'loss_sums': np.ones(3), 'loss_weights': np.ones(3), 'skipped': 0, 'skipped_in_a_row': 0}
  metrics |= dict.fromkeys(('grad_norm', 'param_norm', 'update_norm'), 0.0)
  line = window.line(window.take(2, metrics, 0.0, [stream]))
  assert (line['understanding_slots'], line['generation_slots']) == (4 / 5, 3 / 4)
  # Questions and prompts are read only; every code is predicted, and all but an image's last are read.
  assert 0 < expected.text_targets < expected.text
  assert 2 * generated == expected.generation + 2 * 3
