"""Judges of random weights in the layouts of the hub, with their processors: a Mask2Former, a CLIP, and three networks
that answer questions about images (a classifier, an encoder-decoder, a chat model).
"""

import string

import numpy as np
import torch
import transformers
from PIL import Image

torch.set_num_threads(1)  # Threads of networks as small as these wait for one another, above all on a busy machine.
WORDS = ['yes', 'no', 'is', 'there', 'a', 'cat', 'red', 'answer', 'or', '?', '.']


def noise(seed, side=64, blocks=4):
  """An image of colourful blobs."""
  pixels = np.random.default_rng(seed).integers(0, 256, (blocks, blocks, 3), np.uint8)
  return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def write_detector(directory, queries=4, num_labels=80, labels=None):
  torch.manual_seed(0)
  sizes = {'embed_dim': 8, 'depths': [1, 1, 1, 1], 'num_heads': [1, 1, 1, 1], 'window_size': 4}
  backbone = transformers.SwinConfig(image_size=64, **sizes, out_features=[f'stage{i}' for i in range(1, 5)])
  narrow = dict.fromkeys(('feature_size', 'mask_feature_size', 'hidden_dim', 'encoder_feedforward_dim'), 32)
  config = transformers.Mask2FormerConfig(
    backbone_config=backbone,
    **narrow,
    dim_feedforward=32,
    encoder_layers=1,
    decoder_layers=2,
    num_attention_heads=2,
    num_queries=queries,
    num_labels=num_labels,
  )
  if labels:
    config.id2label, config.label2id = labels, {name: index for index, name in labels.items()}
  network = transformers.Mask2FormerForUniversalSegmentation(config)
  network.class_predictor.weight.data *= 100  # Sure of what it says.
  network.save_pretrained(directory)
  processor_class('Mask2FormerImageProcessor')(size={'height': 64, 'width': 64}).save_pretrained(directory)
  return directory


def processor_class(name):
  """The class that needs no torchvision, where there are two."""
  return getattr(transformers, f'{name}Pil', None) or getattr(transformers, name)


def write_clip(directory):
  torch.manual_seed(0)
  small = {'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2}
  letters = [*string.ascii_lowercase, '-']
  names = [*letters, *(f'{letter}</w>' for letter in letters), '<|startoftext|>', '<|endoftext|>']
  end = {'bos_token_id': len(names) - 2, 'eos_token_id': len(names) - 1, 'pad_token_id': len(names) - 1}
  config = transformers.CLIPConfig(
    text_config={**small, 'vocab_size': len(names), **end},
    vision_config={**small, 'image_size': 32, 'patch_size': 8},
    projection_dim=8,
  )
  network = transformers.CLIPModel(config)
  for name, parameter in network.named_parameters():
    parameter.data *= 1 if 'norm' in name else 12  # So that not all crops have one colour.
  network.save_pretrained(directory)
  tokenizer = transformers.CLIPTokenizer(vocab={name: index for index, name in enumerate(names)}, merges=[])
  crop = {'crop_size': {'height': 32, 'width': 32}, 'size': {'shortest_edge': 32}}
  transformers.CLIPProcessor(processor_class('CLIPImageProcessor')(**crop), tokenizer).save_pretrained(directory)
  return directory


def _bert_tokenizer():
  names = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *WORDS]
  return transformers.BertTokenizer(vocab={name: index for index, name in enumerate(names)}), len(names)


def write_vilt(directory, answers=('no', 'Yes', 'two')):
  torch.manual_seed(0)
  tokenizer, size = _bert_tokenizer()
  config = transformers.ViltConfig(
    vocab_size=size,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    image_size=32,
    patch_size=16,
    max_image_length=-1,
    id2label=dict(enumerate(answers)),
    label2id={name: index for index, name in enumerate(answers)},
  )
  transformers.ViltForQuestionAnswering(config).save_pretrained(directory)
  images = processor_class('ViltImageProcessor')(size={'shortest_edge': 32}, size_divisor=16)
  transformers.ViltProcessor(images, tokenizer).save_pretrained(directory)
  return directory


def write_blip(directory, kind=transformers.BlipForQuestionAnswering):
  torch.manual_seed(0)
  tokenizer, size = _bert_tokenizer()
  small = {'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2}
  ids = {'bos_token_id': 2, 'eos_token_id': 3, 'sep_token_id': 3, 'pad_token_id': 0}
  text = {**small, **ids, 'vocab_size': size, 'encoder_hidden_size': 16, 'max_position_embeddings': 64}
  config = transformers.BlipConfig(text_config=text, vision_config={**small, 'image_size': 32, 'patch_size': 16})
  kind(config).save_pretrained(directory)
  images = processor_class('BlipImageProcessor')(size={'height': 32, 'width': 32})
  transformers.BlipProcessor(images, tokenizer).save_pretrained(directory)
  return directory


def write_llava(directory):
  from tokenizers import Tokenizer, models, pre_tokenizers

  torch.manual_seed(0)
  names = ['<unk>', '<pad>', '<s>', '</s>', '<image>', 'USER', 'ASSISTANT', ':', *WORDS]
  model = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, '<unk>'))
  model.pre_tokenizer = pre_tokenizers.Whitespace()
  special = {'unk_token': '<unk>', 'pad_token': '<pad>', 'bos_token': '<s>', 'eos_token': '</s>'}
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=model, **special, additional_special_tokens=['<image>']
  )
  small = {'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2}
  config = transformers.LlavaConfig(
    vision_config=transformers.CLIPVisionConfig(**small, image_size=32, patch_size=16, projection_dim=8),
    text_config=transformers.LlamaConfig(
      **small, vocab_size=len(names), bos_token_id=2, eos_token_id=3, pad_token_id=1, num_key_value_heads=2
    ),
    image_token_id=4,
    image_seq_length=4,
    vision_feature_layer=-1,
  )
  transformers.LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(directory)
  crop = {'crop_size': {'height': 32, 'width': 32}, 'size': {'shortest_edge': 32}}
  template = (
    "{% for message in messages %}{{ message['role'] | upper }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    '{% if add_generation_prompt %}ASSISTANT : {% endif %}'
  )
  transformers.LlavaProcessor(
    processor_class('CLIPImageProcessor')(**crop),
    tokenizer,
    patch_size=16,
    vision_feature_select_strategy='default',
    num_additional_image_tokens=1,
    chat_template=template,
  ).save_pretrained(directory)
  return directory
