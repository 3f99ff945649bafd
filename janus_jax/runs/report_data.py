"""The data of the Janus and Janus-Pro reports, over files that a person puts under one directory.

None of these sets can be shipped; what is not public (the in-house images, most of the SFT mixture) is replaced by
whatever lies in the same place. configs/README.md has what the reports say of it (arXiv 2410.13848 section 4.1,
arXiv 2501.17811 sections 2.2 and 2.3) and where they are silent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from janus_jax.data.examples import TASKS
from janus_jax.errors import InputError
from janus_jax.runs.config import set_stages
from janus_jax.training.stages import Stage

# {stage: {task: {source: weight}}}.
Mixtures = Mapping[str, Mapping[str, Mapping[str, int]]]

STAGE1 = {'understanding': {'sharegpt4v': 1}, 'generation': {'imagenet': 1}}
JANUS_STAGE2 = {'understanding': {'captions': 1, 'interleaved': 1}, 'text': {'text': 1}}
STAGE3 = {'understanding': {'sft': 1}, 'text': {'sft_text': 1}, 'generation': {'sft_real': 1}}
JANUS: Mixtures = {
  'stage1': STAGE1,
  # ImageNet for the first 120K of 180K steps, then captions.
  'stage2_imagenet': {**JANUS_STAGE2, 'generation': {'imagenet': 1}},
  'stage2': {**JANUS_STAGE2, 'generation': {'real_cut': 1}},
  'stage3': STAGE3,
}
JANUS_PRO: Mixtures = {
  'stage1': STAGE1,
  # Real : synthetic 1 : 1 in the unified pretraining stage; nothing is said of Stage III.
  'stage2': {'understanding': {'captions': 1}, 'text': {'text': 1}, 'generation': {'real': 1, 'synthetic': 1}},
  'stage3': STAGE3,
}

# What an image adds to an example: 576 features and the two tokens that enclose them; begin-of-image and 575 codes, as
# the last code is only predicted. Begin and end of a sentence count with the text.
UNDERSTOOD, GENERATED = 578, 576
PATCH = 16  # Pixels along a side of what a feature, or a code, stands for.
# Mean length of an example of each source in tokens. `plan` assumes it; no run depends on it, and `data_check` measures
# it on the files that are there.
TOKENS: Mapping[str, int] = {
  # 826 characters (ShareGPT4V paper, Table 1, its 1.2 M captions) at 4.5 to a token.
  'sharegpt4v': UNDERSTOOD + 2 + 184,
  # One to three words.
  'imagenet': GENERATED + 1 + 4,
  # As sharegpt4v, after a question of 7 tokens.
  'captions': UNDERSTOOD + 2 + 7 + 184,
  # Not known of either set: two images, and as much text as a short web page has.
  'interleaved': 2 * UNDERSTOOD + 2 + 400,
  # 600 G tokens in 968 M documents (RefinedWeb), the mean of a web page; pieces of the long ones count as examples.
  'text': 620,
  # Dense captions of four or five sentences; the reports do not say how long theirs are.
  'real': GENERATED + 1 + 100,
  'synthetic': GENERATED + 1 + 100,
  # A quarter of them cut to a sentence.
  'real_cut': GENERATED + 1 + 80,
  # The same in a turn, with its roles.
  'sft_real': GENERATED + 1 + 100 + 6,
  # One image, a system prompt of 35 tokens, and two or three questions with answers of a few sentences. Not known.
  'sft': UNDERSTOOD + 2 + 35 + 300,
  # A question or two with answers of a few paragraphs. Not known.
  'sft_text': 700,
}


def use_report_data(config: ConfigDict, mixtures: Mixtures, root: str) -> None:
  """Gives the stages of a config the lengths of the reports' data and, with a root, has them read it.

  Args:
    config: a run's, with the stages of `mixtures`; is changed.
    mixtures: the sources of each stage.
    root: directory or bucket with sharegpt4v.json and its images/, tensorflow_datasets/ with ImageNet and
      imagenet_names.txt, captions/*.tar, interleaved/*.jsonl (Janus), text/*.jsonl, real/*.tar, synthetic/*.tar (Pro),
      sft.json, sft_text.jsonl. Tars are img2dataset's; the other formats are described in configs/README.md. '' leaves
      the sources of the config as they are.
  """
  for name, tasks in mixtures.items():
    config.stages[name].expected_tokens = expected_tokens(tasks)
  if not root:
    return
  used = {source for tasks in mixtures.values() for weights in tasks.values() for source in weights}
  config.data.name = 'files'
  config.data.sources = {source: entry for source, entry in _entries(root).items() if source in used}
  for name, tasks in mixtures.items():
    config.stages[name].sources = {task: dict(weights) for task, weights in tasks.items()}


def read_options(text: str) -> tuple[str, tuple[int, ...]]:
  """'ROOT,sizes=384-512-768' -> ('ROOT', (384, 512, 768)); either may be left out.

  Raises:
    InputError: sizes that are not numbers, or do not ascend.
  """
  *root, option = text.split(',') if 'sizes=' in text else (text, '')
  if not option:
    return text, ()
  name, _, values = option.partition('=')
  sizes = tuple(int(value) for value in values.split('-') if value.isdecimal())
  if name != 'sizes' or len(sizes) < values.count('-') + 1 or sorted(set(sizes)) != list(sizes):
    raise InputError(f'{option!r}: expected sizes=A-B-..., ascending, in pixels, such as sizes=384-512-768')
  return ','.join(root), sizes


def add_sizes(config: ConfigDict, sizes: Sequence[int]) -> None:
  """Lets images grow after Stage III: the stages of a config train on the first size, and each other one gets a stage
  `stage4_SIZE`, `stage5_SIZE`, ... as Stage III is, of a quarter of its steps; their rates begin with 4e-5 and halve.

  No report has such stages. The rates are what models of this kind were trained with at 512 and 1,024 pixels (SimpleAR,
  arXiv 2504.11455; Wallaroo, arXiv 2603.04980: 1e-4 and 1e-5); the steps are a guess.
  """
  if not sizes:
    return
  first, last = config.stages[config.run[0]], config.stages[config.run[-1]]
  first.image_size = first.generation_size = sizes[0]
  added = {}
  for number, size in enumerate(sizes[1:], start=1):
    grown = (size // PATCH) ** 2 - (sizes[0] // PATCH) ** 2
    understanding, text, generation = last.expected_tokens
    added[f'stage{len(config.run) + number}_{size}'] = {
      **last.to_dict(),
      'steps': last.steps // 4,
      'learning_rate': 4e-5 / 2 ** (number - 1),
      'image_size': size,
      'generation_size': size,
      'expected_tokens': (understanding + grown, text, generation + grown),
    }
  set_stages(config, {**{name: config.stages[name].to_dict() for name in config.run}, **added})


def expected_tokens(sources: Mapping[str, Mapping[str, int]]) -> tuple[float, ...]:
  """Mean length of an example of each task, by TOKENS; the default of all configs for a task without sources."""
  means = dict(zip(TASKS, Stage.expected_tokens))
  for task, weights in sources.items():
    means[task] = sum(TOKENS[source] * weight for source, weight in weights.items()) / sum(weights.values())
  return tuple(means[task] for task in TASKS)


def _entries(root: str) -> dict[str, dict[str, Any]]:
  """`config.data.sources` of all sources. Pretraining is raw (Janus paper, section 4.1), fine-tuning is chat."""
  raw, lines, folder = {'template': 'raw'}, {'format': 'json_lines'}, {'image_folder': f'{root}/images'}
  text, seen, made = ({'kind': kind} for kind in ('text', 'understanding', 'generation'))
  captioned = {**made, 'format': 'tars', 'prompt': 'txt'}
  real = {**captioned, 'path': f'{root}/real/*.tar'}
  # TFDS knows the classes as n01440764 and so on; line n of `names` is a person's word for class n.
  imagenet = {'format': 'tfds', 'path': 'imagenet2012', 'prompt': 'label', 'names': f'{root}/imagenet_names.txt'}
  caption = {'answer': 'txt', 'questions': ('Describe the image in detail.',)}
  interleaved = {'image': 'images', 'interleaved': 'text'}
  return {
    # Stage I: `<image><text>` of ShareGPT4V's captions, `<category_name><image>` of ImageNet.
    'sharegpt4v': {**seen, **raw, **folder, 'format': 'json', 'path': f'{root}/sharegpt4v.json'},
    'imagenet': {**made, **raw, **imagenet, 'directory': f'{root}/tensorflow_datasets'},
    # Stage II: `<image>Describe the image in detail.<caption>`, documents, documents with images, `<caption><image>`.
    'captions': {**seen, **raw, **caption, 'format': 'tars', 'path': f'{root}/captions/*.tar'},
    'interleaved': {**seen, **lines, **folder, **interleaved, 'path': f'{root}/interleaved/*.jsonl'},
    'text': {**text, **lines, 'path': f'{root}/text/*.jsonl'},
    'real': {**real, **raw},
    'real_cut': {**real, **raw, 'first_sentence': 0.25},
    'synthetic': {**captioned, **raw, 'path': f'{root}/synthetic/*.tar'},
    # Stage III: conversations, of which the answers are supervised.
    'sft': {**seen, **folder, 'format': 'json', 'path': f'{root}/sft.json'},
    'sft_text': {**text, **lines, 'path': f'{root}/sft_text.jsonl', 'conversations': 'conversations'},
    'sft_real': real,
  }
