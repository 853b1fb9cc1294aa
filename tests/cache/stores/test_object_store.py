"""What only an object store can do wrong: answers that do not come, refusals, uploads that break off."""

import builtins
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from numpy_encoder import write_shard
from xd3d.cache.reader import FeatureReader
from xd3d.cache.stores import object_store, open_store
from xd3d.cache.stores.s3 import split_url
from xd3d.cache.verify import cache_info, verify_cache
from xd3d.errors import CacheError, StoreError


@pytest.fixture
def whole(new_bucket, open_writer, features_of_rows):
    """A complete cache in a bucket."""
    url = new_bucket()
    with open_writer(url) as writer:
        for shard in writer.pending_shards():
            write_shard(writer, shard, features_of_rows(shard.rows), {})
    return url


def refuse_after(monkeypatch, count):
    """Let the store take ``count`` more objects and then break off."""
    left, put = [count], object_store.ObjectStore.put

    def failing(store, key, content):
        left[0] -= 1
        if left[0] < 0:
            raise StoreError("the connection broke")
        put(store, key, content)

    monkeypatch.setattr(object_store.ObjectStore, "put", failing)


@pytest.mark.parametrize("sent", [0, 4, *(pytest.param(sent, marks=pytest.mark.slow) for sent in (1, 2, 3))])
def test_an_upload_that_breaks_off_leaves_no_record_and_the_shard_is_written_again(
    whole, sent, open_writer, features_of_rows, monkeypatch
):
    with open_writer(whole) as writer:
        shard = writer.layout.shard(2)
        with monkeypatch.context() as patch:
            refuse_after(patch, sent)
            with pytest.raises(StoreError, match=r"shard 2"):
                write_shard(writer, shard, features_of_rows(range(4)), {})
    for look in (cache_info, verify_cache):
        assert look(whole).get("done", 14) == 14
    assert not FeatureReader(whole).available[8:12].any()
    assert [fault["file"] for fault in verify_cache(whole)["damaged"]] == ["done/2.json"]  # it was finished before
    with open_writer(whole) as writer:
        assert [shard.index for shard in writer.pending_shards()] == [2]
        write_shard(writer, shard, features_of_rows(shard.rows), {})
    np.testing.assert_array_equal(FeatureReader(whole).read([8]).geometry, features_of_rows([8]).geometry)


def test_two_writers_of_one_shard_never_give_wrong_rows(whole, open_writer, features_of_rows, monkeypatch):
    """The record of one beside the objects of the other, which wrote something else."""
    with open_writer(whole) as one, open_writer(whole) as two:
        shard, put = one.layout.shard(0), object_store.ObjectStore.put

        with monkeypatch.context() as patch:

            def overtaken(store, key, content):
                if key == "done/0.json":
                    patch.undo()
                    write_shard(two, shard, features_of_rows(range(4, 8)), {})
                put(store, key, content)

            patch.setattr(object_store.ObjectStore, "put", overtaken)
            write_shard(one, shard, features_of_rows(shard.rows), {})
        with pytest.raises(CacheError, match="crc32c"):
            FeatureReader(whole).read([0])
        assert {fault["image"] for fault in verify_cache(whole)["damaged"]} == {f"image-000{row}" for row in range(4)}


def test_a_missing_bucket_is_named(s3, open_writer):
    for use in (open_writer, FeatureReader, cache_info, verify_cache):
        with pytest.raises(StoreError, match=f"'nowhere' at {s3}"):
            use("s3://nowhere/cache")


def test_wrong_credentials_are_distinguished_from_a_missing_cache(whole, s3):
    def check(count):
        plain = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{s3}/moto-api/reset-auth", count, plain)).close()

    check(b"0")
    try:
        with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
            FeatureReader(whole)
    finally:
        check(b"inf")
    FeatureReader(whole)


def test_an_endpoint_that_is_not_there_is_an_error_in_seconds(s3, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed}")
    start = time.monotonic()
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL"):
        cache_info("s3://bucket/cache")
    assert time.monotonic() - start < 10


@pytest.mark.slow
def test_an_endpoint_that_never_answers_is_given_up(s3, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(StoreError, match="does not answer"):
            cache_info("s3://bucket/cache")
        assert time.monotonic() - start < 60


def test_a_store_that_went_away_is_no_damage(whole, monkeypatch, open_writer):
    """Rows are not called damaged, nor shards pending, because the network failed."""
    reader = FeatureReader(whole)
    with open_writer(whole) as writer:
        monkeypatch.setattr(object_store, "store_errors", gone)
        for use in (lambda: reader.read([0]), lambda: verify_cache(whole), writer.pending_shards, reader.refresh):
            with pytest.raises(StoreError, match="gone"):
                use()
    assert reader.available.all()


def gone(location, bucket):
    raise StoreError("gone")


def test_an_unencrypted_endpoint_must_be_allowed(s3, monkeypatch):
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(CacheError, match="AWS_ALLOW_HTTP=true"):
        open_store("s3://bucket/cache")


def test_a_missing_package_is_named_with_the_line_that_installs_it(s3, monkeypatch):
    load = builtins.__import__

    def without(name, *rest):
        if name.startswith("obstore"):
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CacheError, match=r"pip install 'xd3d\[s3\]'"):
        open_store("s3://bucket/cache")


@pytest.mark.timeout(20)
def test_a_forked_child_is_refused_and_does_not_hang(whole):
    reader = FeatureReader(whole)
    reader.read([0])
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            reader.read([0])
        except StoreError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    try:
        assert select.select([read], [], [], 10)[0], "the child hangs"
        assert b"spawn" in os.read(read, 1000)
    finally:
        os.close(read)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_many_rows_are_fetched_at_once(whole, features_of_rows):
    reader = pickle.loads(pickle.dumps(FeatureReader(whole)))
    rows = [*range(18), 3, 17]
    np.testing.assert_array_equal(reader.read(rows).maps["rgb"], features_of_rows(rows).maps["rgb"])


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "s3:/bucket/prefix", "gs://bucket/prefix"])
def test_a_url_without_a_bucket_or_of_another_kind_is_refused(s3, url):
    with pytest.raises(CacheError, match="s3://bucket/prefix"):
        open_store(url)


def test_a_bucket_and_its_prefix(s3):
    assert split_url("s3://bucket") == ("bucket", "")
    assert split_url("s3://bucket//a/b/") == ("bucket", "a/b")
    assert open_store("s3://bucket/a/").location == "s3://bucket/a"


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from conftest import _features, _open, write_shard
with _open(sys.argv[1], image_keys=[f"k{i}" for i in range(60)]) as writer:
    print("ready", flush=True)
    for shard in writer.pending_shards():
        write_shard(writer, shard, _features(shard.rows), {})
"""


@pytest.mark.slow
def test_a_writer_killed_while_it_uploads_leaves_whole_shards_and_is_resumed(new_bucket, features_of_rows):
    url = new_bucket()
    for delay in (0.05, 0.2, None):
        command = [sys.executable, "-c", WRITER, url, Path(__file__).parents[1]]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            if delay is not None:
                time.sleep(delay)
                process.kill()
        assert verify_cache(url)["damaged"] == []
    np.testing.assert_array_equal(FeatureReader(url).read(range(60)).geometry, features_of_rows(range(60)).geometry)
