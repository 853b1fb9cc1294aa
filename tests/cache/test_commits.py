import json
import time
from dataclasses import replace

import google_crc32c
import numpy as np
import pytest
from xd3d.cache.commits import COMMITTED, DAMAGED, FAILED, UNCOMMITTED, Commit, CommitLog
from xd3d.cache.layout import CacheLayout
from xd3d.cache.metadata import manifest_checksum
from xd3d.cache.stores.local import LocalStore
from xd3d.errors import CacheError


def commit_of(layout, index=0, **changes):
    shard = layout.shard(index)
    facts = {
        "shard": index,
        "first": shard.first,
        "last": shard.last,
        "manifest": "" if "manifest" in changes else manifest_checksum(layout),
        "sizes": dict.fromkeys(layout.arrays, 100),
        "crc32c": {name: [row * 7 for row in shard.rows] for name in layout.arrays},
    }
    return Commit(**{**facts, **changes})


def store(folder, index, data):
    (folder / "done").mkdir(exist_ok=True)
    (folder / "done" / f"{index}.json").write_bytes(data)


def load(folder, layout, index=0):
    return Commit.load(LocalStore(root=folder), layout.shard(index), layout, manifest_checksum(layout))


def test_a_record_comes_back_as_it_was_written_and_is_plain_json(tmp_path, layout):
    commit = commit_of(layout, 1, failed={5: 'bad "jpeg" é'}, clamped={"features/up1": {4: 17}})
    store(tmp_path, 1, commit.encode())
    assert load(tmp_path, layout, 1) == commit
    assert json.loads(commit.encode())["commit"]["failed"] == {"5": 'bad "jpeg" é'}


def test_no_flipped_bit_of_a_record_goes_unnoticed(tmp_path, layout):
    data = commit_of(layout, failed={2: "reason"}).encode()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        store(tmp_path, 0, bytes(damaged))
        with pytest.raises(CacheError, match="damaged"):
            load(tmp_path, layout)


@pytest.mark.parametrize("length", [0, 1, 30, -1])
def test_a_cut_record_is_damaged(tmp_path, layout, length):
    store(tmp_path, 0, commit_of(layout).encode()[:length])
    with pytest.raises(CacheError, match="damaged"):
        load(tmp_path, layout)


def signed(body):
    data = json.dumps(body).encode()
    return b'{"crc32c":"%08x","commit":' % google_crc32c.value(data) + data + b"}\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.update(sizes=[]),
        lambda b: b.update(sizes={"features/up1": "many"}),
        lambda b: b.update(sizes={"../x": 3}),
        lambda b: b.update(crc32c=[1]),
        lambda b: b["crc32c"].update({"features/up1": 4}),
        lambda b: b["crc32c"].update({"features/up1": [0, 1]}),
        lambda b: b["crc32c"].update({"features/up1": [-1, 2**40, "a", None]}),
        lambda b: b.update(failed={"x": "y"}),
        lambda b: b.update(failed=3),
        lambda b: b.update(failed={"17": "a row of another shard"}),
        lambda b: b.update(first=None),
        lambda b: b.update(last=float("inf")),
        lambda b: b.pop("manifest"),
        lambda b: b.clear(),
    ],
)
def test_a_hostile_record_with_a_right_checksum_commits_nothing(tmp_path, layout, change):
    body = json.loads(commit_of(layout).encode())["commit"]
    change(body)
    store(tmp_path, 0, signed(body))
    log = CommitLog(store=LocalStore(root=tmp_path), layout=layout)
    assert (log.states[:4] == DAMAGED).all()
    assert "commit record" in log.damaged[0]


def test_records_of_another_shard_or_cache_are_refused(tmp_path, layout):
    store(tmp_path, 1, commit_of(layout, 0).encode())
    with pytest.raises(CacheError, match="shard 0, rows 0 to 3"):
        load(tmp_path, layout, 1)
    other = replace(layout, fingerprint={"model": "another"})
    store(tmp_path, 0, commit_of(other).encode())
    with pytest.raises(CacheError, match="belongs to another cache"):
        load(tmp_path, layout)


def test_the_log_follows_records_that_appear_change_and_go(tmp_path, layout):
    log = CommitLog(store=LocalStore(root=tmp_path), layout=layout)
    assert (log.states == UNCOMMITTED).all()
    store(tmp_path, 0, commit_of(layout, failed={2: "dark"}).encode())
    assert log.refresh() == [0]
    assert log.states[:5].tolist() == [COMMITTED, COMMITTED, FAILED, COMMITTED, UNCOMMITTED]
    assert log.failed == {2: "dark"}
    assert log.refresh() == []
    store(tmp_path, 0, commit_of(layout).encode())
    assert log.refresh() == [0]
    assert log.failed == {}
    np.testing.assert_array_equal(log.crc32c["agents/up1"][:4], [0, 7, 14, 21])
    (tmp_path / "done" / "0.json").unlink()
    assert log.refresh() == [0]
    assert (log.states == UNCOMMITTED).all()


def test_files_beside_the_records_are_not_records(tmp_path, layout):
    data = commit_of(layout).encode()
    for name in ("00", "-1", "0.json.12.partial", "99", "x", "\u0661"):
        store(tmp_path, name, data)
    (tmp_path / "done" / "1.json").mkdir()
    log = CommitLog(store=LocalStore(root=tmp_path), layout=layout)
    assert log.states.tolist() == [UNCOMMITTED] * 4 + [DAMAGED] * 4 + [UNCOMMITTED] * 10


def test_the_bookkeeping_of_twenty_thousand_images_takes_less_than_two_seconds_of_a_core(tmp_path, layout):
    large = CacheLayout(
        taps=layout.taps,
        agents=layout.agents,
        image_keys=tuple(f"{row:032x}" for row in range(20_000)),
        images_per_frame=2,
        images_per_shard=10,
        fingerprint=layout.fingerprint,
    )
    manifest = manifest_checksum(large)
    for index in range(large.shard_count):
        store(tmp_path, index, commit_of(large, index, manifest=manifest).encode())
    start = time.process_time()
    log = CommitLog(store=LocalStore(root=tmp_path), layout=large)
    assert (log.states == COMMITTED).all()
    assert time.process_time() - start < 2
