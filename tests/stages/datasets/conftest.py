"""Small data roots of every data set, each written once when first asked for."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest

#: Frames of each twin, and the size of its images.
FRAMES = {"semantickitti": 7, "semanticstf": 8, "synlidar": 4, "a2d2": 3, "virtualkitti": 2}
SIZE = (248, 76)


#: A root of SemanticKITTI as a folder of one's own.
FOLDER = """
sweeps: dataset/sequences/{scene}/velodyne/{frame}.bin
labels: dataset/sequences/{scene}/labels/{frame}.label
images: {image_2: "dataset/sequences/{scene}/image_2/{frame}.png"}
calibration: dataset/sequences/{scene}/calib.txt
classes: {car: [10, 252], road: [40, 60], sidewalk: 48, building: 50, vegetation: 70, terrain: 72, trunk: 71, pole: 80}
val: ["07"]
test: ["08"]
unlabelled: ["11"]
domains: {boston: ["0[01]"], singapore: ["07/*", "08", "11"]}
"""


@dataclass(frozen=True)
class Case:
    """What the contract must know of a data set."""

    dataset: str
    merge: str
    camera: str | None  #: None: the data set has no images
    download: str  #: where the message about an empty root sends one
    inner: str  #: a folder of the root that is easily taken for it


CASES = (
    Case("nuscenes", "nuscenes-6", "CAM_FRONT", "nuscenes.org", "samples"),
    Case("semantickitti", "semantickitti-19", "image_2", "semantic-kitti.org", "dataset/sequences"),
    Case("semanticstf", "semantickitti-19", None, "xiaoaoran/SemanticSTF", "train"),
    Case("a2d2", "a2d2-semantickitti-10", "cam_front_center", "a2d2.audi", "20180807_145028"),
    Case("virtualkitti", "virtualkitti-semantickitti-6", "front", "vkitti3D-dataset", "vkitti_1.3.1_rgb"),
    Case("folder", "semantickitti-19", "image_2", "docs/data/folder.md", "dataset/sequences"),
    Case("synlidar", "semantickitti-19", None, "xiaoaoran/SynLiDAR", "00"),
)


@pytest.fixture(scope="session")
def root_of(tiny_nuscenes_root, tmp_path_factory, made_once) -> Callable[[str], Path]:
    """Call it with a data set's name for a small root of it. Read only."""
    from xd3d.stages.synthesize.twins import TWINS, synthesize_twin

    assert set(FRAMES) == set(TWINS)

    @cache
    def make(dataset: str) -> Path:
        if dataset == "folder":
            out = Path(shutil.copytree(make("semantickitti"), tmp_path_factory.mktemp("folder") / "root"))
            (out / "dataset.yaml").write_text(FOLDER)
            return out
        if dataset == "nuscenes":
            return tiny_nuscenes_root
        options = {"frames": FRAMES[dataset], "image_size": SIZE, "azimuth_steps": 180, "workers": 1}
        return made_once(f"{dataset} root", partial(synthesize_twin, dataset=dataset, **options))

    return make


@pytest.fixture
def copy_of(root_of, tmp_path) -> Callable[[str], Path]:
    """Call it with a data set's name for a root of it to damage."""
    return lambda dataset: Path(shutil.copytree(root_of(dataset), tmp_path / f"copy of {dataset}"))


@pytest.fixture(params=CASES, ids=lambda case: case.dataset)
def case(request) -> Case:
    """Each data set in turn."""
    return request.param
