"""A cache of format 1 trains as before, and one command brings it to format 2."""

import json
import re

import pytest
from xd3d.cache.reader import FeatureReader
from xd3d.cache.writer import CacheWriter
from xd3d.errors import CacheError
from xd3d.pipeline import jobs
from xd3d.pipeline.config import load_config
from xd3d.pipeline.domains import DomainOpener
from xd3d.pipeline.sharing import Sharing
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.extract.job import cache_opener
from xd3d.stages.extract.models import settings_model
from xd3d.stages.extract.taps import tap_specs
from xd3d.stages.train.run_log import read_log

SMALL = (
    "extract.image_size=[48,80]",
    "extract.agents.count=16",
    "model.preset=slim",
    "train.steps=3",
    "train.batch_size=2",
    "train.validate_every=3",
)


@pytest.fixture
def first(tiny_nuscenes_root, tmp_path):
    """A workspace whose cache was begun in format 1, and that cache."""
    workspace = Workspace(home=tmp_path / "xd3d-work")
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT", workspace=workspace)
    opener = DomainOpener(workspace, load_config("default", SMALL).config, cached=True)
    index, settings, path = (
        opener.index("nuscenes"),
        opener.extract_settings("nuscenes"),
        opener.cache_path("nuscenes"),
    )
    facts, specs = cache_opener(index, settings, path).keywords, tap_specs(settings_model(settings), settings)
    CacheWriter.open(path, **{**facts, "agents": 16}, taps=list(specs.values())).close()
    jobs.extract_features(
        "nuscenes", "default", SMALL, None, retry_failed=False, sharing=Sharing(), workspace=workspace
    )
    assert FeatureReader(path).layout.format == 1
    return workspace, path


def losses(workspace, run, *changes, cached):
    jobs.train("default", [*SMALL, *changes], cached=cached, run=run, workspace=workspace)
    return [record["loss"] for record in read_log(run) if "loss" in record]


def test_a_cache_of_format_1_trains_as_before_and_is_upgraded_in_its_place(first, xd3d, tmp_path):
    workspace, path = first
    with pytest.raises(CacheError, match=f"xd3d cache upgrade {re.escape(str(path))}"):
        losses(workspace, tmp_path / "refused", cached=True)
    before = losses(workspace, tmp_path / "first", "fusion.context=none", cached=True)
    assert before == losses(workspace, tmp_path / "online", "fusion.context=none", cached=False)
    done = xd3d("cache", "upgrade", str(path), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    images = len(FeatureReader(path).image_keys)
    assert list(told) == ["cache", "format", "images", "upgraded", "bytes", "seconds", "recomputed"]
    assert (told["cache"], told["format"], told["images"], told["upgraded"]) == (str(path), 2, images, images)
    assert "image/s" in done.stderr
    assert FeatureReader(path).grid.name == "up3"
    assert losses(workspace, tmp_path / "second", "fusion.context=none", cached=True) == before
    assert losses(workspace, tmp_path / "third", cached=True)
    again = xd3d("cache", "upgrade", str(path))
    assert again.returncode == 0
    assert "has format 2" in again.stdout
    assert xd3d("cache", "verify", str(path)).returncode == 0
