"""Traffic of a compiled program between devices, read off its HLO text; a loop's body counts once per iteration.

The number of iterations follows from the loop's condition (`i < N`) and what its body adds to i: XLA's own counts
(`cost_analysis`) see every body once.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

# The last is all that comes from other TPU slices over the data-centre network.
COLLECTIVES = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute', 'between-slices')
# The TPU compiler's reduce-scatter: a fusion of this name with an all-reduce, of which each device keeps its part.
# Nothing but that part is sent to it.
SCATTERED = 'all-reduce-scatter'
# Parts that two texts of one collective have in common, beside kind and result.
SAME = r'channel_id=\d+|replica_groups=\S+(?: \{[^}]*\})?|op_name="[^"]*"'
DTYPE_BITS = {'token': 0, 'pred': 8, 's4': 4, 'u4': 4, 'bf16': 16, 'f16': 16, 'f32': 32, 'f64': 64}

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$')
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\]')
_CALLED = re.compile(r'\b(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)')
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation: `name = shape opcode(operands), attributes`; `rest` is all after the parenthesis."""

  name: str
  shape: str
  opcode: str
  rest: str
  is_root: bool

  @property
  def operands(self) -> list[str]:
    return re.findall(r'%([\w.\-]+)', self.rest.split('), ')[0])

  def attribute(self, name: str) -> str:
    found = re.search(rf'\b{name}=%?([\w.\-]+)', self.rest)
    return found.group(1) if found else ''


Computation = dict[str, Instruction]


def received_bytes(hlo: str, trip_count: int = 1) -> dict[str, int]:
  """Bytes that one device gets from others in one run of a program, by each of `COLLECTIVES`.

  Args:
    hlo: text of the compiled, partitioned module (`compiled.as_text()`).
    trip_count: iterations of a loop whose text does not say how many it takes.
  """
  computations, entry = _parse(hlo)
  totals = dict.fromkeys(COLLECTIVES, 0)
  seen = set()
  for times, computation, instruction in _executed(computations, entry, 1, trip_count):
    kind = _kind(instruction)
    if kind is None:
      continue
    # A TPU spreads one collective over several fusions, whose texts all have it. The channel alone does not tell
    # collectives apart: all of one `shard_map` may have the same.
    if 'channel_id=' in instruction.rest:
      same = (kind, instruction.shape, *re.findall(SAME, instruction.rest))
      if same in seen:
        continue
      seen.add(same)
    received = times * _received(kind, instruction)
    if kind == 'all-reduce' and computation.startswith(SCATTERED):
      totals['reduce-scatter'] += received // 2
    else:
      totals[kind] += received
  return totals


def _parse(hlo: str) -> tuple[dict[str, Computation], str]:
  """Computations by name, and the entry's name."""
  computations: dict[str, Computation] = {}
  entry, current = '', {}
  for line in hlo.splitlines():
    if header := _COMPUTATION.match(line):
      current = computations.setdefault(header.group(2), {})
      entry = header.group(2) if header.group(1) else entry
    elif found := _INSTRUCTION.match(line):
      root, name, shape, opcode, rest = found.groups()
      current[name] = Instruction(name, shape, opcode, rest, bool(root))
  return computations, entry


def _executed(
  computations: Mapping[str, Computation], name: str, times: int, trip_count: int
) -> Iterator[tuple[int, str, Instruction]]:
  """Yields each instruction below a computation: the times that it runs, its own computation, itself."""
  for instruction in computations[name].values():
    yield times, name, instruction
    loops = _iterations(computations, instruction, trip_count) if instruction.opcode == 'while' else 1
    for names in _CALLED.findall(instruction.rest):
      for called in re.findall(r'[\w.\-]+', names):
        if called in computations:
          yield from _executed(computations, called, times * loops, trip_count)


def _iterations(computations: Mapping[str, Computation], loop: Instruction, trip_count: int) -> int:
  """Trip count of a loop `for (i = 0; i < bound; i += step)`; `trip_count` where its text does not say."""
  if known := _TRIPS.search(loop.rest):
    return int(known.group(1))
  condition, body = (computations[loop.attribute(name)] for name in ('condition', 'body'))
  compare = _root(condition)
  if compare.opcode != 'compare' or 'direction=LT' not in compare.rest:
    return trip_count
  counter, bound = (condition.get(name) for name in compare.operands)
  if counter is None or bound is None or bound.opcode != 'constant':
    return trip_count
  return -(-_value(bound) // _step(body, int(counter.attribute('index') or 0)))


def _root(computation: Computation) -> Instruction:
  return next(instruction for instruction in computation.values() if instruction.is_root)


def _step(body: Computation, index: int) -> int:
  """Amount that an iteration adds to the element `index` of the loop's carry."""
  operands = _root(body).operands
  added = body.get(operands[index]) if index < len(operands) else None
  if added is None or added.opcode != 'add':
    return 1
  constants = [body[name] for name in added.operands if name in body and body[name].opcode == 'constant']
  return _value(constants[0]) if constants else 1


def _value(constant: Instruction) -> int:
  return int(constant.rest.split(')')[0])


def _kind(instruction: Instruction) -> str | None:
  if instruction.opcode == 'recv' and 'xla_megascale' in instruction.rest:
    return 'between-slices'
  name = instruction.opcode.removesuffix('-start')
  return name if name in COLLECTIVES else None


def _received(kind: str, instruction: Instruction) -> int:
  """Bytes that a ring moves to a device, the least of any algorithm."""
  sizes = [_bytes(dtype, dims) for dtype, dims in _ARRAY.findall(instruction.shape)]
  if kind == 'between-slices':
    return sizes[0]  # (result, context, token)
  if instruction.opcode.endswith('-start') and kind in ('all-gather', 'collective-permute'):
    # (operands, results, scratch): as many results as operands.
    operands = len(instruction.operands)
    sizes = sizes[operands : 2 * operands]
  size, n = sum(sizes), _group_size(instruction.rest)
  if kind == 'collective-permute':
    return size
  if kind == 'reduce-scatter':
    return size * (n - 1)
  return (2 if kind == 'all-reduce' else 1) * size * (n - 1) // n


def _bytes(dtype: str, dims: str) -> int:
  bits = DTYPE_BITS[dtype] if dtype in DTYPE_BITS else int(re.search(r'\d+', dtype).group())
  return math.prod(int(d) for d in dims.split(',') if d) * bits // 8


def _group_size(attributes: str) -> int:
  """Devices in a group of a collective: {{0,1},{2,3}}, [2,2]<=[4] or mesh['a'=2,'b'=2] {'a'}."""
  if found := re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', attributes):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found.group(1)))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found.group(2)))
  if found := re.search(r'replica_groups=\[(\d+),(\d+)\]', attributes):
    return int(found.group(2))
  if found := re.search(r'replica_groups=\{\{([\d,]*)\}', attributes):
    return found.group(1).count(',') + 1
  return 1
