"""A small synthetic city, written once, and the pictures that its renderer labelled on the way."""

from dataclasses import dataclass
from pathlib import Path

import pytest

FRAMES = 12
SEED = 5
CAMERAS = ("CAM_FRONT", "CAM_BACK_LEFT")
SIZE = (400, 225)


@dataclass(frozen=True)
class City:
    root: Path
    pictures: dict  # the renderer's output by sample_data token of the image


@pytest.fixture(scope="session")
def city(tmp_path_factory) -> City:
    """12 frames, 9 scenes, two cameras. Read only."""
    from xd3d.files import read_json
    from xd3d.stages.synthesize import nuscenes_writer
    from xd3d.stages.synthesize.synthesize import synthesize

    pictures = []

    def render(*args):
        pictures.append(nuscenes_writer_render(*args))
        return pictures[-1]

    nuscenes_writer_render = nuscenes_writer.render
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nuscenes_writer, "render", render)
        root = synthesize(
            tmp_path_factory.mktemp("the city") / "root",
            frames=FRAMES,
            seed=SEED,
            cameras=CAMERAS,
            image_size=SIZE,
            workers=1,
        )
    # One process renders scene by scene, keyframe by keyframe, camera by camera: the order of the images' stamps in
    # plan order, which is the order of the ego poses.
    poses = [row["token"] for row in read_json(root / "v1.0-trainval" / "ego_pose.json")]
    data = {row["token"]: row for row in read_json(root / "v1.0-trainval" / "sample_data.json")}
    images = [token for token in poses if data[token]["fileformat"] == "jpg"]
    assert len(images) == len(pictures)
    return City(root, dict(zip(images, pictures, strict=True)))


@pytest.fixture(scope="session")
def devkit(city):
    """The official devkit, opened on the city."""
    from nuscenes.nuscenes import NuScenes

    return NuScenes(version="v1.0-trainval", dataroot=str(city.root), verbose=False)
