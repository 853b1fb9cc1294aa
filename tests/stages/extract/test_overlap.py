"""Shards are written while the model goes on, as many at a time as there are threads, and none is lost."""

import threading
from functools import partial

import pytest
from xd3d.errors import DiskSpaceError
from xd3d.stages.extract.overlap import WriteBehind


class SlowDisk:
    """Writes a shard when it is let."""

    def __init__(self):
        self.let, self.written = threading.Event(), []

    def write(self, shard):
        self.let.wait(30)
        self.written.append(shard)


def test_the_model_resumes_while_a_shard_is_written():
    disk = SlowDisk()
    with WriteBehind(1) as behind:
        behind.put(partial(disk.write, 0))
        behind.check()
        assert disk.written == []
        disk.let.set()
        behind.put(partial(disk.write, 1))
        assert disk.written[:1] == [0]
    assert disk.written == [0, 1]


def test_a_second_shard_waits_for_the_first():
    disk = SlowDisk()
    with WriteBehind(1) as behind:
        behind.put(partial(disk.write, 0))
        second = threading.Thread(target=behind.put, args=(partial(disk.write, 1),))
        second.start()
        second.join(0.05)
        assert second.is_alive()
        disk.let.set()
        second.join(30)
    assert disk.written == [0, 1]


def test_as_many_shards_as_threads_are_written_at_a_time():
    disk, together = SlowDisk(), threading.Barrier(2, timeout=30)
    with WriteBehind(2) as behind:
        behind.put(together.wait)
        behind.put(together.wait)
        behind.wait()
        behind.put(partial(disk.write, 0))
        behind.put(partial(disk.write, 1))
        third = threading.Thread(target=behind.put, args=(partial(disk.write, 2),))
        third.start()
        third.join(0.05)
        assert third.is_alive()
        disk.let.set()
        third.join(30)
    assert sorted(disk.written) == [0, 1, 2]


def interrupted_after(disk):
    with WriteBehind(1) as behind:
        behind.put(partial(disk.write, 0))
        disk.let.set()
        raise KeyboardInterrupt


def test_an_error_elsewhere_does_not_lose_the_shard_in_hand():
    disk = SlowDisk()
    with pytest.raises(KeyboardInterrupt):
        interrupted_after(disk)
    assert disk.written == [0]


def full_disk():
    raise DiskSpaceError("full")


@pytest.mark.parametrize("how", ["put", "wait", "end"])
def test_an_error_of_the_writer_comes_out_as_it_is(how):
    with pytest.raises(DiskSpaceError, match="full"), WriteBehind(1) as behind:  # noqa: PT012
        behind.put(full_disk)
        if how == "put":
            behind.put(full_disk)
        elif how == "wait":
            behind.wait()
