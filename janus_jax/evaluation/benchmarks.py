"""The benchmarks that are scored here, and the rules of each."""

import functools

from janus_jax.errors import InputError
from janus_jax.evaluation import yes_no
from janus_jax.evaluation.rules import Rule

DEFAULT_RULE = 'vlmevalkit-2026'


def _vlmevalkit(rule) -> dict[str, Rule]:
  """Both versions of a rule of VLMEvalKit."""
  return {f'vlmevalkit-{version}': functools.partial(rule, version=version) for version in ('2026', '2025')}


RULES: dict[str, dict[str, Rule]] = {
  'pope': {
    **_vlmevalkit(yes_no.pope_vlmevalkit),
    'lmms-eval': yes_no.pope_lmms_eval,
    'official': yes_no.pope_official,
  },
  'mme': {
    **_vlmevalkit(yes_no.mme_vlmevalkit),
    'lmms-eval': yes_no.mme_lmms_eval,
    'official': yes_no.mme_official,
  },
}


def find_rules(benchmark: str, rule: str) -> dict[str, Rule]:
  """Rules of a benchmark by name: the one asked for, or 'all'. Raises InputError for an unknown name."""
  rules = RULES[benchmark]
  if rule == 'all':
    return rules
  if rule not in rules:
    raise InputError(f'rule is {rule!r}: expected one of {", ".join(rules)}, all for {benchmark}')
  return {rule: rules[rule]}
