"""The printed figures of a benchmark."""

import pytest

from janus_jax.benchmarking import report


@pytest.mark.parametrize(('load', 'is_usable'), [(0.1, True), (3.7, False)])
def test_a_comparison_on_a_busy_machine_is_not_printed(load, is_usable):
  spread = {'median': 41.0, 'low': 8.0, 'high': 215.0}
  found = {'step_seconds': spread, 'times_the_peer_by_step_seconds': spread, 'load_average_before': load}
  for text in (report.to_text(found), report.results_to_markdown(found)):
    own, compared = text.splitlines()[-3:-1]
    assert '41  (8 to 215)' in own
    assert ('41  (8 to 215)' in compared) == is_usable == ('not usable: load average' not in compared)
