"""Images for prompts: one does not depend on its batch, mesh or neighbours; bad input is one line."""

import dataclasses

import numpy as np
import pytest

import janus_jax
from janus_jax.errors import InputError
from janus_jax.inference import generation
from janus_jax.inference.batching import Group, device_batch_size
from janus_jax.inference.drawing import Window, generate_codes
from janus_jax.inference.requests import ImageSettings, decoder_for
from janus_jax.sharding.mesh import parse_mesh

SHORT, LONG = 'three red circles', 'There are three, and a blue square. ' * 3


def codes(images: list[list[generation.GeneratedImage]]) -> np.ndarray:
  return np.array([[image.codes for image in row] for row in images])


def test_device_batch_size_where_memory_is_unknown(model):
  assert device_batch_size(decoder_for(model), [Group((0,), 64)], output=36, rows=2) >= 1


def test_images_do_not_depend_on_their_batch(model):
  """Sampled, with guidance."""
  prompts = [SHORT, 'blue', 'a', 'a square', 'many images']
  together = janus_jax.generate_images(model, prompts, batch_size=5, num_images=1)
  alone = janus_jax.generate_images(model, prompts, batch_size=1, num_images=1)
  np.testing.assert_array_equal(codes(together), codes(alone))
  assert len(np.unique(codes(together)[:, 0], axis=0)) == 5
  for (ours,), (theirs,) in zip(together, alone):
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    assert ours.pixels.shape == (16, 16, 3)
    assert np.ptp(ours.pixels) > 50


def test_an_image_belongs_to_its_seed_and_indices(model):
  """Also where prompts of other lengths run in between."""
  one = janus_jax.generate_images(model, [SHORT], num_images=1, batch_size=1)
  more = janus_jax.generate_images(model, [SHORT, LONG, SHORT], num_images=2, batch_size=1)
  np.testing.assert_array_equal(codes(one)[0, 0], codes(more)[0, 0])
  assert len(np.unique(codes(more).reshape(6, -1), axis=0)) == 6
  assert [[(image.prompt_index, image.image_index) for image in row] for row in more] == [
    [(prompt, image) for image in range(2)] for prompt in range(3)
  ]
  other_seed = janus_jax.generate_images(model, [SHORT], num_images=1, seed=1)
  assert (other_seed[0][0].codes != one[0][0].codes).any()


def test_images_of_one_prompt_share_it_and_stay_as_they_are(model, recorded):
  """One prompt is given twice; resumed runs want any subset."""
  prompts, options = [SHORT, 'blue', SHORT], {'temperature': 1.0, 'num_images': 2}
  alone = codes(janus_jax.generate_images(model, prompts, batch_size=1, **options))
  made = recorded(generation, 'generate_codes')
  together = codes(janus_jax.generate_images(model, prompts, batch_size=6, **options))
  np.testing.assert_array_equal(together, alone)
  # Two images of each of three prompts, though two are the same: two batches would take more steps.
  assert [(len(tokens), len(keys)) for (_, tokens, _, keys), _ in made] == [(6, 6)]
  assert len(np.unique(alone.reshape(6, -1), axis=0)) == 6
  rows = generation.prompt_rows(model.config, prompts, *model.tokenizer_and_template())
  wanted = [(1, 0), (2, 1), (0, 0)]  # The row after the first is a copy of it.
  settings = ImageSettings(temperature=1.0, batch_size=4)
  stream = generation.stream_images(decoder_for(model), rows, wanted, model.tokenizer.special.pad, settings)
  found = {(image.prompt_index, image.image_index): image.codes for image in stream}
  assert set(found) == set(wanted)
  for pair in wanted:
    np.testing.assert_array_equal(found[pair], alone[pair])


def test_guidance_goes_from_the_unconditional_to_the_conditional_row(model, recorded):
  """Weight 0 ignores the prompt (of equal length), weight 1 is none; either runs one row an image."""
  prompts = ['a red cube', 'a tan cube']
  assert len({len(row) for row in generation.prompt_rows(model.config, prompts, *model.tokenizer_and_template())}) == 1
  calls = recorded(generation, 'generate_codes')

  def generated(prompt: str, weight: float) -> list[int]:
    images = janus_jax.generate_images(model, [prompt], num_images=1, cfg_weight=weight)
    return codes(images)[0, 0].tolist()

  (zero, almost_zero, almost_one, one, five), others = (
    [generated(prompt, weight) for weight in (0, 1e-6, 1 - 1e-6, 1, 5)] for prompt in prompts
  )
  assert zero == almost_zero == others[0]
  assert one == almost_one != others[3]
  assert len({tuple(zero), tuple(one), tuple(five)}) == 3
  assert [len(tokens) for (_, tokens, _, _), _ in calls] == 2 * [1, 2, 2, 1, 2]


def test_a_mesh_generates_the_same(checkpoint, model):
  spread = janus_jax.load(checkpoint, mesh=parse_mesh('tensor=2,fsdp=2,data=-1'))
  kernel = spread.params['language_model']['lm_head']['kernel']
  assert kernel.addressable_shards[0].data.size == kernel.size // 4
  prompts, how = [SHORT, SHORT.upper()], {'num_images': 4, 'batch_size': 8}
  expected = janus_jax.generate_images(model, prompts, **how)
  for window in (1, 4):
    images = janus_jax.generate_images(spread, prompts, window=window, **how)
    np.testing.assert_array_equal(codes(images), codes(expected))


def test_rows_are_split_over_devices(checkpoint, recorded):
  """Each of eight computes an eighth, and stores the keys and values of an eighth: without, all do all of it."""
  spread = janus_jax.load(checkpoint, mesh=parse_mesh('data=-1'))
  calls, found = recorded(generation, 'generate_codes'), []
  for janus in (spread, dataclasses.replace(spread, spread=None)):
    janus_jax.generate_images(janus, [SHORT], num_images=128, batch_size=128, window=1)
    (args, how) = calls.pop()
    compiled = generate_codes.lower(*args, **how).compile()
    found.append((compiled.cost_analysis()['flops'], compiled.memory_analysis().temp_size_in_bytes))
  (flops, held), (all_flops, all_held) = found
  assert flops < all_flops / 4
  assert held < all_held / 3


def test_images_do_not_depend_on_the_window(model, recorded, monkeypatch):
  """Of prompts of unequal length, several images of each, in batches."""
  prompts, options = [SHORT, LONG, 'blue'], {'num_images': 3, 'batch_size': 6, 'temperature': 0.8}
  one = codes(janus_jax.generate_images(model, prompts, window=1, **options))
  calls = recorded(generation, 'generate_codes')
  np.testing.assert_array_equal(codes(janus_jax.generate_images(model, prompts, window=5, **options)), one)
  assert {settings['window'] for _, settings in calls} == {Window(5)}
  asked = []
  monkeypatch.setattr(generation, 'choose_window', lambda *_, **how: asked.append(how['batches']) or Window(4, 1.0))
  calls.clear()
  np.testing.assert_array_equal(codes(janus_jax.generate_images(model, prompts, **options)), one)
  assert {settings['window'] for _, settings in calls} == {Window(4, 1.0)}
  assert asked == [len(calls)] * len({tokens.shape for (_, tokens, _, _), _ in calls})


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'prompts': ['']}, 'prompt 1 of 1: the prompt is empty: expected text'),
    ({'prompts': [SHORT, ' \n']}, 'prompt 2 of 2: the prompt is empty: expected text'),
    ({'prompts': SHORT}, f'prompts is the string {SHORT!r}: expected a list of strings'),
    ({'num_images': 0}, 'num_images is 0: expected 1 or more'),
    ({'batch_size': 0}, 'batch_size is 0: expected 1 or more'),
    ({'seed': 2**32}, f'seed is {2**32}: expected 0 to 2^32 - 1'),
    ({'cfg_weight': float('nan')}, 'cfg_weight is nan: expected 0 or more (1: no guidance)'),
    ({'temperature': -1.0}, 'temperature is -1.0: expected 0 (greedy) or more, and finite'),
    ({'top_p': 0.0}, 'top_p is 0.0: expected more than 0 and at most 1'),
    ({'window': 0}, 'window is 0: expected auto, or 1 or more'),
    ({'window': -3}, 'window is -3: expected auto, or 1 or more'),
    ({'window': 'all'}, 'window is all: expected auto, or 1 or more'),
    ({'window': 17}, 'window is 17: expected auto, or 1 to 16, the codes of an image'),
  ],
)
def test_bad_requests_for_images(model, options, message):
  with pytest.raises(InputError) as error:
    janus_jax.generate_images(model, **{'prompts': [SHORT], **options})
  assert str(error.value) == message


def test_a_prompt_leaves_room_for_its_image(model):
  config = model.config
  room = config.language_model.max_positions - config.vq.num_tokens + 1
  with pytest.raises(InputError, match=rf'^prompt 1 of 1: the prompt has \d+ tokens: expected at most {room}$'):
    janus_jax.generate_images(model, ['red ' * 600])


def test_a_workdir_states_how_its_model_is_sampled(model):
  stated = dataclasses.replace(model, sampling={'cfg_weight': 1.0, 'temperature': 0.5})
  options = {'num_images': 1, 'seed': 3}
  found = codes(generation.generate_images(stated, ['a cat'], **options))
  expected = codes(generation.generate_images(model, ['a cat'], cfg_weight=1.0, temperature=0.5, **options))
  np.testing.assert_array_equal(found, expected)
  given = codes(generation.generate_images(stated, ['a cat'], generation.ImageSettings(**options)))
  np.testing.assert_array_equal(given, codes(generation.generate_images(model, ['a cat'], **options)))
