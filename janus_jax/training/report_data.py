"""The data recipe of the Janus and Janus-Pro reports, over files that a person puts under one directory.

None of these sets can be shipped; what is not public (the in-house images, most of the SFT mixture) is replaced by
whatever lies in the same place. Which source trains in which stage, and at which weights, stands here as the reports
say it (arXiv 2410.13848 section 4.1, arXiv 2501.17811 sections 2.1 and 2.2).
"""

from ml_collections import ConfigDict

DESCRIBE = ('Describe the image in detail.',)  # The Janus paper's question for captions.


def use_report_data(config: ConfigDict, root: str) -> None:
  """Has a config with stages 'stage1' to 'stage3' read the reports' data; changes `config`.

  Args:
    config: of a run.
    root: directory or bucket with sharegpt4v.json and its images/, tensorflow_datasets/ with ImageNet and
      imagenet_names.txt, captions/*.tar, text/*.jsonl, real/*.tar, synthetic/*.tar, sft.json, sft_text.jsonl. Tars are
      img2dataset's; the other formats are described in data/sources.
  """
  images = f'{root}/images'
  config.data.name = 'files'
  config.data.sources = {
    # Stage I: 1.25 M captions of ShareGPT4V, and ImageNet's 1.2 M images by the names of their classes.
    'sharegpt4v': {
      'kind': 'understanding',
      'format': 'json',
      'path': f'{root}/sharegpt4v.json',
      'image_folder': images,
    },
    'imagenet': {
      'kind': 'generation',
      'format': 'tfds',
      'path': 'imagenet2012',
      'directory': f'{root}/tensorflow_datasets',
      'prompt': 'label',
      # TFDS knows the classes as n01440764 and so on; line n of this file is a person's word for class n.
      'names': f'{root}/imagenet_names.txt',
    },
    # Stage II: captions asked for, plain text, and dense text-to-image, real : synthetic 1 : 1 (Pro, section 2.2).
    'captions': {
      'kind': 'understanding',
      'format': 'tars',
      'path': f'{root}/captions/*.tar',
      'image': 'jpg',
      'answer': 'txt',
      'questions': DESCRIBE,
    },
    'text': {'kind': 'text', 'format': 'json_lines', 'path': f'{root}/text/*.jsonl'},
    'real': _drawn(f'{root}/real/*.tar'),
    'synthetic': _drawn(f'{root}/synthetic/*.tar'),
    # Stage III: supervised fine-tuning, in which answers alone are supervised.
    'sft': {'kind': 'understanding', 'format': 'json', 'path': f'{root}/sft.json', 'image_folder': images},
    'sft_text': {
      'kind': 'text',
      'format': 'json_lines',
      'path': f'{root}/sft_text.jsonl',
      'conversations': 'conversations',
    },
  }
  drawn = {'real': 1, 'synthetic': 1}
  config.stages.stage1.sources = {'understanding': {'sharegpt4v': 1}, 'generation': {'imagenet': 1}}
  config.stages.stage2.sources = {'understanding': {'captions': 1}, 'text': {'text': 1}, 'generation': drawn}
  config.stages.stage3.sources = {'understanding': {'sft': 1}, 'text': {'sft_text': 1}, 'generation': drawn}


def _drawn(path: str) -> dict:
  """img2dataset tars; a quarter of the captions keep their first sentence only (Janus paper, 4.1)."""
  return {'kind': 'generation', 'format': 'tars', 'path': path, 'image': 'jpg', 'prompt': 'txt', 'first_sentence': 0.25}
