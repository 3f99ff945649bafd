"""What both judges share: their file, which a run that was stopped goes on with, and the flags of `score`."""

import sys

import pytest
from e2e import forks

from janus_jax.errors import InputError
from janus_jax.evaluation import judges
from janus_jax.evaluation.rows import read_rows


def test_a_judge_that_was_stopped_goes_on(tmp_path):
  path, images = str(tmp_path / 'out' / 'said.jsonl'), judges.Images(str(tmp_path), None, allow_partial=False)
  wanted = [{'file': f'{i}.png', 'crc32': i} for i in range(4)]
  asked = []

  def judge(root, row):
    with open(path) as file:  # A killed run loses the row at hand, no more.
      assert len(file.readlines()) == row['crc32']
    asked.append(row['file'])
    if asked == ['0.png', '1.png', '2.png']:
      raise KeyboardInterrupt
    return {'answer': row['crc32'] % 2}

  def say(rows=wanted, names='a judge'):
    return judges.judge_missing(path, rows, ('file',), images, judges.Judge(names, judge))

  with pytest.raises(KeyboardInterrupt):
    say()
  with open(path, 'a') as file:
    file.write('{"file": "2.png", "ans')  # As if it had been killed while it wrote.
  rows = say()
  assert asked == ['0.png', '1.png', '2.png', '2.png', '3.png']
  assert rows == [{**row, 'judge': 'a judge', 'answer': i % 2} for i, row in enumerate(wanted)]
  assert read_rows(path) == rows
  assert say() == rows
  assert len(asked) == 5
  for other, message in (
    ({'names': 'another'}, "0.png has judge 'a judge'"),
    ({'rows': [*wanted[:3], {'file': '3.png', 'crc32': 9}]}, '3.png has crc32 3'),
    ({'rows': wanted[:3]}, '3.png has an image that is not here'),
  ):
    with pytest.raises(InputError, match=f'is of other images or of another judge: {message}: expected another --out'):
      say(**other)


@pytest.mark.parametrize(
  ('arguments', 'message', 'code'),
  [
    (['--benchmark=geneval'], '--predictions or --images is missing: expected', 2),
    (['--benchmark=geneval', '--predictions=y', '--clip=z'], '--clip judges --images', 2),
    (['--benchmark=geneval', '--images=x', '--clip=z'], 'images of geneval are judged by --detector and --clip', 2),
    (['--benchmark=pope', '--images=x'], 'pope has no images: expected no --images', 2),
  ],
)
def test_wrong_arguments_are_one_line(arguments, message, code, tmp_path):
  command = [sys.executable, '-m', 'janus_jax.score', *arguments, f'--out={tmp_path / "out"}']
  found = forks.run(command)
  assert (found.returncode, found.stdout) == (code, ''), found.stderr
  assert message in found.stderr
  assert len(found.stderr.strip().splitlines()) == 1
  assert not (tmp_path / 'out').exists()
