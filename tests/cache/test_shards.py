import struct

import google_crc32c
import numpy as np
import pytest
from xd3d.cache.shards import ShardFile, write_rows
from xd3d.cache.stores.local_files import LocalFile
from xd3d.errors import CacheError

ROWS = np.arange(3 * 8, dtype=np.uint8).reshape(3, 8)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "0"
    with path.open("wb") as out:
        write_rows(out, ROWS, slots=5)
    return path


def test_rows_lie_back_to_back_before_an_index_with_its_own_crc32c(tmp_path):
    with (tmp_path / "0").open("wb") as out:
        checksums = write_rows(out, ROWS, slots=4)
    data = (tmp_path / "0").read_bytes()
    assert data[:24] == ROWS.tobytes()
    empty = 2**64 - 1
    index = struct.pack("<8Q", 0, 8, 8, 8, 16, 8, empty, empty)
    assert data[24:] == index + struct.pack("<I", google_crc32c.value(index))
    assert checksums == [google_crc32c.value(row.tobytes()) for row in ROWS]


def test_rows_are_read_alone_and_together(file):
    shard = ShardFile(file=LocalFile(file), row_bytes=8)
    assert shard.load_index(5, 3) is None
    one, two = np.empty(8, np.uint8), np.empty(16, np.uint8)
    shard.read(2, one)
    shard.read(0, two)
    np.testing.assert_array_equal(one, ROWS[2])
    np.testing.assert_array_equal(two.reshape(2, 8), ROWS[:2])


def test_a_shard_in_another_order_is_read_by_its_index(tmp_path):
    index = struct.pack("<4Q", 8, 8, 0, 8)
    path = tmp_path / "0"
    path.write_bytes(ROWS[1].tobytes() + ROWS[0].tobytes() + index + struct.pack("<I", google_crc32c.value(index)))
    shard = ShardFile(file=LocalFile(path), row_bytes=8)
    assert shard.load_index(2, 2) is not None
    out = np.empty(8, np.uint8)
    shard.read(1, out)
    np.testing.assert_array_equal(out, ROWS[1])


@pytest.mark.parametrize(("offset", "length"), [(2**64 - 1, 2**64 - 1), (0, 7), (2**40, 8), (2**64 - 8, 8)])
def test_an_index_that_points_nowhere_is_refused(tmp_path, offset, length):
    index = struct.pack("<2Q", offset, length)
    path = tmp_path / "0"
    path.write_bytes(ROWS[0].tobytes() + index + struct.pack("<I", google_crc32c.value(index)))
    shard = ShardFile(file=LocalFile(path), row_bytes=8)
    shard.load_index(1, 1)
    with pytest.raises(CacheError, match="holds no row of 8 bytes"):
        shard.read(0, np.empty(8, np.uint8))


def test_a_flipped_index_and_a_short_file_are_refused(file):
    data = bytearray(file.read_bytes())
    data[30] ^= 4
    file.write_bytes(data)
    with pytest.raises(CacheError, match="index at byte 24 is damaged"):
        ShardFile(file=LocalFile(file), row_bytes=8).load_index(5, 3)
    file.write_bytes(b"")
    with pytest.raises(CacheError, match="0 bytes, too few"):
        ShardFile(file=LocalFile(file), row_bytes=8).load_index(5, 3)
