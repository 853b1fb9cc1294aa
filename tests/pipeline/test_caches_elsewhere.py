"""Caches that are kept in an object store: every command works on them as on a folder."""

import json

import pytest
from xd3d.errors import CacheError
from xd3d.pipeline import jobs
from xd3d.pipeline.config import load_config
from xd3d.pipeline.domains import DomainOpener
from xd3d.pipeline.runs import run_name
from xd3d.pipeline.workspace import Workspace

SMALL = (
    "extract.image_size=[48,80]",
    "extract.agents.count=16",
    "model.preset=slim",
    "train.steps=4",
    "train.batch_size=2",
    "train.milestones=[3]",
    "train.validate_every=4",
    "train.checkpoint_every=2",
)


@pytest.fixture
def workspace(tmp_path, tiny_nuscenes_root, monkeypatch):
    """A workspace with the tiny data set prepared."""
    monkeypatch.delenv("XD3D_CACHES", raising=False)
    made = Workspace(home=tmp_path / "work")
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT", workspace=made)
    return made


@pytest.mark.slow
def test_from_extraction_to_scores_with_the_cache_in_a_bucket(workspace, new_bucket, xd3d, monkeypatch):
    place = new_bucket()
    settings = (*SMALL, f"extract.caches={place}")
    expected = jobs.extract_features("nuscenes", "default", settings, None, dry_run=True, workspace=workspace)
    assert expected.result["free_bytes"] is None
    assert expected.exit_code == 0
    done = jobs.extract_features("nuscenes", "default", settings, None, retry_failed=False, workspace=workspace)
    cache = done.result["cache"]
    assert cache.startswith(f"{place}/nuscenes-")
    assert not (workspace.home / "cache").exists()
    assert (
        jobs.extract_features("nuscenes", "default", settings, None, retry_failed=False, workspace=workspace).result[
            "cache"
        ]
        == cache
    )
    info = json.loads(xd3d("cache", "info", cache, "--json").stdout.splitlines()[-1])
    assert (info["cache"], info["done"]) == (cache, info["images"])
    assert json.loads(xd3d("cache", "verify", cache, "--json").stdout.splitlines()[-1])["ok"]
    with pytest.raises(CacheError, match=r"/cache.*xd3d extract-features"):
        jobs.train("default", SMALL, cached=True, run=None, workspace=workspace)
    assert jobs.train("default", settings, cached=True, run=None, workspace=workspace).result["steps"] == 4
    assert jobs.evaluate(None, split=None, domain="target", absent=None, workspace=workspace).result["points"] > 0
    monkeypatch.setenv("XD3D_CACHES", place)
    assert jobs.train("default", SMALL, cached=True, run=None, workspace=workspace).result["steps"] == 4


def test_where_caches_are_kept_is_no_part_of_a_run_or_of_a_fingerprint(workspace):
    resolved = [load_config("default", [*SMALL, *more]) for more in ((), ("extract.caches=/elsewhere",))]
    openers = [DomainOpener(workspace, each.config, cached=True) for each in resolved]
    assert len({run_name(each, opener, cached=True) for each, opener in zip(resolved, openers, strict=True)}) == 1
    assert openers[0].fingerprint("nuscenes") == openers[1].fingerprint("nuscenes")
    assert openers[1].cache_path("nuscenes").parent.name == "elsewhere"


def test_a_bucket_that_is_not_there_is_named_by_every_command(workspace, s3, xd3d):
    for command in (("cache", "info", "s3://nowhere/x"), ("cache", "verify", "s3://nowhere/x")):
        done = xd3d(*command)
        assert done.returncode == 1
        assert "there is no bucket 'nowhere'" in done.stderr
        assert "Traceback" not in done.stderr
    done = xd3d("doctor", "--json", XD3D_HOME=str(workspace.home), XD3D_CACHES="s3://nowhere/x")
    findings = json.loads(done.stdout.splitlines()[-1])["findings"]
    assert [finding["status"] for finding in findings if finding["name"] == "caches"] == ["fault"]
