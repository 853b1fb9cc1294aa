"""The work shared out: whichever way, the cache has the bytes of a run in one process, and faults say what to do."""

import shutil
from functools import partial
from types import SimpleNamespace

import pytest
from distributed import Client
from xd3d import __version__
from xd3d.cache.layout import CacheLayout
from xd3d.errors import BackendError, ClusterError, ConfigError
from xd3d.stages.extract import dask_cluster, dask_workers
from xd3d.stages.extract.dask_cluster import extract_with_workers
from xd3d.stages.extract.dask_workers import ShardWorker, fill_task
from xd3d.stages.extract.images import PictureSource
from xd3d.stages.extract.job import cache_opener, extract_features

pytestmark = pytest.mark.usefixtures("forked_workers")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of two images; workers find them in the cache."""
    monkeypatch.setattr(CacheLayout, "shard_images", staticmethod(lambda _t, _a, images, _f, _b: min(2, images)))


def tree(folder):
    """Every file of a cache, commit records among them, but its lock."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "writer.lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_every_way_of_sharing_the_work_gives_the_same_bytes(settings, make_index, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    index = make_index(9)
    bad = index.root / str(index.images.path[5])
    bad.write_bytes(bad.read_bytes()[:100])
    plain = extract_features(index, settings(), tmp_path / "plain")
    assert (plain.images, plain.done, plain.failed) == (9, 8, 1)
    shared = extract_with_workers(index, settings(), tmp_path / "workers", workers=2)
    assert (shared.images, shared.done, shared.failed) == (9, 8, 1)
    assert shared.fingerprint == plain.fingerprint
    parts = [extract_features(index, settings(), tmp_path / "parts", part=(i, 2)) for i in (1, 2)]
    assert [(part.images, part.done, part.failed) for part in parts] == [(5, 4, 1), (4, 4, 0)]
    assert tree(tmp_path / "workers") == tree(tmp_path / "plain")
    assert tree(tmp_path / "parts") == tree(tmp_path / "plain")


def test_a_part_waits_for_a_shard_that_another_process_has_claimed(settings, make_index, tmp_path, monkeypatch):
    from xd3d.stages.extract import job

    index = make_index(4)
    extract_features(index, settings(), tmp_path / "plain")
    opener = job.cache_opener(index, settings(), tmp_path / "cache")
    specs = dask_cluster.tap_specs(dask_cluster.settings_model(settings()), settings())
    other = opener(taps=list(specs.values()), shared=True)
    assert other.claim(other.pending_shards()[0])
    monkeypatch.setattr(job.time, "sleep", lambda _: other.close())
    assert extract_features(index, settings(), tmp_path / "cache", part=(1, 1)).done == 4
    assert tree(tmp_path / "cache") == tree(tmp_path / "plain")


@pytest.mark.parametrize("changed", ["model", "unet"])
def test_a_worker_with_other_weights_than_the_run_is_refused(
    changed, settings, make_index, tiny_model, tmp_path, monkeypatch
):
    for name in ("model", "unet"):
        shutil.copytree(tiny_model, tmp_path / name)
    index, chosen = make_index(1), settings(model=str(tmp_path / "model"), unet=str(tmp_path / "unet"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "here").touch()
    worker = ShardWorker(
        name="run",
        version=__version__,
        settings=chosen,
        pictures=PictureSource.of(index, chosen),
        opener=cache_opener(index, chosen, tmp_path / "cache"),
        presence_key="here",
        retry_failed=False,
        threads=None,
    )
    part = {"model": "vae", "unet": "unet"}[changed]
    weights = tmp_path / changed / part / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setattr(dask_workers, "get_worker", lambda: SimpleNamespace(address="tcp://there"))
    with pytest.raises(ClusterError, match=rf"tcp://there has other files of the model {tmp_path / changed} "):
        _ = worker._extractor


def test_a_scheduler_that_does_not_answer_is_named(settings, make_index, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_workers, "CONNECT_TIMEOUT", 0.3)
    for address in ("tcp://127.0.0.1:9", "no-such-protocol://x:1"):
        with pytest.raises(ClusterError, match=rf"'{address}'.*dask"):
            extract_with_workers(make_index(1), settings(), tmp_path / "cache", scheduler=address)


def test_more_workers_than_gpus_are_refused_and_each_gets_its_own(settings, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    found = dask_workers.worker_environments(2, settings(device="auto"))
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in found] == ["2", "5"]
    with pytest.raises(ConfigError, match=r"--workers 3 asks.*GPU.*are 2"):
        dask_workers.worker_environments(3, settings(device="cuda"))
    assert {environment["CUDA_VISIBLE_DEVICES"] for environment in dask_workers.worker_environments(3, settings())} == {
        ""
    }
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BackendError, match=r"extract\.device.*CUDA"):
        dask_workers.worker_environments(2, settings(device="cuda"))


def test_workers_share_out_the_threads_unless_their_number_is_set(settings, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    assert [env["OMP_NUM_THREADS"] for env in dask_workers.worker_environments(3, settings())] == ["2"] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    assert [env["OMP_NUM_THREADS"] for env in dask_workers.worker_environments(2, settings())] == ["5"] * 2


def hide(root):
    """In a worker: let it see no such folder."""
    from pathlib import Path

    sees = Path.is_dir
    Path.is_dir = lambda path: str(path) != root and sees(path)


def forget_package():
    """In a worker: let it have no xd3d to import."""
    import sys

    sys.modules["xd3d.stages.extract.dask_cluster"] = None


def test_workers_of_a_scheduler_do_the_work_and_one_that_does_not_fit_is_named(settings, make_index, tmp_path):
    index = make_index(5)
    extract_features(index, settings(), tmp_path / "plain")
    environments = [{"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}]
    with (
        dask_workers.silenced_dask_logs(),
        dask_workers.local_cluster(environments) as running,
        Client(running) as client,
    ):
        address = running.scheduler_address

        def share(name):
            return extract_with_workers(index, settings(), tmp_path / name, scheduler=address)

        assert share("cache").done == 5
        assert tree(tmp_path / "cache") == tree(tmp_path / "plain")
        assert extract_features(index, settings(), tmp_path / "cache").done == 5, "idle workers keep nobody out"
        client.register_worker_callbacks(setup=partial(hide, str(index.root)))
        with pytest.raises(ClusterError, match=r"tcp://127.*"):
            share("hidden")
        client.run(forget_package)
        with pytest.raises(ClusterError, match=r"tcp://127.*xd3d.*install"):
            share("other")


def deadly(name, shards):
    """In a worker: the task, but shard 1 ends the process as a lack of memory does."""
    import os

    if 1 in shards:
        os.kill(os.getpid(), 9)
    return fill_task(name, shards)


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, 3])
def test_a_shard_that_its_workers_die_over_is_given_up_and_the_others_are_done(
    settings, make_index, tmp_path, monkeypatch, together
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(dask_cluster, "SHARDS_A_TASK", {"cpu": together})
    monkeypatch.setattr(dask_cluster, "TASKS_A_WORKER", 1)
    index, path = make_index(6), tmp_path / "cache"
    extract_features(index, settings(), tmp_path / "plain")
    with monkeypatch.context() as patch:
        patch.setattr(dask_cluster, "fill_task", deadly)
        with pytest.raises(ClusterError, match=r"1 shards.*up.*shard 1 \(images image0-2 to image0-3\).*memory"):
            extract_with_workers(index, settings(), path, workers=1)
    assert sorted(file.name for file in path.glob("done/*.json")) == ["0.json", "2.json"]
    assert extract_with_workers(index, settings(), path, workers=1).done == 6
    assert tree(path) == tree(tmp_path / "plain")
