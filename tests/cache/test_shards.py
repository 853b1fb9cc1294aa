import struct

import google_crc32c
import numpy as np
import pytest
from xd3d.cache.arrays import check_index, write_rows
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


def test_an_index_of_the_rows_there_are_is_accepted(file):
    check_index(LocalFile(file), slots=5, rows=3, row_bytes=8)
    with pytest.raises(CacheError, match="byte 24"):
        check_index(LocalFile(file), slots=5, rows=2, row_bytes=8)


def test_a_flipped_index_and_a_short_file_are_refused(file):
    data = bytearray(file.read_bytes())
    data[30] ^= 4
    file.write_bytes(data)
    with pytest.raises(CacheError, match="byte 24 is"):
        check_index(LocalFile(file), slots=5, rows=3, row_bytes=8)
    file.write_bytes(b"")
    with pytest.raises(CacheError, match="0 bytes"):
        check_index(LocalFile(file), slots=5, rows=3, row_bytes=8)
