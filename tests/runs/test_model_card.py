"""The model card of a run: what it was trained from and on, its recipe and its scores, and no path of the machine."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from huggingface_hub import ModelCard

from janus_jax.conversion.adapters import Adapter
from janus_jax.conversion.checkpoint import Checkpoint
from janus_jax.conversion.lazy import from_numpy
from janus_jax.models.config import PRESETS
from janus_jax.runs import workdirs
from janus_jax.runs.config import default_config, parse_config, set_stages, to_json
from janus_jax.runs.model_card import model_card

PARAMS = {'gen_embed/table': from_numpy(np.zeros((1000, 1500), np.float32), '')}
SCORE = {'benchmark': 'pope', 'rule': 'some-rule', 'headline': 71.25, 'rows': 90, 'missing_rows': 10}


def checkpoint(*sources: str) -> Checkpoint:
  return Checkpoint(PRESETS['test_tiny'], PARAMS, {}, {}, sources)


@pytest.fixture
def workdir(tmp_path) -> pathlib.Path:
  """A run of three stages, 10 steps each, at step 16; its metrics go on to step 18."""
  place = str(tmp_path / 'private')
  config = default_config()
  config.init_from, config.data.name, config.mesh.tensor = 'deepseek-ai/Janus-Pro-1B@v1', 'files', 4
  config.data.sources = {
    name: {'kind': kind, 'format': 'json_lines', 'path': f'{place}/{name}.jsonl', **more}
    for name, kind, more in (
      ('chats', 'understanding', {'image_folder': place}),
      ('books', 'text', {}),
      ('later', 'text', {}),
    )
  }
  stage = {'steps': 10, 'batch_size': 4, 'learning_rate': 1e-4, 'trainable': ('gen_head', 'lm|head')}
  text, images = {'text': {'books': 1, 'later': 0}}, {'understanding': {'chats': 1}}
  stages = {
    'first': {**stage, 'ratio': (1, 0, 0), 'sources': {**images, 'text': {'later': 1}}},
    'second': {**stage, 'ratio': (2, 1, 0), 'sources': {**images, **text}, 'schedule': 'cosine'},
    'third': {**stage, 'ratio': (0, 1, 0), 'sources': {'text': {'later': 1}}},
  }
  set_stages(config, stages)
  directory = tmp_path / 'secret' / 'run'
  workdirs.begin(str(directory), to_json(parse_config(config)), checkpoint())
  (directory / 'checkpoints' / '16' / 'params').mkdir(parents=True)
  lines = [{'step': step, 'held_out/text': 4 - step / 10, 'loss': 9.0} for step in (8, 16, 18)]
  (directory / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  for step, figure in ((8, 50.5), (16, 71.25), (18, 99.5)):
    (directory / 'benchmarks' / f'{step:08}' / 'pope').mkdir(parents=True)
    scores = directory / 'benchmarks' / f'{step:08}' / 'pope' / 'scores.json'
    scores.write_text(json.dumps([{**SCORE, 'headline': figure}]))
  return directory


def card_of(workdir: pathlib.Path, suffix: str = '') -> ModelCard:
  params = str(workdir / 'checkpoints' / '16' / 'params')
  return ModelCard(model_card('someone/mine', f'{workdir}{suffix}', checkpoint(str(workdir), params), 'orbax'))


def test_the_card_of_an_adapter(tmp_path):
  config = default_config()
  config.init_from, config.data.name = 'deepseek-community/Janus-Pro-1B', 'files'
  config.data.sources = {'mine': {'kind': 'generation', 'format': 'folder', 'path': str(tmp_path / 'private')}}
  stage = {'steps': 9, 'batch_size': 4, 'learning_rate': 1e-4, 'ratio': (0, 0, 1), 'trainable': ('gen_head',)}
  stage |= {'lora': {'rank': 16}, 'sources': {'generation': {'mine': 1}}}
  set_stages(config, {'tune': stage})
  factors = {'language_model/layers/mlp/up/lora_a': from_numpy(np.zeros((1, 16, 20_000), np.float32), '')}
  adapter = Adapter('deepseek-community/Janus-Pro-1B', {}, factors, {})
  workdir, params = tmp_path / 'run', str(tmp_path / 'run' / 'checkpoints' / '9' / 'params')
  workdirs.begin(str(workdir), to_json(parse_config(config)), checkpoint())
  (workdir / 'checkpoints' / '9').mkdir(parents=True)
  opened = dataclasses.replace(checkpoint(str(workdir), params), adapter=adapter)
  card = ModelCard(model_card('someone/mine', str(workdir), opened, 'peft'))
  assert (card.data.library_name, card.data.base_model) == ('peft', 'deepseek-community/Janus-Pro-1B')
  assert 'An adapter (LoRA) of a Janus' in card.text
  assert ' 0.3 million parameters' in card.text
  assert '| 0.0001 | LoRA of rank 16 and alpha 32, gen_head |' in card.text
  assert "JanusForConditionalGeneration.from_pretrained('deepseek-community/Janus-Pro-1B')" in card.text
  assert 'private' not in card.text


def test_the_card_of_a_run(workdir):
  card = card_of(workdir)
  assert card.data.to_dict() == {
    'base_model': 'deepseek-ai/Janus-Pro-1B',
    'library_name': 'janus_jax',
    'license': 'other',
    'license_name': 'deepseek',
    'license_link': 'https://github.com/deepseek-ai/DeepSeek-LLM/blob/HEAD/LICENSE-MODEL',
    'pipeline_tag': 'any-to-any',
    'tags': ['janus', 'janus_jax'],
  }
  lines = card.text.splitlines()
  assert lines[1] == '# mine'
  assert '1.5 million parameters, float32, layout `orbax`.' in card.text
  assert 'Trained with janus_jax from `deepseek-ai/Janus-Pro-1B@v1`: step 16 of 30.' in lines
  # Nothing of the stage that has not begun, and no source without weight.
  data = lines.index('| source | kind | format |')
  assert lines[data + 2 : data + 5] == ['| chats | understanding | json_lines |', '| books | text | json_lines |', '']
  recipe = lines.index('| stage | steps | rows a step | learning rate | trains | understanding : text : generation |')
  rows, trained = f'4 x {default_config().sequence_length} tokens', 'gen_head, lm\\|head'
  assert lines[recipe + 2 : recipe + 5] == [
    f'| first | 10 | {rows} | 0.0001 | {trained} | 1 : 0 : 0 |',
    f'| second | 6 of 10 | {rows} | 0.0001, cosine | {trained} | 2 : 1 : 0 |',
    '',
  ]
  assert f'- machine: {workdirs.machine()}' in lines
  assert '- mesh: fsdp all the rest, tensor 4' in lines
  assert f'- revision of janus_jax: {(workdir / "revision.txt").read_text().strip()}' in lines
  # The last figures that are not those of later steps.
  assert '| text | 2.400 | 16 |' in lines
  assert 'Benchmarks at step 16:' in lines
  [score] = [line for line in lines if line.startswith('| pope')]
  assert '| 71.2 (partial) |' in score
  assert '| 90 of 100 |' in score
  assert 'transformers' not in card.content
  assert not any(word in card.content for word in ('secret', 'private', str(workdir.parent.parent)))


def test_averages_were_not_scored(workdir):
  card = card_of(workdir, '@ema')
  assert 'step 16 of 30. The parameters are averages' in card.text
  assert '## Recipe' in card.text
  assert '## Scores' not in card.text


def test_a_run_without_metrics_has_no_scores(workdir):
  (workdir / 'metrics.jsonl').unlink()
  (workdir / 'benchmarks').rename(workdir / 'moved')
  assert '## Scores' not in card_of(workdir).text


def test_origins_are_names_or_last_components(tmp_path):
  parts = {'vision_encoder': 'google/siglip', 'vq': 'folder/vq.pt', 'language_model': 'deepseek-ai/llm'}
  composed = ModelCard(model_card('someone/mine', parts, checkpoint(*parts.values()), 'huggingface'))
  assert (composed.data.base_model, composed.data.license) == (['google/siglip', 'deepseek-ai/llm'], 'other')
  assert 'vision_encoder `google/siglip`, vq `vq.pt`, language_model `deepseek-ai/llm`' in composed.text
  local = ModelCard(model_card('someone/mine', f'{tmp_path}/', checkpoint(str(tmp_path)), 'deepseek'))
  assert f'Converted from `{tmp_path.name}`,' in local.text
  assert (local.data.base_model, local.data.license) == (None, None)


def test_parts_of_a_run(workdir):
  path = workdir / 'config.json'
  config = json.loads(path.read_text())
  config['init_from'] = f'vision_encoder=google/siglip,vq={workdir.parent}/vq.pt,language_model=~/llm'
  path.write_text(json.dumps(config))
  card = card_of(workdir)
  assert 'from vision_encoder `google/siglip`, vq `vq.pt`, language_model `llm`: step 16' in card.text
  assert (card.data.base_model, card.data.license) == ('google/siglip', None)
