"""The one exception that means "the input is wrong", as against "the program is wrong".

Every package may import this module (it imports nothing); entry points turn the exception into one line on
stderr and exit code 1.
"""


class InputError(ValueError):
  """Something the user gave is wrong. The message is one line: what is wrong, where, what was expected."""


class RecordError(InputError):
  """One record of a data source cannot be used; it is skipped and counted.

  Attributes:
    reason: what kind of thing is wrong with it, a word or two: what is counted by.
  """

  def __init__(self, reason: str, message: str):
    super().__init__(message)
    self.reason = reason

  def __reduce__(self):  # It comes back from worker processes.
    return type(self), (self.reason, str(self))
