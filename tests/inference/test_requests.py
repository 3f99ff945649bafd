"""Common parts of requests for images and answers: how weights are stored and computed with, tokenizers, settings."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import pytest
from conversion.fixtures import BOS, EOS, JANUS_TOKENS, make_tokenizer
from PIL import Image

import janus_jax
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import InputError
from janus_jax.inference import answering, generation, requests
from janus_jax.inference.decoder import Decoder, prompt_positions
from janus_jax.inference.requests import AnswerSettings, decoder_for
from janus_jax.sharding.mesh import parse_mesh

PROMPT, QUESTION = 'three red circles', 'What?'


def test_what_is_rounded_reaches_the_decoder(model, recorded):
  """And is what the same decoder makes and says; both calls end in functions that `decoder_for` feeds."""
  options = {'weights': 'int8_products', 'cache_dtype': 'int8'}
  made, said = recorded(generation, 'generate_codes'), recorded(answering, 'generate_text')
  janus_jax.generate_images(model, [PROMPT], num_images=1, **options)
  janus_jax.answer(model, [[Image.new('RGB', (32, 32), 'red')]], [QUESTION], max_new_tokens=2, **options)
  for (decoder, *_), _ in (*made, *said):
    assert decoder.cache_dtype == 'int8'
    assert decoder.compute.integer_products
    assert decoder.layers[0]['attn']['q_k_v']['int8'].dtype == 'int8'
  assert len(made) == len(said) == 1
  with pytest.raises(InputError, match="weights are 'int4': expected one of full"):
    janus_jax.generate_images(model, [PROMPT], weights='int4')
  with pytest.raises(InputError, match=r"key/value cache is 'int4': expected one of float32"):
    janus_jax.answer(model, [[]], ['What?'], cache_dtype='int4')


def test_kernels_are_those_of_the_device_where_parameters_lie_on_one(checkpoint, model, monkeypatch):
  """Of several devices, those that XLA can split; and kernels are not joined, which would have to move then."""
  monkeypatch.setattr(requests, 'platform_of', lambda device: 'tpu')
  spread = janus_jax.load(checkpoint, mesh=parse_mesh('fsdp=-1'))
  found = [decoder_for(either) for either in (model, spread)]
  kernels = [(decoder.compute.attention, decoder.compute.vision_attention) for decoder in found]
  assert kernels == [('auto', 'splash'), ('xla', 'xla')]
  assert [set(decoder.layers[0]['attn']) for decoder in found] == [{'q_k_v', 'o'}, {'q', 'k', 'v', 'o'}]


def test_float32_is_exact_only_inside_the_call(model):
  """A setting of the process must not leak out of a stream that someone leaves half-read."""
  question = answering.prepare_question(model.config, [], PROMPT, *model.tokenizer_and_template())
  with jax.default_matmul_precision('bfloat16'):
    settings = AnswerSettings(max_new_tokens=5)
    stream = answering.stream_tokens(decoder_for(model), [question], [0], model.tokenizer.special, settings)
    next(stream)
    assert jax.config.jax_default_matmul_precision == 'bfloat16'


def test_float32_is_exact_whatever_the_process_asks_for(model):
  decoder, mask = decoder_for(model), jnp.ones((1, 4), bool)
  x, cache = jnp.zeros((1, 4, model.config.language_model.width)), decoder.empty_cache((mask,), 1, ())
  with jax.default_matmul_precision('bfloat16'):
    hidden = jax.make_jaxpr(Decoder.hidden)(decoder, x, prompt_positions(mask), cache)
    logits = jax.make_jaxpr(lambda decoder, x: decoder.method('text_logits', x))(decoder, x)
  for program in map(str, (hidden, logits)):
    assert program.count('Precision.HIGHEST, Precision.HIGHEST') == program.count('dot_general') > 0


def test_the_tokenizer_of_another_checkpoint_is_refused(model, tmp_path):
  """Janus-Pro-1B's and 7B's differ in the pad id too, which only spoils guidance."""
  (tmp_path / 'tokenizer.json').write_bytes(make_tokenizer((BOS, EOS, '<other>', *JANUS_TOKENS)))
  other = dataclasses.replace(model, tokenizer=Tokenizer.from_directory(tmp_path))
  assert other.tokenizer.special.pad != model.tokenizer.special.pad
  with pytest.raises(InputError, match=r'tokenizer\.json: image placeholder is token \d+: expected \d+'):
    janus_jax.generate_images(other, [PROMPT])
  with pytest.raises(InputError, match='tokenizer of another checkpoint'):
    janus_jax.answer(other, [[]], ['What?'])


def test_weights_without_a_tokenizer_open_and_say_what_they_lack(checkpoint, tmp_path):
  copy = shutil.copytree(checkpoint, tmp_path / 'copy')
  (copy / 'tokenizer.json').unlink()
  janus = janus_jax.load(str(copy))
  assert janus.tokenizer is None
  with pytest.raises(InputError, match=r'^the checkpoint has no tokenizer\.json'):
    janus_jax.generate_images(janus, [PROMPT])
