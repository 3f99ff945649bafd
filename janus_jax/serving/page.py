"""The page, as Gradio draws it: one tab to generate images, one to ask about images."""

import dataclasses
import functools
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from janus_jax.inference.requests import ImageSettings
from janus_jax.serving import handlers
from janus_jax.serving.conversation import Conversation
from janus_jax.serving.description import ModelDescription
from janus_jax.serving.handlers import Service

if TYPE_CHECKING:
  import gradio as gr

LARGEST_SEED = 2**32 - 1
HIGHEST = {'cfg_weight': 10, 'temperature': 2}  # Of the sliders, where the checkpoint does not say more.
SMALL = 128  # Pixels: below, images are enlarged with sharp edges.
KEPT_SECONDS = 3600  # Uploads and conversations.
ONE_AT_A_TIME = {'concurrency_id': 'model', 'concurrency_limit': 1, 'api_visibility': 'private'}


@dataclasses.dataclass(frozen=True)
class Examples:
  """Texts to click on."""

  prompts: Sequence[str]
  questions: Sequence[str]


TOY = Examples(
  ('a large red circle', 'a small blue square', 'a green triangle', 'a blue square and a red cross', 'the digit 7'),
  ('What colour is the object?', 'What shape is the object?', 'How many objects are there?'),
)
GENERAL = Examples(
  ('a red cube on a wooden table', 'a lighthouse at dusk, oil painting', 'two cats on a green sofa'),
  ('Describe this image.', 'What colours are in it?', 'What might happen next?'),
)


def title_html(card: ModelDescription) -> str:
  """Name, size and training of a model."""
  facts = f'{count(card.parameters)} parameters · images of {card.image_size} x {card.image_size} pixels · {card.dtype}'
  lines = [f'<h1>{html.escape(card.name)}</h1>', f'<p>{html.escape(f"{facts} · on {card.device}")}</p>']
  if card.stages:
    stages = ', '.join(f'{name} ({steps:,} steps)' for name, steps in card.stages)
    trained = f'Trained on {", ".join(card.sources)}: {stages}; started from {card.start}'
    lines.append(f'<p>{html.escape(trained)}</p>')
  return ''.join(lines)


def count(number: int) -> str:
  """4123456 -> '4.1 million'."""
  for size, word in ((10**9, ' billion'), (10**6, ' million')):
    if number >= size:
      return f'{number / size:.1f}{word}'
  return f'{number:,}'


def build(service: Service, card: ModelDescription, examples: Examples) -> 'gr.Blocks':
  """The page of a model."""
  import gradio as gr

  title = f'{card.name} · janus_jax'
  with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
    gr.HTML(title_html(card), elem_id='title', elem_classes='small-images' if card.image_size < SMALL else None)
    with gr.Tabs() as tabs:
      with gr.Tab('Generate images', id='generate'):
        picture, to_ask = _generation_tab(service, examples.prompts)
      with gr.Tab('Ask about images', id='ask'):
        box = _asking_tab(service, examples.questions)
    to_ask.click(
      handlers.put_image, picture, [box, tabs], queue=False, show_progress='hidden', api_visibility='private'
    )
  return page


def _generation_tab(service: Service, prompts: Sequence[str]) -> 'tuple[gr.State, gr.Button]':
  """Returns what is generated, and the button to ask about it."""
  import gradio as gr

  defaults: ImageSettings = service.images
  with gr.Row(equal_height=False):
    with gr.Column(scale=5, min_width=320):
      prompt = gr.Textbox(
        label='Prompt',
        placeholder='Describe an image',
        lines=2,
        max_length=service.limits.text_length,
        elem_id='prompt',
      )
      button = gr.Button('Generate', variant='primary', elem_id='generate')
      _clickable(prompts, prompt)
      with gr.Accordion('Settings', open=False):
        number = gr.Radio(_numbers(service.limits.num_images), value=defaults.num_images, label='Images')
        guidance = gr.Slider(
          0,
          max(HIGHEST['cfg_weight'], defaults.cfg_weight),
          defaults.cfg_weight,
          step=0.5,
          label='Guidance',
          info='How closely images follow the prompt; 1: no guidance.',
        )
        temperature = gr.Slider(
          0,
          max(HIGHEST['temperature'], defaults.temperature),
          defaults.temperature,
          step=0.1,
          label='Temperature',
          info='How varied images are; 0: always the likeliest.',
        )
        seed = gr.Number(
          defaults.seed,
          label='Seed',
          precision=0,
          minimum=0,
          maximum=LARGEST_SEED,
          elem_id='seed',
          info='The same seed gives the same images.',
        )
        is_random = gr.Checkbox(True, label='New seed each time', elem_id='random')
    with gr.Column(scale=5, min_width=320):
      gallery = gr.Gallery(
        label='Images',
        show_label=False,
        columns=2,
        height='auto',
        object_fit='contain',
        buttons=['download', 'fullscreen'],
        elem_id='gallery',
        interactive=False,
      )
      note = gr.Markdown('Images appear here. Downloaded ones hold the settings they were made with.', elem_id='note')
      to_ask = gr.Button('Ask about the selected image', size='sm', visible=False, elem_id='to-ask')
  paths, chosen = gr.State([], time_to_live=KEPT_SECONDS), gr.State(None)

  def choose(event: gr.SelectData, paths: list[str]) -> str:
    return paths[event.index]

  gr.on(
    [button.click, prompt.submit],
    functools.partial(handlers.generate, service),
    [prompt, number, guidance, temperature, seed, is_random],
    [gallery, note, seed, paths, chosen, to_ask],
    show_progress_on=gallery,
    api_name='generate',
    **ONE_AT_A_TIME,
  )
  gallery.select(choose, paths, chosen, queue=False, show_progress='hidden', api_visibility='private')
  return chosen, to_ask


def _numbers(highest: int) -> list[int]:
  """1, 2, 4 ... up to the highest: few, as each number of images is a program to compile."""
  return [*(2**power for power in range(highest.bit_length()) if 2**power < highest), highest]


def _asking_tab(service: Service, questions: Sequence[str]) -> 'gr.MultimodalTextbox':
  """Returns the box for questions."""
  import gradio as gr

  chat = gr.Chatbot(
    show_label=False,
    height='50vh',
    layout='bubble',
    buttons=['copy'],
    allow_file_downloads=False,
    feedback_options=None,
    render_markdown=False,
    placeholder='Add one or more images, and ask.',
    elem_id='chat',
  )
  box = gr.MultimodalTextbox(
    show_label=False,
    placeholder='Ask about images; add them with the button on the left',
    file_count='multiple',
    sources=['upload'],
    max_plain_text_length=service.limits.text_length,
    elem_id='question',
  )
  handlers.refuse_urls(box)
  _clickable(questions, box)
  again = gr.Button('New conversation', size='sm', elem_id='again')
  conversation, shown = (gr.State(value, time_to_live=KEPT_SECONDS) for value in (Conversation(), []))
  outputs = [box, chat, conversation, shown]
  box.submit(
    functools.partial(handlers.ask, service),
    [box, conversation, shown],
    outputs,
    show_progress='minimal',
    show_progress_on=chat,
    api_name='ask',
    **ONE_AT_A_TIME,
  )
  gr.on(
    [again.click, chat.clear],
    lambda: (None, [], Conversation(), []),
    None,
    outputs,
    queue=False,
    show_progress='hidden',
    api_visibility='private',
  )
  return box


def _clickable(texts: Sequence[str], box: 'gr.Textbox | gr.MultimodalTextbox') -> None:
  """A row of examples, each of which fills the box, whose images stay."""
  import gradio as gr

  with gr.Row(elem_classes='examples'):
    for text in texts:
      button = gr.Button(text, size='sm', variant='secondary', min_width=0, scale=0)
      fill = functools.partial(handlers.fill, text)
      button.click(fill, box, box, queue=False, show_progress='hidden', api_visibility='private')
