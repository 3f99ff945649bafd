"""Measures this machine in minutes: correctness, training, images and answers, also beside transformers.

    bash launch/measure.sh [--minutes=7 --out=measured --parts=check,train_1b_stage3]

Finds the accelerator, or else measures small models on the CPU. Needs no files and no network: weights are random and
made on the device. Parts run in order of value, each in a process of its own with a limit of time; one that fails, or
does not fit the memory or the minutes, says why and the rest goes on. DIR/figures.json has every figure from the moment
it exists, DIR/table.md the table for a README with the commands, DIR/NAME.log a part's messages, DIR/profiles traces
for TensorBoard or Perfetto. Called again with the same DIR, --parts are measured anew and others are kept.
"""

import json
import logging
import pathlib

import jax
from absl import flags

from janus_jax import cli
from janus_jax.benchmarking.machine import read_machine
from janus_jax.benchmarking.measured_table import table_to_text
from janus_jax.benchmarking.measuring import FAILED, measure
from janus_jax.benchmarking.parts import parts_for
from janus_jax.errors import InputError
from janus_jax.runs.value_checks import Number

_MINUTES = cli.define_number('minutes', 7.0, 'Minutes for all parts together.', Number(0, above=True))
_OUT = cli.define_path('out', 'measured', 'Directory for figures, table, logs and traces.')
_PARTS = flags.DEFINE_list('parts', [], 'Names of parts to measure; default: all.')


def main() -> None:
  # This process only computes shapes of parameters: it must leave the device to its parts.
  jax.config.update('jax_platforms', 'cpu')
  out = pathlib.Path(_OUT.value)
  machine = read_machine()
  parts = parts_for(machine, str(out / 'profiles'))
  names = [part.name for part in parts]
  for name in _PARTS.value:
    if name not in names:
      raise InputError(f'--parts names {name!r}: expected some of {", ".join(names)}')
  logging.info('%s, %s', machine.kind, machine.versions)
  if machine.note:
    logging.warning(machine.note)
  elif machine.platform == 'cpu':
    logging.info('no accelerator: small models on the CPU')
  chosen = [part for part in parts if not _PARTS.value or part.name in _PARTS.value]
  try:
    results = measure(chosen, machine, _MINUTES.value, out)
  finally:
    figures = out / 'figures.json'
    if figures.exists():
      print(table_to_text(json.loads(figures.read_text())), flush=True)
  if failed := [result.title for result in results if result.status == FAILED]:
    raise InputError(f'failed: {", ".join(failed)}: {out}/table.md says why')


if __name__ == '__main__':
  cli.run(main)
