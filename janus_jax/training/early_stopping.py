"""Ends a run whose loss on held-out data does not fall any more, and remembers where it was lowest."""

import dataclasses
import math
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Best:
  """The lowest held-out loss of a run so far.

  Attributes:
    step: step that it was measured after; 0 before the first.
    loss: mean over the tasks of which anything is held out.
    waited: evaluations since.
  """

  step: int = 0
  loss: float = math.inf
  waited: int = 0

  def after(self, step: int, losses: Mapping[str, float]) -> 'Best':
    """The best when the losses by task have been measured after a step. A loss that is not finite is no better."""
    loss = sum(losses.values()) / len(losses)
    return Best(step, loss) if loss < self.loss else dataclasses.replace(self, waited=self.waited + 1)


NO_BEST = Best()
