"""Layout of activations on the devices: `models.config.Layout`, answered by the rules.

A layout is handed to the model explicitly. Flax's logical names depend on two contexts instead, of the rules and of the
mesh, and do nothing, silently, where one is missing or a name is misspelt.
"""

import dataclasses

import jax
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.errors import InputError
from janus_jax.sharding.rules import ACTIVATION_RULES, Rules, check_divides, find_rule


@dataclasses.dataclass(frozen=True)
class ActivationLayout:
  """Implements `models.config.Layout`. Hashable, as what a step is compiled for must be."""

  mesh: jax.sharding.Mesh
  rules: Rules = ACTIVATION_RULES

  def spec(self, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    """The spec of an activation. InputError: no rule knows the name, or the mesh does not divide the shape."""
    found = dict(self.rules).get(name)
    if found is None:
      known = ', '.join(name for name, _ in self.rules)
      raise InputError(f'activation {name!r} is covered by no sharding rule: expected one of {known}')
    check_divides(f'activation {name!r}', shape, found, self.mesh)
    return found

  def parameter(self, path: str) -> PartitionSpec:
    """The spec of a parameter. Raises InputError if no rule covers it."""
    return find_rule(path)[1]

  def constrain(self, name: str, x: jax.Array) -> jax.Array:
    """The same values, split as the rules say. Raises as `spec`."""
    spec = self.spec(name, x.shape)
    # One device has nothing to split.
    return x if self.mesh.size == 1 else jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))
