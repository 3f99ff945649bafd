"""The Python calls: a result does not depend on its batch, mesh or neighbours; bad input is one line."""

import dataclasses
import itertools
import shutil
import types

import jax
import numpy as np
import pytest
from PIL import Image

pytest.importorskip('torch')
pytest.importorskip('transformers')

import small_checkpoint
from conversion.fixtures import BOS, EOS, JANUS_TOKENS, make_tokenizer

import janus_jax
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import InputError
from janus_jax.inference import answering, generation, requests
from janus_jax.inference.batching import Group, device_batch_size
from janus_jax.inference.requests import AnswerSettings, ImageSettings, decoder_for
from janus_jax.sharding.mesh import parse_mesh

SHORT, LONG = 'three red circles', 'There are three, and a blue square. ' * 3


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  return small_checkpoint.write(tmp_path_factory.mktemp('api') / 'checkpoint')


@pytest.fixture(scope='module')
def model(checkpoint):
  return janus_jax.load(checkpoint)


def picture(seed: int) -> Image.Image:
  return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def recorded(monkeypatch: pytest.MonkeyPatch, module: types.ModuleType, name: str) -> list[tuple[tuple, dict]]:
  """Arguments of the calls that the module makes of a function, which still happens."""
  calls, function = [], getattr(module, name)
  monkeypatch.setattr(module, name, lambda *args, **kwargs: calls.append((args, kwargs)) or function(*args, **kwargs))
  return calls


def codes(images: list[list[generation.GeneratedImage]]) -> np.ndarray:
  return np.array([[image.codes for image in row] for row in images])


def test_device_batch_size_where_memory_is_unknown(model):
  assert device_batch_size(decoder_for(model), [Group((0,), 64)], output=36, rows=2) >= 1


def test_pictures_do_not_depend_on_their_batch(model):
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


def test_a_picture_belongs_to_its_seed_and_indices(model):
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


def test_pictures_of_one_prompt_share_it_and_stay_as_they_are(model, monkeypatch):
  """One prompt is given twice; resumed runs want any subset."""
  prompts, options = [SHORT, 'blue', SHORT], {'temperature': 1.0, 'num_images': 2}
  alone = codes(janus_jax.generate_images(model, prompts, batch_size=1, **options))
  drawn = recorded(monkeypatch, generation, 'generate_codes')
  together = codes(janus_jax.generate_images(model, prompts, batch_size=6, **options))
  np.testing.assert_array_equal(together, alone)
  # Two pictures of each of three prompts, though two are the same: two batches would take more steps.
  assert [(len(tokens), len(keys)) for (_, tokens, _, keys), _ in drawn] == [(6, 6)]
  assert len(np.unique(alone.reshape(6, -1), axis=0)) == 6
  rows = generation.prompt_rows(model.config, prompts, *model.tokenizer_and_template())
  wanted = [(1, 0), (2, 1), (0, 0)]  # The row after the first is a copy of it.
  settings = ImageSettings(temperature=1.0, batch_size=4)
  stream = generation.stream_images(decoder_for(model), rows, wanted, model.tokenizer.special.pad, settings)
  found = {(image.prompt_index, image.image_index): image.codes for image in stream}
  assert set(found) == set(wanted)
  for pair in wanted:
    np.testing.assert_array_equal(found[pair], alone[pair])


def test_what_is_rounded_reaches_the_decoder(model, monkeypatch):
  """And is what the same decoder draws and says; both calls end in functions that `decoder_for` feeds."""
  options = {'weights': 'int8_products', 'cache_dtype': 'int8'}
  drawn, said = recorded(monkeypatch, generation, 'generate_codes'), recorded(monkeypatch, answering, 'generate_text')
  janus_jax.generate_images(model, [SHORT], num_images=1, **options)
  janus_jax.answer(model, [[picture(0)]], ['What?'], max_new_tokens=2, **options)
  for (decoder, *_), _ in (*drawn, *said):
    assert decoder.cache_dtype == 'int8'
    assert decoder.compute.integer_products
    assert decoder.layers[0]['attn']['q_k_v']['int8'].dtype == 'int8'
  assert len(drawn) == len(said) == 1
  with pytest.raises(InputError, match="weights are 'int4': expected one of full"):
    janus_jax.generate_images(model, [SHORT], weights='int4')
  with pytest.raises(InputError, match=r"key/value cache is 'int4': expected one of float32"):
    janus_jax.answer(model, [[]], ['What?'], cache_dtype='int4')


def test_guidance_goes_from_the_unconditional_to_the_conditional_row(model, monkeypatch):
  """Weight 0 ignores the prompt (of equal length), weight 1 is none; either runs one row an image."""
  prompts = ['a red cube', 'a tan cube']
  assert len({len(row) for row in generation.prompt_rows(model.config, prompts, *model.tokenizer_and_template())}) == 1
  calls = recorded(monkeypatch, generation, 'generate_codes')

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


def test_kernels_are_those_of_the_device_where_parameters_lie_on_one(checkpoint, model, monkeypatch):
  """Of several devices, those that XLA can split; and kernels are not joined, which would have to move then."""
  monkeypatch.setattr(requests, 'platform_of', lambda device: 'tpu')
  spread = janus_jax.load(checkpoint, mesh=parse_mesh('fsdp=-1'))
  found = [decoder_for(either) for either in (model, spread)]
  kernels = [(decoder.compute.attention, decoder.compute.vision_attention) for decoder in found]
  assert kernels == [('auto', 'splash'), ('xla', 'xla')]
  assert [set(decoder.layers[0]['attn']) for decoder in found] == [{'q_k_v', 'o'}, {'q', 'k', 'v', 'o'}]


def test_a_mesh_draws_the_same(checkpoint, model):
  spread = janus_jax.load(checkpoint, mesh=parse_mesh('tensor=2,fsdp=2,data=-1'))
  kernel = spread.params['language_model']['lm_head']['kernel']
  assert kernel.addressable_shards[0].data.size == kernel.size // 4
  expected = janus_jax.generate_images(model, [SHORT], num_images=1)
  np.testing.assert_array_equal(codes(janus_jax.generate_images(spread, [SHORT], num_images=1)), codes(expected))


def test_answers_do_not_depend_on_their_batch(model):
  """Sampled; none, one and two images; an earlier turn."""
  images = [[], [picture(0)], [picture(1), picture(2)], [picture(3)], [picture(4)]]
  questions = ['How many?', 'Describe this image in detail.', 'Are they equal?', ['What?', 'A square.', 'Blue?'], SHORT]
  options = {'max_new_tokens': 20, 'temperature': 1.0, 'top_p': 0.9, 'seed': 3}
  together = janus_jax.answer(model, images, questions, batch_size=5, **options)
  assert together == janus_jax.answer(model, images, questions, batch_size=1, **options)
  assert len({tuple(answer.token_ids) for answer in together}) == 5
  for answer in together:
    assert answer.text == model.tokenizer.decode(answer.token_ids)
  swapped = janus_jax.answer(model, [images[0], [picture(9)]], questions[:2], **options)
  assert swapped[0] == together[0]
  assert swapped[1] != together[1]


def test_questions_about_one_image_share_it_and_are_answered_as_alone(model, monkeypatch):
  """Among others: about another image, about none, about the same with words before it, about two."""
  first, other = picture(0), picture(1)
  asked = [
    ([first], 'How many?'),
    ([other], LONG),
    ([first], ['What?', 'A square.', 'Blue?']),
    ([], 'How many?'),
    ([first], 'Look: <image_placeholder> How many?'),
    ([first, other], 'Are they equal?'),
    ([first], LONG),
    ([other], 'How many?'),
    ([first, other], 'How many?'),
    ([], 'How many?'),
  ]
  images, questions = zip(*asked)
  options = {'max_new_tokens': 20, 'temperature': 1.0, 'seed': 3}
  alone = janus_jax.answer(model, images, questions, batch_size=1, **options)
  calls = recorded(monkeypatch, answering, 'generate_text')
  together = janus_jax.answer(model, images, questions, batch_size=8, **options)
  assert together == alone
  prefilled = [
    (len(prompts.tokens), len(keys), len(prompts.pixels), prompts.rest is not None)
    for (_, prompts, keys), _ in calls
    if prompts.pixels is not None
  ]
  # Prompts, rows, images, whether there are two passes. First and other (of which a row is repeated), alone, both.
  assert sorted(prefilled) == sorted([(2, 6, 2, True), (1, 1, 1, False), (1, 2, 2, True)])


def test_what_questions_must_have_in_common_to_share(model):
  near = np.array(picture(0))
  near[5, 5, 2] ^= 1
  asked = [
    ([picture(0)], 'How many?'),
    ([Image.fromarray(near)], 'How many?'),
    ([picture(0)], 'Blue?'),
    ([picture(0), picture(1)], 'How many?'),
    ([picture(1), picture(0)], 'How many?'),
    ([picture(0)], 'Look: <image_placeholder> How many?'),
    ([], 'How many?'),
    ([], 'How many?'),
    ([picture(0)], 'How many?'),
  ]
  prepared = answering.prepare_questions(model.config, *zip(*asked), *model.tokenizer_and_template())
  groups = [group.members for group in answering.group_questions(prepared)]
  assert groups == [(0, 2, 8), (1,), (3,), (4,), (5,), (6,), (7,)]


def test_a_shared_encoder_is_asked_at_the_size_and_length_of_drawings(model):
  vq = dataclasses.replace(model.config.vq, image_size=2 * model.config.vq.image_size)
  shared = dataclasses.replace(model.config, vq=vq, shared_encoder=True)
  question = answering.prepare_question(shared, [picture(9)], SHORT, *model.tokenizer_and_template())
  assert question.pixels.shape == (1, vq.image_size, vq.image_size, 3)
  assert question.ids.count(shared.image_token_id) == vq.num_tokens
  assert vq.num_tokens != shared.vision_encoder.num_tokens


def test_an_answer_ends_before_the_end_token(model):
  special = model.tokenizer.special
  decoder = decoder_for(model)
  asked = [[], []], ['How many?', SHORT]
  questions = answering.prepare_questions(model.config, *asked, *model.tokenizer_and_template())

  def answers(eos_id: int) -> list[list[int]]:
    ids, settings = dataclasses.replace(special, eos=eos_id), AnswerSettings(max_new_tokens=50)
    parts = zip(*answering.stream_tokens(decoder, questions, [0, 1], ids, settings))
    return [list(itertools.chain(*row)) for row in parts]

  free = answers(special.eos)
  assert [len(ids) for ids in free] == [50, 50]
  # Past the first chunk of steps, and in one row only.
  end = next(token for token in free[0][36:] if token not in free[0][:36] and token not in free[1])
  assert answers(end) == [free[0][: free[0].index(end)], free[1]]


def test_an_answer_ends_with_the_positions(model):
  config = model.config
  limit = config.language_model.max_positions

  def length(question: str) -> int:
    return len(answering.prepare_question(config, [], question, *model.tokenizer_and_template()).ids)

  long = SHORT + ' ' * (limit - 20 - length(SHORT)) + '.'
  room = limit - length(long) + 1
  assert 10 < room < 40
  alone, beside = (
    janus_jax.answer(model, [[]] * len(questions), questions, max_new_tokens=512)
    for questions in ([long], [long, long + '!!'])
  )
  assert len(alone[0].token_ids) == room
  assert beside[0] == alone[0]
  assert len(beside[1].token_ids) < room


def test_float32_is_exact_only_inside_the_call(model):
  """A setting of the process must not leak out of a stream that someone leaves half-read."""
  question = answering.prepare_question(model.config, [], SHORT, *model.tokenizer_and_template())
  with jax.default_matmul_precision('bfloat16'):
    settings = AnswerSettings(max_new_tokens=5)
    stream = answering.stream_tokens(decoder_for(model), [question], [0], model.tokenizer.special, settings)
    next(stream)
    assert jax.config.jax_default_matmul_precision == 'bfloat16'


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
  ],
)
def test_bad_requests_for_pictures(model, options, message):
  with pytest.raises(InputError) as error:
    janus_jax.generate_images(model, **{'prompts': [SHORT], **options})
  assert str(error.value) == message


def test_a_prompt_leaves_room_for_its_picture(model):
  config = model.config
  room = config.language_model.max_positions - config.vq.num_tokens + 1
  with pytest.raises(InputError, match=rf'^prompt 1 of 1: the prompt has \d+ tokens: expected at most {room}$'):
    janus_jax.generate_images(model, ['red ' * 600])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'questions': [' ']}, 'question 1 of 1: question 1 of 1 is empty: expected text'),
    ({'questions': 'What?'}, r"questions is the string 'What\?': expected a list"),
    ({'images': []}, '0 lists of images for 1 questions: expected one for each'),
    ({'questions': ['red ' * 600]}, r'question 1 of 1: the prompt has \d+ tokens: expected at most 512'),
    ({'max_new_tokens': 0}, 'max_new_tokens is 0: expected 1 or more'),
    ({'seed': -1}, r'seed is -1: expected 0 to 2\^32 - 1'),
  ],
)
def test_bad_questions(model, options, message):
  with pytest.raises(InputError, match=f'^{message}$'):
    janus_jax.answer(model, **{'images': [[]], 'questions': ['What?'], **options})


def test_the_tokenizer_of_another_checkpoint_is_refused(model, tmp_path):
  """Janus-Pro-1B's and 7B's differ in the pad id too, which only spoils guidance."""
  (tmp_path / 'tokenizer.json').write_bytes(make_tokenizer((BOS, EOS, '<other>', *JANUS_TOKENS)))
  other = dataclasses.replace(model, tokenizer=Tokenizer.from_directory(tmp_path))
  assert other.tokenizer.special.pad != model.tokenizer.special.pad
  with pytest.raises(InputError, match=r'tokenizer\.json: image placeholder is token \d+: expected \d+'):
    janus_jax.generate_images(other, [SHORT])
  with pytest.raises(InputError, match='tokenizer of another checkpoint'):
    janus_jax.answer(other, [[]], ['What?'])


def test_weights_without_a_tokenizer_open_and_say_what_they_lack(checkpoint, tmp_path):
  copy = shutil.copytree(checkpoint, tmp_path / 'copy')
  (copy / 'tokenizer.json').unlink()
  janus = janus_jax.load(str(copy))
  assert janus.tokenizer is None
  with pytest.raises(InputError, match=r'^the checkpoint has no tokenizer\.json'):
    janus_jax.generate_images(janus, [SHORT])


def test_what_the_package_offers_is_listed_and_there():
  for name in dir(janus_jax):
    assert getattr(janus_jax, name) is not None
  with pytest.raises(AttributeError, match='nothing'):
    janus_jax.nothing  # noqa: B018


def test_mesh_text():
  assert parse_mesh(None) is None
  assert dict(parse_mesh('tensor=2,data=-1').shape) == {'data': 4, 'fsdp': 1, 'tensor': 2, 'context': 1}
  for wrong in ('tensor', 'tensor=x', 'tensor=2,'):
    with pytest.raises(InputError, match='expected axis=number'):
      parse_mesh(wrong)
