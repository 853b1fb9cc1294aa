"""A cache in another precision than this machine would choose is continued and read as it is, unless one is set."""

import pytest
from xd3d.errors import CacheMismatchError
from xd3d.pipeline import jobs
from xd3d.pipeline.config import load_config
from xd3d.pipeline.domains import DomainOpener
from xd3d.pipeline.sharing import Sharing
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.datasets.settings import DomainSettings
from xd3d.stages.extract import precision

SMALL = ("extract.image_size=[32,64]", "extract.agents.count=4")


@pytest.fixture
def workspace(tiny_nuscenes_root, tmp_path, monkeypatch):
    """A workspace with an index, on a machine for which the tiny model is a full-size one, without bfloat16 units."""
    monkeypatch.setattr(precision, "WIDE", 8)
    monkeypatch.setattr(precision, "has_native_support", lambda dtype, _: dtype == "float32")
    workspace = Workspace(home=tmp_path / "work")
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT", workspace=workspace)
    return workspace


def extract(workspace, *overrides):
    return jobs.extract_features(
        "nuscenes", "default", (*SMALL, *overrides), None, retry_failed=False, sharing=Sharing(), workspace=workspace
    ).result


def features(workspace, *overrides):
    opener = DomainOpener(workspace, load_config("default", (*SMALL, *overrides)).config, cached=True)
    return opener.open(DomainSettings(domain="all"), "train").features


def test_a_cache_in_the_other_precision_is_continued_and_read(workspace):
    other = extract(workspace, "extract.dtype=bfloat16")
    again = extract(workspace)
    assert (again["cache"], again["done"], again["images_per_second"]) == (other["cache"], other["done"], 0)
    assert features(workspace).fingerprint["dtype"] == "bfloat16"


def test_a_set_precision_is_strict(workspace):
    extract(workspace, "extract.dtype=bfloat16")
    with pytest.raises(CacheMismatchError, match=r"dtype:.*\W?float32\W?,.*\W?bfloat16"):
        features(workspace, "extract.dtype=float32")


def test_the_precision_of_this_machine_goes_first(workspace):
    extract(workspace, "extract.dtype=bfloat16")
    extract(workspace, "extract.dtype=float32")
    assert features(workspace).fingerprint["dtype"] == "float32"
