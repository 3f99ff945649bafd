"""Table of a machine's figures, for a terminal and as Markdown for a README."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from janus_jax.sharding.accelerators import GIB

Found = Mapping[str, Any]  # Content of figures.json.
BUSY = 0.5  # Load average, above which times on a CPU are worth little.


def table_to_text(found: Found) -> str:
  """Aligned lines, parts and their results; what failed or was left out says why."""
  rows = list(_rows(found))
  width = max((len(title) for title, _ in rows), default=0)
  note = found['machine']['note']
  lines = [_heading(found), *([note] if note else []), *(f'  {title:{width}}  {value}' for title, value in rows)]
  return '\n'.join(lines)


def table_to_markdown(found: Found) -> str:
  """Markdown of the same table, of the commands, and of the longest operations of each trace."""
  note = found['machine']['note']
  lines = [f'{_heading(found)}.', '', *([f'{note}.', ''] if note else []), '| part | result |', '|---|---|']
  lines += [f'| {_cell(title)} | {_cell(value)} |' for title, value in _rows(found)]
  lines += ['', 'Commands:', '', '```bash', *(part['command'] for part in found['parts']), '```']
  for part in found['parts']:
    if longest := (part['figures'] or {}).get('longest_operations'):
      lines += ['', f'{part["title"]}, the operations that took longest:', '', *_operations(longest)]
  return '\n'.join(lines)


def _heading(found: Found) -> str:
  machine = found['machine']
  count = f'{machine["devices"]} x ' if machine['devices'] > 1 else ''
  return f'{count}{machine["kind"]}, {machine["memory"] / GIB:.0f} GiB, {machine["versions"]}, {found["date"]}'


def _rows(found: Found) -> Iterator[tuple[str, str]]:
  for part in found['parts']:
    figures = part['figures']
    if part['error']:
      yield part['title'], f'{part["status"]}: {part["error"]}'
    if figures:
      for detail, value in _ROWS[figures['mode']](figures):
        yield f'{part["title"]}{detail}', value
      if part['load'] > BUSY and found['machine']['platform'] == 'cpu' and figures['mode'] != 'check':
        yield f'{part["title"]}, busy machine', f'load average {part["load"]:.1f} before: not to be compared'


def _check_rows(figures: Found) -> Iterator[tuple[str, str]]:
  checks = figures['checks']
  wrong = [check for check in checks if not check['ok']]
  yield '', f'{len(checks) - len(wrong)} of {len(checks)} as they should be'
  done = [check for check in checks if check['check'].startswith('attention') and check['difference'] is not None]
  for kernel in sorted({check['check'].split(',')[0] for check in done}):
    own = [check for check in done if check['check'].startswith(f'{kernel},')]
    largest = max(check['difference'] for check in own)
    yield f', {kernel}', f'off by {largest:.2%} at most ({own[0]["tolerance"]:.0%} allowed)'
  for check in wrong:
    difference = check.get('error') or f'off by {check["difference"]:.3g}, {check["tolerance"]:.3g} allowed'
    yield f', {check["check"]}', f'wrong: {difference}'


def _training_rows(figures: Found) -> Iterator[tuple[str, str]]:
  step, mfu = figures['step_seconds']['median'], figures['mfu']
  speeds = f'{figures["tokens_per_second"]:,.0f} tokens/s, {figures["images_per_second"]:.3g} images/s'
  yield '', f'{step:.3g} s a step, {speeds}'
  if mfu is not None:
    yield ', MFU', f'{mfu:.1%}, {figures["mfu_with_encoders"]:.1%} with both encoders'
  how = f'{figures["rows"]} rows, remat {figures["remat"]}, attention {figures["attention"]}'
  memory = f'{_memory(figures)}, compiled in {figures["compile_seconds"]:.0f} s'
  yield ', how', f'{how}, {figures["compute_dtype"]}, {memory}'
  yield from _peer_rows(figures, 'step_seconds', 'a step')


def _image_rows(figures: Found) -> Iterator[tuple[str, str]]:
  for row in figures['images']:
    count, seconds = row['batch'], row['seconds_per_image'] * row['batch']
    fraction = row['share_of_roofline']
    bound = '' if fraction is None else f', codes at {fraction:.0%} of what the memory allows'
    yield f', {count} at a time', f'{seconds:.3g} s, {row["images_per_second"]:.3g} images/s{bound}'
    yield from _peer_rows(row, 'seconds_of_codes', 'the codes')
  yield ', how', f'{figures["compute_dtype"]}, weights {figures["weights"]}, {_memory(figures)}'


def _answer_rows(figures: Found) -> Iterator[tuple[str, str]]:
  for row in figures['answers']:
    first, rate = row['seconds_to_first_token']['median'], row['tokens_per_second_after_first']
    yield f', {row["batch"]} at a time', f'first token after {first:.3g} s, then {rate:.4g} tokens/s'
    yield from _peer_rows(row, 'seconds_of_answer', 'an answer')


def _peer_rows(figures: Found, name: str, what: str) -> Iterator[tuple[str, str]]:
  if f'peer_{name}' in figures:
    times, theirs = figures[f'times_the_peer_by_{name}']['median'], figures[f'peer_{name}']['median']
    yield ', transformers', f'{theirs:.3g} s for {what}: {times:.2f} times as long'


def _memory(figures: Found) -> str:
  name = next(name for name in figures if name.startswith('peak_bytes_of_'))
  return f'at most {figures[name] / GIB:.1f} GiB of the {name.removeprefix("peak_bytes_of_")}'


def _operations(longest: Sequence[Found]) -> list[str]:
  rows = [
    f'| {_cell(row["operation"])} | {row["seconds"]:.4g} | {row["calls"]} | {row["share"]:.1%} |' for row in longest
  ]
  return ['| operation | seconds | calls | share |', '|---|---|---|---|', *rows]


def _cell(text: str) -> str:
  return text.replace('|', '\\|')


_ROWS = {'check': _check_rows, 'train': _training_rows, 'generate': _image_rows, 'understand': _answer_rows}
