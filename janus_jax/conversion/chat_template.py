"""The conversation format as a Jinja template, which transformers' processors read from `chat_template.jinja`."""

from janus_jax.conversion.special_tokens import ASSISTANT, EOS, IMAGE_PLACEHOLDER, USER

# DeepSeek's format (janus/utils/conversation.py): "ROLE: content", a blank line after a user's turn, EOS after an
# assistant's, and "ROLE:" without a space for a turn that is still empty. Of transformers' published template for
# Janus it keeps how the parts of one turn are joined: an image on lines of its own, texts by a space. The default
# system prompt is not here: transformers' JanusProcessor puts it in front of the rendered text.
_TEMPLATE = r"""
{%- set roles = {'user': USER, 'assistant': ASSISTANT} -%}
{%- for message in messages -%}
  {%- set role = message['role'] | lower -%}
  {%- set content = message['content'] -%}
  {%- set parts = [{'type': 'text', 'text': content}] if content is string else content -%}
  {%- set turn = namespace(text='', after_text=false) -%}
  {%- for part in parts -%}
    {%- if part['type'] == 'image' -%}
      {%- set turn.text = turn.text + ('' if loop.first else '\n') + IMAGE + ('' if loop.last else '\n') -%}
    {%- elif part['type'] == 'text' -%}
      {%- set text = part['text'].lstrip() if loop.first else part['text'] -%}
      {%- set text = text.rstrip() if loop.last else text -%}
      {%- set turn.text = turn.text + (' ' if turn.after_text else '') + text -%}
    {%- endif -%}
    {%- set turn.after_text = part['type'] == 'text' -%}
  {%- endfor -%}
  {%- if role == 'system' -%}
    {{- turn.text + '\n\n' -}}
  {%- else -%}
    {{- roles.get(role, role | capitalize) + ':' -}}
    {%- if turn.text -%}
      {{- ' ' + turn.text -}}
      {%- if not loop.last or add_generation_prompt -%}
        {{- '\n\n' if role == 'user' else EOS -}}
      {%- endif -%}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- roles['assistant'] + ':' -}}
{%- endif -%}
"""


def chat_template(role_tokens: bool) -> str:
  """The template, with roles as tokens ("deepseek", Janus-Pro) or as plain words ("deepseek_old", Janus-1.3B)."""
  user, assistant = (USER, ASSISTANT) if role_tokens else ('User', 'Assistant')
  names = {'USER': user, 'ASSISTANT': assistant, 'IMAGE': IMAGE_PLACEHOLDER, 'EOS': EOS}
  settings = ''.join(f"{{%- set {name} = '{value}' -%}}\n" for name, value in names.items())
  return settings + _TEMPLATE.lstrip()
