"""Images and answer tokens per second against transformers' own `generate`: same weights, same machine, one run.

    python tests/benchmarks/generation.py

A decoder of about 50 M parameters, float32, CPU, 4 prompts, guidance 5, 576 codes (or another grid). transformers
runs as a good user would run it: SDPA attention, no gradients, all threads. Both warm up first.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from janus_jax.conversion.checkpoint import Checkpoint
from janus_jax.conversion.configs import janus_to_huggingface
from janus_jax.conversion.lazy import from_numpy
from janus_jax.conversion.load import load_params
from janus_jax.conversion.translate import parameter_shapes, params_from_tensors
from janus_jax.inference.decoder import make_decoder
from janus_jax.inference.image import generate_codes
from janus_jax.inference.sampling import Sampling, row_key
from janus_jax.inference.text import generate_text
from janus_jax.models.config import ComputeConfig, JanusConfig, LlamaConfig, SiglipConfig, VQConfig

BOS, EOS, PAD, BOI = 0, 1, 2, 3
PROMPTS = [[BOS, *range(10, 10 + length), BOI] for length in (30, 42, 17, 50)]


def model_config(grid: int) -> JanusConfig:
  """Decoder 12 x 576 (51 M parameters in its layers), released codebook; small encoders, which the loop never runs."""
  return JanusConfig(
    SiglipConfig(image_size=16 * grid, width=128, mlp_dim=256, depth=1, num_heads=2),
    VQConfig(image_size=16 * grid, z_channels=32, base_channels=32, num_res_blocks=1),
    LlamaConfig(
      vocab_size=8192, width=576, mlp_dim=1600, depth=12, num_heads=9, num_kv_heads=9, head_dim=64, max_positions=4096
    ),
    image_token_id=8191,
  )


def both(config: JanusConfig) -> tuple['torch.nn.Module', dict]:
  torch.manual_seed(0)
  fields = transformers.JanusConfig.from_dict(janus_to_huggingface(config, 'float32'))
  model = transformers.JanusForConditionalGeneration(fields).eval()
  tensors = {name: from_numpy(tensor.numpy(), name) for name, tensor in model.state_dict().items()}
  params = params_from_tensors(parameter_shapes(config), tensors, 'huggingface', 'random')
  return model, load_params(Checkpoint(config, params, {}, {}, ()), None)


def left_padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
  length = max(map(len, rows))
  tokens = np.array([[PAD] * (length - len(row)) + row for row in rows], np.int32)
  return tokens, np.array([[False] * (length - len(row)) + [True] * len(row) for row in rows])


def seconds(run, repeats: int) -> float:
  """Median wall time after one warm-up run."""
  run()
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    run()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--grid', type=int, default=24, help='codes along one side of an image')
  parser.add_argument('--answer_tokens', type=int, default=128)
  parser.add_argument('--repeats', type=int, default=3)
  arguments = parser.parse_args()
  config = model_config(arguments.grid)
  model, params = both(config)
  decoder = make_decoder(config, ComputeConfig(), params)
  sizes = [leaf.size for leaf in jax.tree.leaves(decoder.layers)]
  print(json.dumps({'decoder_parameters': sum(sizes), 'threads': torch.get_num_threads()}), flush=True)

  keys = jnp.stack([row_key(0, i) for i in range(len(PROMPTS))])
  unconditional = [[BOS, *[PAD] * (len(row) - 2), BOI] for row in PROMPTS]
  rows, rows_mask = left_padded([*PROMPTS, *unconditional])
  tokens, mask = left_padded(PROMPTS)
  ids, attention = torch.from_numpy(tokens).long(), torch.from_numpy(mask).long()
  generation = transformers.GenerationConfig(
    do_sample=True,
    top_k=0,
    temperature=1.0,
    guidance_scale=5.0,
    bos_token_id=BOS,
    pad_token_id=PAD,
    generation_kwargs={'boi_token_id': BOI},
  )

  def our_images() -> None:
    generate_codes(decoder, rows, rows_mask, keys, guidance=5.0, sampling=Sampling()).block_until_ready()

  def their_images() -> None:
    with torch.inference_mode():
      model.generate(input_ids=ids, attention_mask=attention, generation_mode='image', generation_config=generation)

  def our_answers() -> None:
    # No id of the vocabulary ends a row, so both sides draw exactly as many tokens.
    options = {'eos_id': -1, 'max_new_tokens': arguments.answer_tokens, 'sampling': Sampling(temperature=0)}
    for _ in generate_text(decoder, tokens, mask, None, keys, **options):
      pass

  def their_answers() -> None:
    length = arguments.answer_tokens
    options = transformers.GenerationConfig(
      do_sample=False, min_new_tokens=length, max_new_tokens=length, pad_token_id=PAD, eos_token_id=EOS
    )
    with torch.inference_mode():
      model.generate(input_ids=ids, attention_mask=attention, generation_mode='text', generation_config=options)

  work = {
    'images_per_second': (our_images, their_images, len(PROMPTS)),
    'answer_tokens_per_second': (our_answers, their_answers, len(PROMPTS) * arguments.answer_tokens),
  }
  for name, (ours, theirs, amount) in work.items():
    rates = [amount / seconds(run, arguments.repeats) for run in (ours, theirs)]
    row = {'figure': name, 'janus_jax': round(rates[0], 4), 'transformers': round(rates[1], 4)}
    print(json.dumps({**row, 'ratio': round(rates[0] / rates[1], 2)}), flush=True)


if __name__ == '__main__':
  main()
