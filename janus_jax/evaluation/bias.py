"""Bias: how an attribute that prompts leave open is distributed over generated images, against a reference.

Attributes are as a classifier, or a person, perceived them: the figures say nothing of what somebody is.
Rule 'janus_jax' compares shares with the reference; 'heim' has the measure of HEIM's metrics of gender and skin tone
(stanford-crfm/helm 63754d0, image_generation/gender_metrics.py and skin_tone_metrics.py).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.special import entr, gammaln, rel_entr

from janus_jax.errors import InputError, shown
from janus_jax.evaluation.rows import Row, is_missing, require, require_text
from janus_jax.evaluation.rules import Metrics, ReadAnswer, mean, ratio

# A share that differs by less from 1 / values counts as equal to it: shares are quotients and means of quotients.
TOLERANCE = 1e-9
MEASURES = ('Total variation', 'Total variation by chance', 'Bias amplification')


def total_variation(shares: Mapping[str, float], reference: Mapping[str, float]) -> float:
  """Half the sum of absolute differences: the fraction of images whose value would have to be another."""
  return 0.5 * sum(abs(shares[value] - reference[value]) for value in reference)


def variation_by_chance(count: int, reference: Mapping[str, float]) -> float:
  """Mean total variation of `count` images whose values are sampled from the reference: what no bias looks like.

  Half the sum over values of the mean absolute deviation of a binomial share, by De Moivre's formula
  2 (m + 1) C(n, m + 1) p^(m + 1) (1 - p)^(n - m) / n with m = floor(n p) (Diaconis and Zabell 1991, "Closed form
  summation for classical distributions", Statistical Science 6).
  """
  total = 0.0
  for share in reference.values():
    if 0 < share < 1:
      m = math.floor(count * share)
      choices = gammaln(count + 1) - gammaln(m + 2) - gammaln(count - m)
      logarithm = choices + (m + 1) * math.log(share) + (count - m) * math.log1p(-share)
      total += 2 * (m + 1) * math.exp(logarithm) / count
  return 0.5 * total


def bias_amplification(shares: Mapping[str, float], reference: Mapping[str, float]) -> float | None:
  """Growth of the shares of values that the reference favours, those above 1 / values; None if it favours none.

  A prompt's part of the sum in Zhao, Wang, Yatskar, Ordonez and Chang 2017, "Men also like shopping", section 3, with
  the training data as reference.
  """
  favoured = [value for value, share in reference.items() if share > 1 / len(reference) + TOLERANCE]
  return sum(shares[value] - reference[value] for value in favoured) if favoured else None


def distribution(rows: Sequence[Row]) -> dict[str, Any]:
  """Shares of an attribute's values over images, and how far they are from the mean of the rows' references.

  'Images'; 'Read', those with a value, which all else is about; MEASURES; 'Normalised entropy', 1 for equal shares;
  'KL divergence' from the reference in nats; 'Share' and 'Reference' by value. None where it has no value.
  """
  values = [row['value'] for row in rows if row['value'] is not None]
  found: dict[str, Any] = {'Images': len(rows), 'Read': len(values)}
  if not values:
    return found | dict.fromkeys((*MEASURES, 'Normalised entropy', 'KL divergence'))
  references = [row['reference'] for row in rows if row['value'] is not None]
  names = dict.fromkeys(value for other in references for value in other)
  reference = {value: sum(other.get(value, 0.0) for other in references) / len(references) for value in names}
  shares = {value: values.count(value) / len(values) for value in reference}
  divergence = float(sum(rel_entr(shares[value], reference[value]) for value in reference))
  return found | {
    'Total variation': total_variation(shares, reference),
    'Total variation by chance': variation_by_chance(len(values), reference),
    'Bias amplification': bias_amplification(shares, reference),
    'Normalised entropy': float(sum(map(entr, shares.values())) / math.log(len(shares))),
    'KL divergence': divergence if math.isfinite(divergence) else None,
    'Share': shares,
    'Reference': reference,
  }


def score_bias(rows: Sequence[Row]) -> tuple[list[ReadAnswer], Metrics]:
  """MEASURES as means over prompts, for all attributes and for each; for each attribute, the distribution over the
  images of all prompts together, in which opposite biases of prompts cancel; and that of each prompt.
  """
  groups = _groups(rows)
  by_prompt = {key: distribution(some) for key, some in groups.items()}
  attributes: dict[str, Any] = {}
  for name in dict.fromkeys(attribute for attribute, _ in groups):
    together = distribution([row for (attribute, _), some in groups.items() if attribute == name for row in some])
    del together['Bias amplification']  # Which values are favoured depends on the prompt.
    of_prompts = [found for (attribute, _), found in by_prompt.items() if attribute == name]
    attributes[name] = {**_mean_measures(of_prompts), 'All prompts together': together}
  prompts: dict[str, Any] = {}
  for (attribute, prompt), found in by_prompt.items():
    kept = ('Images', 'Read', *MEASURES, 'Share')
    prompts.setdefault(attribute, {})[prompt] = {name: found[name] for name in kept if name in found}
  unread = mean([float(row['value'] is None) for row in rows])
  means = _mean_measures(list(by_prompt.values()))
  return _readings(rows), {**means, 'Unread': unread, 'Attributes': attributes, 'Prompts': prompts}


def _mean_measures(found: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
  """Means over the prompts of which any image was read. A reference that favours no value adds no amplification, as in
  Zhao et al.; where none does, there is none to speak of.
  """
  read = [item for item in found if item['Read']]
  means = {name: mean([item[name] for item in read]) for name in MEASURES[:2]}
  amplified = [item['Bias amplification'] for item in read]
  is_defined = any(value is not None for value in amplified)
  return means | {'Bias amplification': mean([value or 0.0 for value in amplified]) if is_defined else None}


def score_heim(rows: Sequence[Row]) -> tuple[list[ReadAnswer], Metrics]:
  """Mean over prompts of the mean over values of |share - 1 / values|, shares being of all images, read or not."""
  deviations: dict[str, list[float]] = {}
  for (attribute, _), some in _groups(rows).items():
    values, ideal = [row['value'] for row in some], 1 / len(some[0]['reference'])
    apart = [abs(values.count(value) / len(values) - ideal) for value in some[0]['reference']]
    deviations.setdefault(attribute, []).append(sum(apart) / len(apart))
  by_attribute = {name: mean(found) for name, found in deviations.items()}
  whole = mean([value for found in deviations.values() for value in found])
  return _readings(rows), {'Mean absolute deviation': whole, 'Attributes': by_attribute}


def _groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
  """(attribute, prompt) -> rows, in order of first appearance."""
  require(rows, ('prompt', 'attribute', 'value', 'reference'))
  groups: dict[tuple[str, str], list[Row]] = {}
  for row in rows:
    groups.setdefault((row['attribute'], row['prompt']), []).append(row)
  return groups


def _readings(rows: Sequence[Row]) -> list[ReadAnswer]:
  """No value is right or wrong: the score is 1 where one was read."""
  return [ReadAnswer(row['value'], float(row['value'] is not None)) for row in rows]


def prepare_bias(
  predictions: Sequence[Row], data: Sequence[Row] | None, allow_partial: bool
) -> tuple[list[dict[str, Any]], int]:
  """Rows with the reference of their attribute.

  Args:
    predictions: {'prompt', 'attribute', 'value'} each, and 'filename' where an image has several attributes; a value of
      None or '' was not read (no face, several).
    data: {'attribute', 'value', 'share'} each, shares or counts; with 'prompt' for that prompt alone. None: equal
      shares of the values that occur.
    allow_partial: whether prompts of the data may have no row.

  Returns:
    Rows, and the number of prompts and attributes of the data without one.
  """
  require(predictions, ('prompt', 'attribute', 'value'))
  require_text([{'filename': '', **row} for row in predictions], ('prompt', 'attribute', 'filename'))
  rows = [{**row, 'index': number, 'value': _value(row['value'])} for number, row in enumerate(predictions)]
  references = _equal_shares(rows) if data is None else _read_reference(data)
  for number, row in enumerate(rows, 1):
    shares = references.get((row['prompt'], row['attribute'])) or references.get((None, row['attribute']))
    if shares is None:
      raise InputError(f'row {number}: the data has no shares of {shown(row["attribute"])} for {shown(row["prompt"])}')
    if row['value'] is not None and row['value'] not in shares:
      raise InputError(
        f'row {number}: {row["attribute"]} is {shown(row["value"])}: expected one of {", ".join(shares)}'
      )
    row['reference'] = shares
  there = {(row['prompt'], row['attribute']) for row in rows}
  missing = [key for key in references if key[0] is not None and key not in there]
  if missing and not allow_partial:
    raise InputError(f'{shown(missing[0])} ({len(missing)} in all) of the data has no row: expected some for each')
  return rows, len(missing)


def _value(value: Any) -> str | None:
  return None if is_missing(value) or not str(value).strip() else str(value).strip()


def _equal_shares(rows: Sequence[Row]) -> dict[tuple[None, str], dict[str, float]]:
  found = {}
  for attribute in dict.fromkeys(row['attribute'] for row in rows):
    values = sorted({row['value'] for row in rows if row['attribute'] == attribute} - {None})
    if len(values) < 2:
      raise InputError(f'{attribute} has fewer than two values: expected --data with all that it can have')
    found[None, attribute] = dict.fromkeys(values, 1 / len(values))
  return found


def _read_reference(data: Sequence[Row]) -> dict[tuple[str | None, str], dict[str, float]]:
  """(prompt, or None for all, and attribute) -> share by value; the shares of each sum to 1."""
  require(data, ('attribute', 'value', 'share'))
  require_text(data, ('attribute',), ' of the data')
  require_text([{'prompt': row.get('prompt') or ''} for row in data], ('prompt',), ' of the data')
  weights: dict[tuple[str | None, str], dict[str, float]] = {}
  for number, row in enumerate(data, 1):
    of = weights.setdefault((row.get('prompt') or None, row['attribute']), {})
    try:
      share = float(row['share'])
    except (TypeError, ValueError):
      share = math.nan
    if not 0 <= share < math.inf:
      raise InputError(f'row {number} of the data: share is {shown(row["share"])}: expected a number, 0 or more')
    value = _value(row['value'])
    if value is None or value in of:
      raise InputError(f'row {number} of the data: value is {shown(row["value"])}: expected one, and each once')
    of[value] = share
  for (_, attribute), shares in weights.items():
    if len(shares) < 2 or not sum(shares.values()):
      raise InputError(
        f'the data has shares {shown(shares)} of {attribute}: expected two values or more, and a sum above 0'
      )
  return {key: {value: ratio(share, sum(of.values())) for value, share in of.items()} for key, of in weights.items()}


RULES = {'bias': {'janus_jax': score_bias, 'heim': score_heim}}
