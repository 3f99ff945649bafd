"""How processes of a run find each other; threads stand for them."""

import concurrent.futures
import contextlib
import re
import socket
import threading

import pytest

from janus_jax.errors import InputError
from janus_jax.training import rendezvous
from janus_jax.training.rendezvous import meet, parse_address


@pytest.fixture
def address(monkeypatch) -> str:
  monkeypatch.setattr(rendezvous, 'RETRY', 0.02)
  monkeypatch.setattr(rendezvous, 'GRACE', 1.0)
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{free.getsockname()[1]}'


def outcomes(address: str, *processes: tuple[int, int], patience: float = 60) -> list[str]:
  """What each (index, count) raises; '' for nothing."""

  def run(process: tuple[int, int]) -> str:
    try:
      meet(address, process[1], process[0], patience)
    except InputError as error:
      return str(error)
    return ''

  with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
    return list(pool.map(run, processes))


def test_all_come_in_any_order_and_may_meet_there_again(address, caplog):
  for _ in range(2):
    assert outcomes(address, (2, 3), (1, 3), (0, 3)) == ['', '', '']
  assert outcomes(address, (0, 1)) == ['']
  assert not caplog.messages  # asyncio logs what its tasks end with.


def test_those_who_wait_say_who_is_missing(address):
  expected = 'processes 1, 3 of 4 did not come within 1 s (--wait_for_processes): expected all to be started'
  assert outcomes(address, (0, 4), (2, 4), patience=1) == [expected] * 2


@pytest.mark.parametrize('twice', [0, 1])
def test_an_id_that_is_given_twice_ends_all(address, twice):
  (found,) = set(outcomes(address, (0, 3), (1, 3), (twice, 3)))
  assert re.match(rf'process_id {twice} is given twice \(on .*\): expected each of 0 to 2 once$', found)


def test_who_comes_after_the_two_of_one_id_have_left_hears_of_them(address):
  def say(index: int, key: str) -> socket.socket:
    while True:
      with contextlib.suppress(ConnectionRefusedError):  # Until process 0 listens.
        connection = socket.create_connection(parse_address(address), timeout=10)
        connection.sendall(rendezvous._line({'process': index, 'count': 3, 'host': 'here', 'key': key}))
        return connection

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(outcomes, address, (0, 3))
    for others in (('a', 'b'), ()):
      for connection in [say(2, key) for key in others] + [say(1, 'c')]:
        assert b'process_id 2 is given twice' in connection.recv(1000)
        connection.close()
    assert 'process_id 2 is given twice' in first.result()[0]


def test_another_number_of_processes_ends_all(address):
  (found,) = set(outcomes(address, (0, 2), (1, 3)))
  assert re.match(r'process 1 on .* has --num_processes=3: expected 2 as on process 0$', found)


def test_without_process_0_the_others_say_that_they_cannot_reach_it(address):
  (found,) = outcomes(address, (1, 2), patience=0.2)
  assert found.startswith(f'process 1 of 2 did not reach process 0 at {address} within 0 s (Connection refused)')


def test_something_else_that_listens_is_named(address):
  (host, port), asking = parse_address(address), threading.Event()
  asking.set()
  with socket.create_server((host, port)) as server:

    def answer() -> None:
      while asking.is_set():
        with contextlib.suppress(OSError), server.accept()[0] as connection:
          connection.sendall(b'HTTP/1.1 400 Bad Request\r\n')
          connection.recv(1000)

    server.settimeout(0.1)
    thread = threading.Thread(target=answer)
    thread.start()
    (found,) = outcomes(address, (1, 2), patience=1)
    asking.clear()
    thread.join()
  assert '(something else answers there)' in found


def test_what_is_no_process_of_the_run_does_not_disturb(address):
  host, port = parse_address(address)

  def disturb() -> None:
    for content in (b'GET / HTTP/1.1\r\n\r\n', b'{"process": "x"}\n', b'[]\n', b'\xff\xfe\n', b''):
      while True:
        try:
          with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(content)
          break
        except ConnectionRefusedError:
          pass

  thread = threading.Thread(target=disturb)
  thread.start()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(outcomes, address, (0, 2))
    thread.join()
    assert outcomes(address, (1, 2)) == ['']
    assert first.result() == ['']


@pytest.mark.parametrize(
  'text', ['localhost', 'localhost:', ':1', 'h:0', 'h:65536', 'h:x', 'http://h:1', '', '[::1]', 'h:-1', 'a:b:1', 'h:1 ']
)
def test_addresses_without_a_host_or_a_port_are_refused(text):
  with pytest.raises(InputError, match=rf'^coordinator_address is {re.escape(repr(text))}: expected HOST:PORT'):
    parse_address(text)


def test_addresses():
  assert parse_address('10.0.0.1:8476') == ('10.0.0.1', 8476)
  assert parse_address('[fe80::1]:1') == ('fe80::1', 1)
