"""Time that is accounted for, and steps that do not end."""

import contextlib
import logging
import threading
import time

import pytest

from janus_jax.training.goodput import Goodput, Watchdog


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def test_goodput_is_what_no_cause_takes():
  clock = Clock()
  spent = Goodput(clock)
  with spent.on('compiling'):
    clock.now += 3
  clock.now += 6
  with spent.on('saving'):
    clock.now += 1
  assert spent.line() == pytest.approx({'goodput': 0.6, 'time/compiling': 0.3, 'time/saving': 0.1})


def test_what_takes_long_is_said_before_and_after():
  clock, said = Clock(), []
  spent = Goodput(clock)
  for seconds in (42, 0.5):
    with spent.on('compiling', 'compiling the step', said.append):
      clock.now += seconds
      assert said[-1] == 'compiling the step ...'
  assert said == ['compiling the step ...', 'compiling the step: 42 s', 'compiling the step ...']


def test_time_counts_where_the_block_fails():
  clock = Clock()
  spent = Goodput(clock)
  with contextlib.suppress(KeyError), spent.on('observing'):
    clock.now += 1
    raise KeyError
  clock.now += 1
  assert spent.line()['time/observing'] == pytest.approx(0.5)


def after_steps(clock, *seconds, factor=10, least=5, stacks=''):
  dog = Watchdog(factor, least, stacks, clock)
  dog.step_ended()
  for took in seconds:
    clock.now += took
    dog.step_ended()
  return dog


def test_a_step_is_reported_once_when_it_takes_far_longer_than_the_others():
  clock = Clock()
  dog = after_steps(clock, 1, 3)
  clock.now += 19
  assert dog.overdue() is None
  clock.now += 2
  assert dog.overdue() == 'a step has been under way for 21 s: 2 steps before it took 2.00 s each'
  assert dog.overdue() is None
  dog.step_ended()  # Of 21 s: the mean is 8.33 s now.
  clock.now += 84
  assert 'for 84 s' in dog.overdue()


def test_short_steps_may_take_the_least_time():
  clock = Clock()
  dog = after_steps(clock, 0.1)
  clock.now += 4
  assert dog.overdue() is None
  clock.now += 2
  assert dog.overdue()


def test_nothing_is_reported_before_a_step_has_been_timed_or_after_a_rest():
  clock = Clock()
  dog = after_steps(clock)
  clock.now += 1000
  assert dog.overdue() is None
  dog = after_steps(clock, 1, 1)
  dog.rest()
  clock.now += 1000
  assert dog.overdue() is None
  dog.step_ended()
  clock.now += 1000
  assert dog.overdue() is None


def wait_until(condition) -> None:
  end = time.monotonic() + 30
  while not condition() and time.monotonic() < end:
    time.sleep(0.02)
  assert condition()


def test_one_line_is_logged_and_a_file_says_what_threads_are_doing_however_many_there_are(tmp_path, caplog):
  clock, stacks = Clock(), tmp_path / 'stacks.txt'
  dog = after_steps(clock, 1, 1, stacks=str(stacks))
  clock.now += 100
  over = threading.Event()
  others = [threading.Thread(target=over.wait, name=f'reader {i}') for i in range(120)]
  for thread in others:
    thread.start()
  try:
    with caplog.at_level(logging.WARNING), dog:
      wait_until(lambda: caplog.messages)
  finally:
    over.set()
  (message,) = caplog.messages
  assert message.startswith('a step has been under way for 100 s: 2 steps before it took 1.00 s each; ')
  assert message.endswith(str(stacks))
  assert '\n' not in message
  text = stacks.read_text()
  assert 'a step has been under way for 100 s' in text
  assert text.index('MainThread:') < text.index('test_goodput.py') < text.index('reader 119:')


class Result:
  """Of a step; ready once it is said to be."""

  def __init__(self):
    self.ready = threading.Event()

  def block_until_ready(self):
    assert self.ready.wait(30)


def test_steps_are_timed_where_they_end_not_where_they_are_dispatched(tmp_path):
  clock, results = Clock(), [Result() for _ in range(10)]
  with Watchdog(10, 60, str(tmp_path / 'stacks'), clock) as dog:
    for result in results:  # All at once: devices are behind.
      dog.step_dispatched(result)
    for number, result in enumerate(results[:3]):
      result.ready.set()
      wait_until(lambda number=number: (dog._steps, dog._last) == (number, clock.now))
      clock.now += 20
    clock.now += 170
    assert dog.overdue() is None
    clock.now += 20
    assert dog.overdue() == 'a step has been under way for 210 s: 2 steps before it took 20.00 s each'
    for result in results[3:]:
      result.ready.set()


def test_steps_that_were_dispatched_before_a_rest_are_not_counted_after_it(tmp_path):
  before, after = Result(), Result()
  with Watchdog(10, 60, str(tmp_path / 'stacks'), Clock()) as dog:
    dog.step_dispatched(before)
    dog.rest()
    dog.step_dispatched(after)
    before.ready.set()
    after.ready.set()
    wait_until(lambda: dog._last is not None)
    assert not dog._steps
