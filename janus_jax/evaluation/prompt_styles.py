"""Prompts of benchmarks' questions: the text of VLMEvalKit's adapter for Janus, or of lmms-eval's tasks.

VLMEvalKit: `vlmeval/vlm/janus.py` (e8e78f0); lmms-eval 0.7.3: `doc_to_text` of each task. Both to the character.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

from janus_jax.data.prompts import SYSTEM_PROMPT
from janus_jax.data.tokenizer import IMAGE_PLACEHOLDER
from janus_jax.evaluation.multiple_choice import options
from janus_jax.evaluation.rows import Row, is_missing

WORD = '\nAnswer the question using a single word or phrase.'
LETTER = "\nAnswer with the option's letter from the given choices directly."
YES_OR_NO = ' Please answer yes or no.'
THINK = (
  'You are a helpful assistant. Please answer truthfully and write out your thinking step by step to be sure you get '
  'the right answer.'
)
STYLES = ('trained', 'vlmevalkit', 'lmms-eval')


@dataclasses.dataclass(frozen=True)
class Prompt:
  """The user's turn, with a placeholder for each image; and the system prompt, '' for none."""

  text: str
  system: str = SYSTEM_PROMPT


def vlmevalkit_prompt(benchmark: str, row: Row, num_images: int) -> Prompt:
  """The prompt of VLMEvalKit's adapter.

  Args:
    benchmark: a key of `questions.FILES`.
    row: as VLMEvalKit reads it (`rows.as_vlmevalkit_reads`): an option 'None' is none.
    num_images: all of them come first.
  """
  question, system = str(row['question']), ''
  if benchmark in ('pope', 'mme'):
    text = f'\n{question.replace(YES_OR_NO, "") if benchmark == "pope" else question}{WORD}'
  elif benchmark == 'gqa':
    text = f'{question}{WORD}'
  elif benchmark == 'mmvet':
    text, system = f'\n{question}', THINK
  else:
    hint = row.get('hint')
    text = '\n' if is_missing(hint) or hint == '' else f'\nHint: {hint}\n'
    lines = ''.join(f'{letter}. {option}\n' for letter, option in options(row).items())
    text += f'{question}\n{lines}' + (LETTER if lines else 'Answer the question directly. ')
  return Prompt((IMAGE_PLACEHOLDER * num_images + text).strip(), system)


def lmms_text(benchmark: str, row: Row) -> str:
  """The text of lmms-eval's task, without images."""
  question = str(row['question'])
  if benchmark == 'mmmu':
    lines = '\n'.join(f'{letter}. {option}' for letter, option in options(row).items())
    # What ends a prompt stands after a blank line.
    return f'{question}\n{lines}\n{LETTER}' if lines else f'{question}\n{WORD}'
  if benchmark == 'mmbench':
    found = {letter: option for letter, option in options(row, 'ABCDE').items() if option not in ('', 'nan')}
    hint = '' if is_missing(row.get('hint')) or row['hint'] in ('nan', '') else f'{row["hint"]} '
    lines = '\n'.join(['There are several options:', *(f'{letter}. {found[letter]}' for letter in sorted(found))])
    return f'{hint}{question} {lines}\n{LETTER}'
  if benchmark == 'seedbench':
    return question + ''.join(f'\n{letter}. {option}' for letter, option in options(row, 'ABCD').items()) + LETTER
  if benchmark == 'mmvet':
    think = (
      'First please perform reasoning, and think step by step to provide best answer to the following question: \n\n'
    )
    return f'{think}{question}'
  if benchmark in ('pope', 'mme'):
    question = question.strip()
  return f'{question.replace(YES_OR_NO, "") if benchmark == "mme" else question}{WORD}'


def turn_of_parts(parts: Sequence[str | None]) -> str:
  """A turn of texts and images, None for an image: each on lines of its own, as Janus was trained with an image."""
  return '\n'.join(
    IMAGE_PLACEHOLDER if part is None else part.strip() for part in parts if part is None or part.strip()
  )


def lmms_prompt(benchmark: str, row: Row, num_images: int) -> Prompt:
  """The prompt of lmms-eval's task: images first, but MMMU's where its text names them.

  Of a text that names more images than there are (one of them twice) lmms-eval leaves out what stands between.
  """
  text = lmms_text(benchmark, row)
  *before, last = re.split(r'<image [1-7]>', text) if benchmark == 'mmmu' else [text]
  parts = [part for number in range(num_images) for part in (*before[number : number + 1], None)]
  return Prompt(turn_of_parts([*parts, last]))


def trained_prompt(benchmark: str, row: Row, num_images: int) -> Prompt:
  """VLMEvalKit's text after the system prompt that Janus was trained with."""
  return Prompt(vlmevalkit_prompt(benchmark, row, num_images).text)


PROMPTS: dict[str, Callable[[str, Row, int], Prompt]] = {
  'trained': trained_prompt,
  'vlmevalkit': vlmevalkit_prompt,
  'lmms-eval': lmms_prompt,
}
