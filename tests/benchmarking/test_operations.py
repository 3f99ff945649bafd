"""The table of the most expensive operations, read off a real trace."""

import jax
import jax.numpy as jnp
import pytest

from janus_jax.benchmarking.operations import _plain, longest_operations

TRIPS = 4


def test_operations_of_a_trace_are_counted_and_the_longest_comes_first(tmp_path):
  @jax.jit
  def work(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, TRIPS, lambda _, x: jnp.sort(x, axis=0) @ x, x)

  x = jnp.ones((300, 300))
  work(x).block_until_ready()
  for runs in (1, 3):  # The second trace is the newest.
    with jax.profiler.trace(str(tmp_path)):
      for _ in range(runs):
        work(x).block_until_ready()
    found = {row['operation']: row for row in longest_operations(str(tmp_path), 100)}
    assert 'while' not in found
    assert found['sort']['calls'] % (TRIPS * runs) == 0
    assert sum(row['share'] for row in found.values()) == pytest.approx(1)
  assert [row['seconds'] for row in found.values()] == sorted((row['seconds'] for row in found.values()), reverse=True)
  assert len(longest_operations(str(tmp_path), 1)) == 1


@pytest.mark.parametrize(
  ('name', 'plain'),
  [
    ('fusion.12', 'fusion'),
    ('%all-gather.3 = bf16[8,4]{1,0} all-gather(x)', 'all-gather'),
    ('sm90_xmma_gemm_bf16bf16', 'sm90_xmma_gemm_bf16bf16'),
    ('3', '3'),
    ('cudnn::v8.kernel', 'cudnn::v8.kernel'),
  ],
)
def test_names_lose_their_number(name, plain):
  assert _plain(name) == plain
