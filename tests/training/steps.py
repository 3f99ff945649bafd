"""What the tests of the train step share: its settings, the stages, a fresh state."""

import jax
import jax.numpy as jnp
import numpy as np
from training import batches
from training.batches import CONFIG, params

from janus_jax.training.optimizer import OptimizerConfig
from janus_jax.training.state import TrainState, flatten, new_state
from janus_jax.training.step import StageValues, StepConfig

# Where a gradient is zero but for rounding (SigLIP's key biases), Adam's direction is rounding over eps: with 1e-8 that
# is noise of up to the learning rate, and runs could not be compared to 1e-6 (they differ by 2e-6).
EPS = 1e-5
STEP = StepConfig(CONFIG, optimizer=OptimizerConfig(eps=EPS), loss_chunk=batches.SHAPE.length)
PATHS = tuple(flatten(params()))
PARTS = ('vision_aligner', 'gen_aligner', 'gen_head')
STAGE_1 = frozenset(path for path in PATHS if path.startswith(PARTS))
STAGE_2 = frozenset(path for path in PATHS if path.startswith((*PARTS, 'gen_embed', 'language_model')))
STAGE_3 = frozenset(path for path in PATHS if not path.startswith('vq'))


def stage_values(learning_rate=1e-3, weight_decay=0.0, loss_weights=(1.0, 1.0, 1.0)) -> StageValues:
  return StageValues(jnp.float32(learning_rate), jnp.float32(weight_decay), jnp.array(loss_weights, jnp.float32))


def to_numpy(state):
  return jax.tree.map(np.array, state)


def fresh(config=STEP, trained=STAGE_3, tree=None) -> TrainState:
  return new_state(params() if tree is None else tree, trained, config.optimizer)


def gradients_of_first_step(state, metrics) -> dict[str, np.ndarray]:
  """From Adam's first moment, which is (1 - b1) times the clipped gradient."""
  clip = min(1.0, 1.0 / float(metrics['grad_norm']))
  return {path: np.asarray(moment, np.float64) / 0.1 / clip for path, moment in state.opt_state.mu.items()}
