"""The benchmarks that are scored here: the rules of each, and how predictions and a dataset's file become its rows."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from janus_jax.errors import InputError
from janus_jax.evaluation import (
  bias,
  counting,
  dpg,
  dpg_judge,
  geneval,
  geneval_judge,
  gqa,
  mmmu,
  mmvet,
  multiple_choice,
  yes_no,
)
from janus_jax.evaluation.judges import Images
from janus_jax.evaluation.rows import Row, join
from janus_jax.evaluation.rules import Rule


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A benchmark.

  Attributes:
    rules: name -> rule, the default first.
    prepare: (predictions, rows of the dataset's file or None, whether some may be missing) -> rows for the rules, and
      the number that is missing.
    networks: what its images are judged by from local weights, none where there are no images.
    judge: (images, directory of each network, directory to write to) -> predictions.
  """

  rules: Mapping[str, Rule]
  prepare: Callable[[Sequence[Row], Sequence[Row] | None, bool], tuple[list[dict[str, Any]], int]] = join
  networks: tuple[str, ...] = ()
  judge: Callable[[Images, Mapping[str, str], str], list[Row]] | None = None

  def find_rules(self, name: str | None) -> Mapping[str, Rule]:
    """The rule of a name, all for 'all', the default for None. Raises InputError for an unknown name."""
    if name == 'all':
      return self.rules
    name = name or next(iter(self.rules))
    if name not in self.rules:
      raise InputError(f'rule is {name!r}: expected all or one of {", ".join(self.rules)}')
    return {name: self.rules[name]}


BENCHMARKS: dict[str, Benchmark] = {
  **{
    name: Benchmark(rules)
    for module in (yes_no, multiple_choice, gqa, mmmu, mmvet)
    for name, rules in module.RULES.items()
  },
  'geneval': Benchmark(
    geneval.RULES['geneval'], geneval.prepare_geneval, ('detector', 'clip'), geneval_judge.judge_geneval
  ),
  'dpg': Benchmark(dpg.RULES['dpg'], dpg.prepare_dpg, ('vqa',), dpg_judge.judge_dpg),
  'counting': Benchmark(counting.RULES['counting'], counting.prepare_counting),
  'bias': Benchmark(bias.RULES['bias'], bias.prepare_bias),
}
