"""The one exception that means "the input is wrong", as against "the program is wrong".

Every package may import this module (it imports nothing); entry points turn the exception into one line on
stderr and exit code 1.
"""


class InputError(ValueError):
  """Something the user gave is wrong. The message is one line: what is wrong, where, what was expected."""
