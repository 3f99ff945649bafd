"""Values on their way from one process to another."""

import concurrent.futures
import errno
import io
import multiprocessing
import os

import numpy as np
import pytest

from janus_jax.data.worker_transfer import pack, unpack

VALUE = [{'pixels': np.arange(24, dtype=np.uint8).reshape(2, 4, 3), 'words': ['a', 'b']}, ValueError('c'), np.zeros(0)]


def assert_is_the_value(found):
  np.testing.assert_array_equal(found[0]['pixels'], VALUE[0]['pixels'])
  assert found[0]['words'] == ['a', 'b']
  assert str(found[1]) == 'c'
  assert found[2].shape == (0,)
  found[0]['pixels'][:] = 1  # It is the receiver's own.


def test_arrays_go_through_a_file_that_is_gone_afterwards(tmp_path):
  with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
    transfer = pool.submit(pack, VALUE, str(tmp_path)).result()
  assert os.listdir(tmp_path) == [os.path.basename(transfer.path)]
  assert os.path.getsize(transfer.path) == 24
  assert_is_the_value(unpack(transfer))
  assert os.listdir(tmp_path) == []


def test_without_a_directory_they_go_with_the_rest(tmp_path):
  assert_is_the_value(unpack(pack(VALUE, str(tmp_path / 'gone'))))


def test_on_a_full_disk_they_go_with_the_rest(tmp_path, monkeypatch):
  class Full(io.FileIO):
    def writelines(self, _):
      raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr('builtins.open', Full)
  transfer = pack(VALUE, str(tmp_path))
  monkeypatch.undo()
  assert os.listdir(tmp_path) == []
  assert_is_the_value(unpack(transfer))


def test_a_value_without_arrays(tmp_path):
  assert unpack(pack(['a'], str(tmp_path))) == ['a']


def test_a_transfer_is_unpacked_once(tmp_path):
  transfer = pack(VALUE, str(tmp_path))
  unpack(transfer)
  with pytest.raises(FileNotFoundError):
    unpack(transfer)
