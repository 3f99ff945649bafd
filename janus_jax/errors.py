"""The exception that means "the input is wrong", as against "the program is wrong"; verbs print it as one line and exit
with 1. Every package may import this module (it imports nothing).
"""

# Characters of a value that a message shows, and of the message of a record: one may hold an image in base64.
SHOWN, LONGEST = 160, 600


class InputError(ValueError):
  """Wrong input of the user. The message is one line: what is wrong, where, what was expected. Names of files, keys of
  records and the like stand in it as they are, but for characters that would steer a terminal.
  """

  def __init__(self, message: str):
    super().__init__(''.join(map(_visible, message)))


class RecordError(InputError):
  """A record of a data source that cannot be used; it is skipped, and counted by `reason`, a word or two that
  configs/README.md lists.
  """

  def __init__(self, reason: str, message: str):
    message = ' '.join(message.split())
    if len(message) > LONGEST:
      message = f'{message[: LONGEST // 2]} ... {message[-LONGEST // 3 :]}'
    super().__init__(message)
    self.reason = reason

  def __reduce__(self):  # It comes back from worker processes.
    return type(self), (self.reason, str(self))

  def at(self, where: str) -> 'RecordError':
    """The error with where the record comes from in front, unless it says so already."""
    return self if str(self).startswith(where) else type(self)(self.reason, f'{where}: {self}')


def _visible(character: str) -> str:
  is_plain = character.isprintable() or character.isspace()
  return character if is_plain else character.encode('unicode_escape').decode()


def one_line(error: Exception) -> str:
  """Message of an exception without line breaks."""
  return ' '.join(str(error).split())


def shown(value: object) -> str:
  """A value as a message shows it: `repr`, cut where it is long."""
  text = repr(value[: 2 * SHOWN] if isinstance(value, str | bytes) else value)
  return text if len(text) <= SHOWN else f'{text[:SHOWN]}...'
