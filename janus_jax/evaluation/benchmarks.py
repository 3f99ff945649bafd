"""The benchmarks that are scored here, and the rules of each."""

from janus_jax.errors import InputError
from janus_jax.evaluation import mmmu, multiple_choice, yes_no
from janus_jax.evaluation.rules import Rule

DEFAULT_RULE = 'vlmevalkit-2026'


RULES: dict[str, dict[str, Rule]] = {**yes_no.RULES, **multiple_choice.RULES, **mmmu.RULES}


def find_rules(benchmark: str, rule: str) -> dict[str, Rule]:
  """Rules of a benchmark by name: the one asked for, or 'all'. Raises InputError for an unknown name."""
  rules = RULES[benchmark]
  if rule == 'all':
    return rules
  if rule not in rules:
    raise InputError(f'rule is {rule!r}: expected one of {", ".join(rules)}, all for {benchmark}')
  return {rule: rules[rule]}
