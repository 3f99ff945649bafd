"""Messages cannot steer a terminal, and come back from other processes as they were."""

import pickle

from janus_jax.errors import InputError, RecordError


def test_what_steers_a_terminal_is_shown_instead():
  error = RecordError('image', 'a\x1b[31m 红😀 \ud800').at('shard.tar: key\x07')
  assert str(error) == 'shard.tar: key\\x07: a\\x1b[31m 红😀 \\ud800'
  copy = pickle.loads(pickle.dumps(error))
  assert (type(copy), str(copy), copy.reason) == (RecordError, str(error), 'image')
  assert str(pickle.loads(pickle.dumps(InputError('\x00 of\nit')))) == '\\x00 of\nit'
