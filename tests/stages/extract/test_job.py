"""The job fills a cache that any interruption leaves resumable, and that equals what the online source computes."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from xd3d.cache.layout import PROFILES, CacheLayout
from xd3d.cache.reader import FeatureReader
from xd3d.cache.schema import named_arrays
from xd3d.cache.verify import cache_info, verify_cache
from xd3d.errors import CacheError, CacheMismatchError, ConfigError, DataError, DiskSpaceError, MissingDataError
from xd3d.stages.extract.extractor import FeatureExtractor
from xd3d.stages.extract.fingerprint import feature_fingerprint
from xd3d.stages.extract.forecast import forecast
from xd3d.stages.extract.images import PictureSource
from xd3d.stages.extract.job import cache_opener, extract_features, stored_bytes
from xd3d.stages.extract.models import settings_model
from xd3d.stages.extract.online import OnlineExtractor
from xd3d.stages.extract.settings import DEFAULT_TAPS
from xd3d.stages.extract.taps import tap_specs

SHARD = 3  # images a shard in these tests, which is no multiple of the batch size


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Let a few tiny images fill several shards."""
    from xd3d.cache.layout import CacheLayout

    monkeypatch.setattr(CacheLayout, "shard_images", staticmethod(lambda _t, _a, images, _f, _b: min(SHARD, images)))


def everything(path, rows=None):
    reader = FeatureReader(path)
    return named_arrays(reader.read(range(len(reader.image_keys)) if rows is None else rows))


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert np.array_equal(values, second[name]), name


def test_the_cache_holds_every_image_and_zarr_reads_it(settings, make_index, tmp_path):
    index, path = make_index(7), tmp_path / "cache"
    summary = extract_features(index, settings(), path)
    assert (summary.images, summary.done, summary.failed, summary.cache) == (7, 7, 0, path)
    assert cache_info(path)["fingerprint"] == summary.fingerprint
    assert verify_cache(path)["ok"]
    group = zarr.open(path, mode="r")
    assert group["features/up2"].shape == (7, 16, 7, 12)
    assert np.array_equal(group["agents/geometry"][:], everything(path)["agents/geometry"])
    assert group["agents/assignment"].shape == group["agents/membership"].shape == (7, 4, 13, 23)


@pytest.mark.parametrize("profile", PROFILES)
def test_cached_features_equal_online_ones_bit_for_bit(settings, make_index, tmp_path, profile):
    index, path = make_index(5), tmp_path / "cache"
    extract_features(index, settings(batch_size=1, profile=profile), path)
    online = OnlineExtractor(index=index, settings=settings(batch_size=1, profile=profile))
    rows = [4, 0, 3]
    fresh, stored = online.read(rows), FeatureReader(path).read(rows)
    assert dict(online.taps) == dict(FeatureReader(path).taps)
    assert online.grid == FeatureReader(path).grid == online.taps["up3"]
    assert_same(named_arrays(fresh), named_arrays(stored))
    assert bool(fresh.scales) == (profile == "compact")
    assert fresh.assignment.any()


@pytest.mark.parametrize("count", [2, 300])
def test_stored_memberships_are_the_largest_of_the_grouping(settings, make_index, tmp_path, count):
    index, path, chosen = make_index(3), tmp_path / "cache", settings(agents={"count": count, "rounds": 2})
    extract_features(index, chosen, path)
    extractor, pictures = FeatureExtractor(settings=chosen), PictureSource(index=index, image_size=chosen.image_size)
    images = torch.from_numpy(pictures.read([0, 1])[0])
    maps = extractor.backbone(images, pictures.keys([0, 1]))
    with torch.inference_mode():
        whole = extractor.agents({name: values for name, values in maps.items() if name != "rgb"}, images).assignment
    stored = FeatureReader(path).read([0, 1])
    kept = min(count, 4)
    expected = np.sort(whole.numpy().astype(np.float64), axis=1)[:, ::-1][:, :4]
    assert np.abs(stored.membership[:, :kept] / 255 - expected).max() <= 0.5 / 255 + 1e-6
    chosen_weights = np.take_along_axis(whole.numpy(), stored.assignment[:, :kept].astype(np.int64), axis=1)
    np.testing.assert_array_equal(chosen_weights, expected.astype(np.float32))
    assert not stored.assignment[:, kept:].any()
    assert not stored.membership[:, kept:].any()


def test_stored_features_are_those_of_the_model_within_float16(settings, make_index, tmp_path):
    index, path, chosen = make_index(3), tmp_path / "cache", settings(batch_size=1)
    extract_features(index, chosen, path)
    pictures = PictureSource(index=index, image_size=chosen.image_size)
    model = FeatureExtractor(settings=chosen).backbone
    computed = model(torch.from_numpy(pictures.read([2])[0]), pictures.keys([2]))
    stored = FeatureReader(path).read([2])
    for name, values in computed.items():
        assert values.dtype == (torch.uint8 if name == "rgb" else torch.float32)
        np.testing.assert_allclose(stored.maps[name], values.numpy(), rtol=2**-10, atol=2**-24)


class Killed(BaseException):
    """Stands for any sudden end of the process."""


@pytest.mark.parametrize("after", [1, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (2, 3))])
def test_a_resumed_run_gives_the_bytes_of_an_unbroken_one(settings, make_index, tmp_path, monkeypatch, after):
    index = make_index(8)
    extract_features(index, settings(), tmp_path / "whole")
    calls = []
    compute = FeatureExtractor.begin

    def fragile(self, pictures, keys):
        calls.append(keys)
        if len(calls) > after:
            raise Killed
        return compute(self, pictures, keys)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractor, "begin", fragile)
        with pytest.raises(Killed):
            extract_features(index, settings(), tmp_path / "broken")
    before = cache_info(tmp_path / "broken")["done"]
    assert before == SHARD * (after // 2)
    summary = extract_features(index, settings(), tmp_path / "broken")
    assert summary.done == 8
    assert_same(everything(tmp_path / "whole"), everything(tmp_path / "broken"))


def test_agents_are_grouped_beside_the_model_of_the_next_batch(settings, make_index, tmp_path, monkeypatch):
    index, begin = make_index(4), FeatureExtractor.begin
    extract_features(index, settings(batch_size=1), tmp_path / "plain")
    begun = [threading.Event() for _ in range(4)]

    def linked(self, pictures, keys):
        number = sum(event.is_set() for event in begun)
        begun[number].set()
        finish = begin(self, pictures, keys)

        def rest():
            assert begun[min(number + 1, 3)].wait(60), "the model waits for the agents"
            return finish()

        return rest

    monkeypatch.setattr(FeatureExtractor, "begin", linked)
    extract_features(index, settings(batch_size=1), tmp_path / "linked")
    assert_same(everything(tmp_path / "plain"), everything(tmp_path / "linked"))


def test_an_error_of_the_agents_ends_the_run_and_keeps_what_is_complete(settings, make_index, tmp_path, monkeypatch):
    index, path, calls, group = make_index(8), tmp_path / "cache", [], FeatureExtractor._rows

    def failing(self, images, maps):
        calls.append(len(images))
        if len(calls) > 4:
            raise RuntimeError("no agents")
        return group(self, images, maps)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractor, "_rows", failing)
        with pytest.raises(RuntimeError, match="no agents"):
            extract_features(index, settings(batch_size=1), path)
    assert cache_info(path)["done"] == 4 // SHARD * SHARD
    assert extract_features(index, settings(batch_size=1), path).done == 8


def test_a_write_that_fails_behind_the_model_ends_the_run_with_its_own_error(
    settings, make_index, tmp_path, monkeypatch
):
    index, path = make_index(12), tmp_path / "cache"
    calls, compute = [], FeatureExtractor.begin

    def spoiling(self, pictures, keys):
        calls.append(keys)
        if len(calls) == SHARD + 1:
            while not (path / "done/0.json").exists():
                time.sleep(0.001)
            (path / "staging").rmdir()
            (path / "staging").write_text("in the way")
        return compute(self, pictures, keys)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractor, "begin", spoiling)
        with pytest.raises(CacheError, match="writing shard 1"):
            extract_features(index, settings(batch_size=1), path)
    assert len(calls) <= 3 * SHARD
    (path / "staging").unlink()
    assert extract_features(index, settings(batch_size=1), path).done == 12


def test_the_summary_says_where_the_time_went(settings, make_index, tmp_path):
    index, path = make_index(4), tmp_path / "cache"
    summary = extract_features(index, settings(), path)
    assert set(summary.shares) == {"model", "agents", "decoding", "writing"}
    assert all(share >= 0 for share in summary.shares.values())
    assert 0.5 < sum(summary.shares.values()) <= 1
    assert 4 / summary.seconds < summary.images_per_second
    assert extract_features(index, settings(), path).images_per_second == 0


def test_a_finished_cache_is_left_as_it_is(settings, make_index, tmp_path, monkeypatch):
    index, path = make_index(4), tmp_path / "cache"
    extract_features(index, settings(), path)
    times = {file: file.stat().st_mtime_ns for file in path.glob("features/**/*")}
    monkeypatch.setattr(FeatureExtractor, "begin", lambda *_: pytest.fail("computed again"))
    assert extract_features(index, settings(), path).done == 4
    assert times == {file: file.stat().st_mtime_ns for file in path.glob("features/**/*")}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_an_end_in_the_middle_leaves_a_cache_that_can_be_resumed(settings, make_index, tmp_path, number, code):
    index, path = make_index(12), tmp_path / "cache"
    index.save(tmp_path / "index")
    chosen = settings(shard_mb=1, batch_size=1)
    (tmp_path / "settings.json").write_text(chosen.model_dump_json())
    script = (
        "import pathlib, sys; from xd3d.cache.layout import CacheLayout\n"
        "from xd3d.stages.datasets.index import FrameIndex; from xd3d.stages.extract.job import extract_features\n"
        "from xd3d.stages.extract.settings import ExtractSettings\n"
        "from xd3d.pipeline.console import run_command_line\n"
        "CacheLayout.shard_images = staticmethod(lambda t, a, images, f, b: min(3, images))\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "settings = ExtractSettings.model_validate_json((folder / 'settings.json').read_text())\n"
        "index = FrameIndex.load(folder / 'index')\n"
        "run_command_line(lambda: extract_features(index, settings, folder / 'cache'))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stderr=subprocess.DEVNULL, env=environment
    )
    deadline = time.monotonic() + 120
    while not list(path.glob("done/*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait(timeout=60) in (code, 0)
    assert 0 < cache_info(path)["done"] <= 12
    assert extract_features(index, chosen, path).done == 12
    extract_features(index, chosen, tmp_path / "whole")
    assert_same(everything(tmp_path / "whole"), everything(path))


def test_a_bad_image_is_recorded_and_the_others_are_what_they_would_have_been(settings, make_index, tmp_path):
    index = make_index(5)
    extract_features(index, settings(), tmp_path / "good")
    bad = index.root / str(index.images.path[1])
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    summary = extract_features(index, settings(), tmp_path / "cache")
    assert (summary.done, summary.failed) == (4, 1)
    reader = FeatureReader(tmp_path / "cache")
    assert list(reader.failed) == [1]
    assert "images/1.png" in reader.failed[1]
    assert "cannot be decoded" in reader.failed[1]
    assert_same(everything(tmp_path / "good", [0, 2, 3, 4]), everything(tmp_path / "cache", [0, 2, 3, 4]))
    with pytest.raises(CacheError):
        reader.read([1])
    with pytest.raises(DataError, match=r"images/1\.png"):
        OnlineExtractor(index=index, settings=settings()).read([0, 1])
    assert extract_features(index, settings(), tmp_path / "cache").failed == 1
    bad.write_bytes(whole)
    assert forecast(index, settings(), tmp_path / "cache").left == 0
    assert forecast(index, settings(), tmp_path / "cache", retry_failed=True).left == 1
    assert extract_features(index, settings(), tmp_path / "cache", retry_failed=True).failed == 0
    assert_same(everything(tmp_path / "good"), everything(tmp_path / "cache"))


def test_images_of_a_frame_share_a_shard(settings, make_index, tmp_path, monkeypatch):
    monkeypatch.undo()
    summary = extract_features(make_index(2, cameras=3), settings(), tmp_path / "cache")
    assert summary.done == 6
    assert FeatureReader(tmp_path / "cache").read([3, 4, 5]).geometry.shape == (3, 12, 5)


def test_other_settings_are_refused_by_name(settings, make_index, tmp_path):
    index = make_index(2)
    extract_features(index, settings(), tmp_path / "cache")
    with pytest.raises(CacheMismatchError, match="timestep: expected 50, found 0"):
        extract_features(index, settings(timestep=50), tmp_path / "cache")
    with pytest.raises(CacheMismatchError, match=r'\n  profile:.*"compact",.*"exact"\n'):
        extract_features(index, settings(profile="compact"), tmp_path / "cache")


def test_a_full_disk_is_noticed_before_work_begins(settings, make_index, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(FeatureExtractor, "begin", lambda *_: pytest.fail("work began"))
    with pytest.raises(DiskSpaceError, match=r"need 0\.00 GB more.*0\.00 GB free"):
        extract_features(make_index(3), settings(), tmp_path / "cache")


def test_a_missing_root_is_said_before_the_model_is_loaded(settings, make_index, tmp_path):
    index = replace(make_index(1), root=tmp_path / "gone")
    with pytest.raises(MissingDataError, match="gone"):
        extract_features(index, settings(model="no-such-model"), tmp_path / "cache")


@pytest.mark.parametrize("profile", PROFILES)
def test_the_forecast_states_the_bytes_that_are_then_written(settings, make_index, tmp_path, profile):
    index, path = make_index(8), tmp_path / "caches" / "one"
    foretold = forecast(index, settings(profile=profile), path)
    assert not path.parent.exists()
    assert (foretold.images, foretold.left, foretold.fits) == (8, 8, True)
    assert foretold.seconds == pytest.approx(8 * foretold.seconds_per_image)
    extract_features(index, settings(profile=profile), path)
    assert foretold.bytes == cache_info(path)["bytes"]
    again = forecast(index, settings(profile=profile), path)
    assert (again.left, again.bytes_left, again.seconds) == (0, 0, 0)


def test_the_fingerprint_changes_with_what_changes_bytes_and_with_nothing_else(settings, make_index, tmp_path):
    index = make_index(2)
    base = feature_fingerprint(settings(), index)
    for change in (
        {"taps": ("up2",)},
        {"timestep": 1},
        {"image_size": (100, 181)},
        {"dtype": "bfloat16"},
        {"weights": "random"},
        {"agents": {"count": 13, "rounds": 3}},
        {"agents": {"count": 12, "rounds": 3, "assign": "rgb"}},
        {"profile": "compact"},
    ):
        assert feature_fingerprint(settings(**change), index) != base, change
    assert feature_fingerprint(settings(noise_seed=5), index) == base
    assert feature_fingerprint(settings(batch_size=7, shard_mb=9, weights_seed=4), index) == base
    noisy = feature_fingerprint(settings(timestep=9), index)
    assert feature_fingerprint(settings(timestep=9, noise_seed=5), index) != noisy
    other = replace(index, images=replace(index.images, size=index.images.size + 1))
    assert feature_fingerprint(settings(), other) != base


def test_the_model_in_the_fingerprint_is_its_content_and_not_its_place(settings, make_index, tiny_model, tmp_path):
    index, copy = make_index(1), tmp_path / "elsewhere"
    shutil.copytree(tiny_model, copy)
    (copy / "README.md").write_text("not part of the model")
    base = feature_fingerprint(settings(), index)
    assert feature_fingerprint(settings(model=str(copy)), index) == base
    with (copy / "unet/diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert feature_fingerprint(settings(model=str(copy)), index)["model"] != base["model"]


def test_a_picture_of_another_size_than_the_index_says_fails(settings, make_index, tmp_path):
    index = make_index(2)
    Image.new("RGB", (20, 10)).save(index.root / str(index.images.path[0]))
    extract_features(index, settings(), tmp_path / "cache")
    assert "is 20x10 pixels, the index says 320x180" in FeatureReader(tmp_path / "cache").failed[0]


@pytest.mark.parametrize("agents", [{"grid": "up3"}, {"tap_weights": {"up3": 2.0}}])
def test_agents_name_taps_that_the_network_has_by_default(agents, settings, make_index, network_folder, tmp_path):
    chosen = settings(model=str(network_folder("dinov2")), taps=DEFAULT_TAPS, agents=agents)
    with pytest.raises(ConfigError, match=r"extract\.agents\.\w+ names 'up3', which is not among the taps block2"):
        extract_features(make_index(1), chosen, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_forecast_knows_the_shards_of_a_cache_that_was_begun(settings, make_index, tmp_path, monkeypatch):
    index, specs = make_index(6), tap_specs(settings_model(settings()), settings())
    with cache_opener(index, settings(), tmp_path / "cache")(taps=list(specs.values())) as writer:
        assert writer.layout.shard_count > 1
        expected = stored_bytes(writer.layout, writer.layout.shards())
    monkeypatch.setattr(CacheLayout, "shard_images", staticmethod(lambda _t, _a, images, _f, _b: images))
    assert forecast(index, settings(), tmp_path / "cache").bytes == expected
