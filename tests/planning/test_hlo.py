"""Traffic of a compiled program between devices, against programs whose traffic can be worked out by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from janus_jax.planning.hlo import COLLECTIVES, received_bytes

DEVICES = 8
STEPS = 5
SIZE = 1024  # Elements of a device's part, float32.
BYTES = 4 * SIZE
RING = [(i, (i + 1) % DEVICES) for i in range(DEVICES)]
# Collective -> (what it is counted as, bytes that one device gets from the others). A ring's, the least there can be.
CASES = {
  'psum': (lambda x: jax.lax.psum(x, 'd') / 9, 'all-reduce', 2 * BYTES * (DEVICES - 1) // DEVICES),
  'all_gather': (lambda x: jax.lax.all_gather(x, 'd').sum(0), 'all-gather', BYTES * (DEVICES - 1)),
  'psum_scatter': (
    lambda x: jnp.tile(jax.lax.psum_scatter(x, 'd', tiled=True), DEVICES),
    'reduce-scatter',
    BYTES * (DEVICES - 1) // DEVICES,
  ),
  'ppermute': (lambda x: jax.lax.ppermute(x, 'd', RING) + 1, 'collective-permute', BYTES),
  'all_to_all': (
    lambda x: jax.lax.all_to_all(x.reshape(DEVICES, -1), 'd', 0, 0).reshape(-1) * 2,
    'all-to-all',
    BYTES * (DEVICES - 1) // DEVICES,
  ),
}


def compiled_text(collective, steps: int) -> str:
  mesh = jax.make_mesh((DEVICES,), ('d',), devices=jax.devices()[:DEVICES])
  given = jax.ShapeDtypeStruct((DEVICES * SIZE,), jnp.float32, sharding=NamedSharding(mesh, P('d')))

  def run(x):
    return jax.lax.scan(lambda x, _: (jnp.sin(collective(x)), None), x, length=steps)[0]

  mapped = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P('d'), out_specs=P('d'), check_vma=False))
  return mapped.lower(given).compile().as_text()


@pytest.mark.parametrize('name', CASES)
def test_a_loop_counts_as_often_as_it_runs(name):
  collective, kind, expected = CASES[name]
  assert received_bytes(compiled_text(collective, STEPS)) == dict.fromkeys(COLLECTIVES, 0) | {kind: STEPS * expected}


def test_a_loop_that_ends_when_the_data_says_counts_as_often_as_the_caller_says():
  mesh = jax.make_mesh((DEVICES,), ('d',), devices=jax.devices()[:DEVICES])

  def run(x, steps):
    return jax.lax.fori_loop(0, steps, lambda _, x: jnp.sin(jax.lax.ppermute(x, 'd', RING)), x)

  given = jax.ShapeDtypeStruct((DEVICES * SIZE,), jnp.float32, sharding=NamedSharding(mesh, P('d')))
  mapped = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(P('d'), P()), out_specs=P('d'), check_vma=False))
  text = mapped.lower(given, jax.ShapeDtypeStruct((), jnp.int32)).compile().as_text()
  assert received_bytes(text)['collective-permute'] == BYTES
  assert received_bytes(text, trip_count=7)['collective-permute'] == 7 * BYTES


# As libtpu 0.0.50 writes it, shortened.
SCATTERED = """
%region_1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.3.clone.1 (input: f32[1024]) -> f32[128] {
  %input = f32[1024]{0} parameter(0)
  %all-reduce.7 = f32[1024]{0} all-reduce(%input), channel_id=4, replica_groups=[1,8]<=[8], to_apply=%region_1
  %place = u32[] partition-id()
  ROOT %part = f32[128]{0} dynamic-slice(%all-reduce.7, %place), dynamic_slice_sizes={128}
}

ENTRY %main (x: f32[1024]) -> f32[128] {
  %x = f32[1024]{0} parameter(0)
  ROOT %fusion.1 = f32[128]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3.clone.1
}
"""


def test_a_tpus_reduce_scatter_is_counted_as_one():
  nothing = dict.fromkeys(COLLECTIVES, 0)
  assert received_bytes(SCATTERED) == nothing | {'reduce-scatter': 4096 * 7 // 8}
  alone = SCATTERED.replace('%all-reduce-scatter.3', '%fused_computation.3')
  assert received_bytes(alone) == nothing | {'all-reduce': 2 * 4096 * 7 // 8}


def test_collectives_of_one_channel_are_told_apart_and_two_texts_of_one_are_not():
  """All that come of one `shard_map` have the same channel."""
  given = "f32[256] all-gather(%x), channel_id=1, replica_groups=mesh['a'=2,'b'=4] {'a'}, dimensions={0}"
  across = given.replace("] {'a'}", "] {'b'}")
  lines = (
    '  %x = f32[128] parameter(0)',
    f'  %one = {given}, metadata={{op_name="gather"}}',
    f'  %again = {given}, metadata={{op_name="gather"}}',
    f'  %other = {across}, metadata={{op_name="gather"}}',
    f'  ROOT %third = {given}, metadata={{op_name="another"}}',
  )
  program = '\n'.join(('ENTRY %main (x: f32[128]) -> f32[256] {', *lines, '}'))
  assert received_bytes(program)['all-gather'] == 2 * 1024 // 2 + 1024 * 3 // 4
