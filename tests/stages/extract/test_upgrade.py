"""An upgrade gives a cache of format 1 the memberships that stage one would have stored, without the model."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy_encoder import write_shard
from xd3d.cache.export import export_cache
from xd3d.cache.layout import PROFILES
from xd3d.cache.maintenance import repair_cache
from xd3d.cache.reader import FeatureReader
from xd3d.cache.verify import cache_info, verify_cache
from xd3d.cache.writer import CacheWriter
from xd3d.errors import CacheError, CacheMismatchError, DataError, DiskSpaceError
from xd3d.stages.extract.diffusion_backbone import DiffusionBackbone
from xd3d.stages.extract.extractor import FeatureExtractor
from xd3d.stages.extract.forecast import forecast
from xd3d.stages.extract.job import cache_opener, extract_features
from xd3d.stages.extract.models import settings_model
from xd3d.stages.extract.taps import tap_specs
from xd3d.stages.extract.upgrade import upgrade_cache

HERE = Path(__file__).parent
ARCHIVE = HERE.parents[1] / "cache" / "format1.zip"  # what the last version of format 1 wrote


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Let a few tiny images fill several shards."""
    from xd3d.cache.layout import CacheLayout

    monkeypatch.setattr(CacheLayout, "shard_images", staticmethod(lambda _t, _a, images, _f, _b: min(2, images)))


@pytest.fixture
def exact_maps(monkeypatch):
    """Let the model give maps that float16 holds exactly, as half-precision models do."""
    compute = DiffusionBackbone.__call__

    def rounded(self, pictures, keys):
        return {name: v if name == "rgb" else v.half().float() for name, v in compute(self, pictures, keys).items()}

    monkeypatch.setattr(DiffusionBackbone, "__call__", rounded)


def extract_first(index, settings, path, **options):
    """Stage one into a cache of format 1."""
    if not path.exists():
        open_first(index, settings, path).close()
    return extract_features(index, settings, path, **options)


def open_first(index, settings, path):
    """A writer of a new cache of format 1."""
    opener, specs = cache_opener(index, settings, path), tap_specs(settings_model(settings), settings)
    return CacheWriter.open(path, **{**opener.keywords, "agents": settings.agents.count}, taps=list(specs.values()))


def no_index():
    pytest.fail("the index is not needed")


def tree(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != "writer.lock" and file.parent.name != "locks"
    }


@pytest.mark.usefixtures("exact_maps")
@pytest.mark.parametrize("assign", ["features", "features+rgb", "rgb"])
def test_an_upgraded_cache_is_that_of_stage_one_where_maps_are_exact(
    settings, make_index, tmp_path, monkeypatch, assign
):
    index = make_index(5)
    chosen = settings(batch_size=1, views=("identity", "hflip"), agents={"count": 12, "rounds": 3, "assign": assign})
    (index.root / str(index.images.path[3])).write_bytes(b"no picture")
    extract_first(index, chosen, tmp_path / "first")
    extract_features(index, chosen, tmp_path / "second")
    monkeypatch.setattr(FeatureExtractor, "__init__", lambda *_, **__: pytest.fail("the model is not needed"))
    done = upgrade_cache(tmp_path / "first", index=no_index if assign == "features" else lambda: index)
    assert (done.format, done.images, done.upgraded, done.recomputed) == (2, 10, 8, 0)
    assert tree(tmp_path / "first") == tree(tmp_path / "second")
    stored = cache_info(tmp_path / "first")["arrays"]
    assert done.bytes == stored["agents/assignment"]["bytes"] + stored["agents/membership"]["bytes"]
    again = upgrade_cache(tmp_path / "first", index=no_index)
    assert (again.format, again.images, again.upgraded, again.bytes, again.recomputed) == (2, 10, 0, 0, 0)


@pytest.mark.parametrize("profile", PROFILES)
def test_rounded_maps_give_nearly_the_same_memberships(settings, make_index, tmp_path, profile):
    index, chosen = make_index(5), settings(batch_size=1, profile=profile)
    extract_first(index, chosen, tmp_path / "first")
    extract_features(index, chosen, tmp_path / "second")
    done = upgrade_cache(tmp_path / "first", index=lambda: index)
    assert done.upgraded == 5
    first, second = (FeatureReader(tmp_path / name).read(range(5)) for name in ("first", "second"))
    same = (first.assignment == second.assignment).all(axis=1).mean(axis=(1, 2))
    strongest = (first.assignment[:, 0] == second.assignment[:, 0]).mean()
    if profile == "exact":
        assert done.recomputed == 0
        assert same.min() > 0.97
    assert strongest > (0.99 if profile == "exact" else 0.85)


@pytest.fixture
def old_cache(tmp_path):
    """Five images, of which row 3 has failed and the last shard is not there; and the strongest agents of its cells."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path / "old")
    with np.load(tmp_path / "old" / "expected.npz") as expected:
        return tmp_path / "old" / "cache", dict(expected)


def test_a_cache_of_the_last_version_gets_what_its_own_stage_one_had(old_cache):
    path, expected = old_cache
    before = tree(path)
    done = upgrade_cache(path, index=no_index)
    assert (done.images, done.upgraded, done.recomputed) == (5, 3, 0)
    assert verify_cache(path) == {"ok": True, "images": 5, "checked": 4, "damaged": []}
    reader = FeatureReader(path)
    read = reader.read([0, 1, 2])
    assert reader.grid == reader.taps["up3"]
    assert (read.assignment[:, 0] == expected["strongest"]).mean() >= 0.99
    near = np.abs(read.membership[:, 0] / 255 - expected["largest"].astype(np.float64))
    assert np.quantile(near, 0.99) < 0.02
    assert reader.available.tolist() == [True, True, True, False, False]
    assert {name for name in before if tree(path)[name] != before[name]} == {"zarr.json", "done/0.json", "done/1.json"}


@pytest.mark.usefixtures("exact_maps")
def test_images_whose_grouping_settles_elsewhere_get_memberships_in_their_stored_agents(settings, make_index, tmp_path):
    """The stored agents are put into another order, which is the farthest that a grouping can settle elsewhere."""
    index, chosen = make_index(4), settings(batch_size=1)
    extract_features(index, chosen, tmp_path / "second")
    source = FeatureReader(tmp_path / "second")
    order = np.random.default_rng(3).permutation(12)
    with open_first(index, chosen, tmp_path / "first") as writer:
        for shard in writer.pending_shards():
            features = source.read(shard.rows)
            agents = {name: values[:, order] for name, values in features.agents.items()}
            write_shard(writer, shard, replace(features, agents=agents, geometry=features.geometry[:, order]), {})
    assert upgrade_cache(tmp_path / "first", index=lambda: index).recomputed == 4
    truth, found = source.read(range(4)), FeatureReader(tmp_path / "first").read(range(4))
    assert (order[found.assignment] == truth.assignment).mean() > 0.99
    assert np.abs(found.membership.astype(int) - truth.membership).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, 30])
def test_an_upgrade_killed_at_random_moments_ends_as_an_unbroken_one(old_cache, kills):
    path, _ = old_cache
    done = subprocess.run(
        [sys.executable, HERE / "killed_upgrade.py", path.parent, str(kills), "5"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["killed"] == kills


def test_a_picture_that_is_gone_stops_an_upgrade_which_then_resumes(settings, make_index, tmp_path):
    index, chosen, path = make_index(5), settings(), tmp_path / "cache"
    extract_first(index, chosen, path)
    picture = index.root / str(index.images.path[3])
    whole = picture.read_bytes()
    picture.unlink()
    with pytest.raises(DataError, match=r"images/3\.png.*missing"):
        upgrade_cache(path, index=lambda: index)
    assert FeatureReader(path).layout.format == 1
    moved = index.root.rename(tmp_path / "moved")
    (moved / str(index.images.path[3])).write_bytes(whole)
    done = upgrade_cache(path, index=lambda: replace(index, root=moved))
    assert (done.upgraded, done.format) == (3, 2)
    FeatureReader(path).read(range(5))


def test_what_an_upgrade_cannot_do_right_it_refuses(settings, make_index, tmp_path, monkeypatch):
    index, chosen, path = make_index(4), settings(), tmp_path / "cache"
    extract_first(index, chosen, path)
    other = replace(index, images=replace(index.images, size=index.images.size + 1))
    with pytest.raises(CacheMismatchError, match="another index of pictures"):
        upgrade_cache(path, index=lambda: other)
    export_cache(path, tmp_path / "taps", taps=["up2"])
    with pytest.raises(CacheError, match="upgrade the cache it was exported from"):
        upgrade_cache(tmp_path / "taps", index=lambda: index)
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(DiskSpaceError, match="memberships need"):
            upgrade_cache(path, index=lambda: index)
    assert FeatureReader(path).layout.format == 1
    export_cache(path, tmp_path / "images", images=["image0-2"])
    assert upgrade_cache(tmp_path / "images", index=lambda: index).upgraded == 1
    layout = FeatureReader(path).layout
    strange = CacheWriter.open(
        tmp_path / "strange",
        taps=layout.taps,
        agents=12,
        image_keys=["one"],
        images_per_frame=1,
        fingerprint={"model": "of another age"},
    )
    strange.close()
    with pytest.raises(CacheError, match="does not say how its agents were made"):
        upgrade_cache(tmp_path / "strange", index=lambda: index)


def test_a_cache_of_format_1_is_finished_retried_forecast_and_repaired_as_one(settings, make_index, tmp_path):
    index, chosen, path = make_index(5), settings(), tmp_path / "cache"
    picture = index.root / str(index.images.path[1])
    whole = picture.read_bytes()
    picture.write_bytes(whole[:100])
    assert extract_first(index, chosen, path).failed == 1
    foretold = forecast(index, chosen, path)
    assert (foretold.bytes, foretold.bytes_left) == (cache_info(path)["bytes"], 0)
    picture.write_bytes(whole)
    assert extract_features(index, chosen, path, retry_failed=True).failed == 0
    sound = tree(path)
    file = path / "features/up2/c/1/0/0/0"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    (path / "zarr.json").unlink()
    extract_features(index, chosen, path)
    assert repair_cache(path) == {"dropped": 2, "metadata": []}
    extract_features(index, chosen, path)
    assert tree(path) == sound
    assert FeatureReader(path).layout.format == 1
