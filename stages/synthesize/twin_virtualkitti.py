"""The twin of VirtualKITTI: one camera in six weathers, depth and class images, and point clouds from them."""

import io
from dataclasses import replace

import numpy as np
from jaxtyping import Float64, UInt16

from ..datasets.catalogue import VIRTUALKITTI
from ..datasets.virtualkitti import WEATHERS
from .camera import CameraModel, Picture
from .poses import EGO_FROM_CAMERA, rigid
from .rigs import LIDARS
from .styles import Hour, Weather
from .twin_scene import Passage, TwinJob, TwinScene, class_names, class_table, twin_scenes, write_file, write_png

__all__ = ["virtualkitti_scenes", "write_virtualkitti"]

_EGO_FROM_CAMERA = rigid(EGO_FROM_CAMERA, (0.3, 0.0, 1.6))
_LOOKS: dict[str, tuple[Hour, Weather]] = {
    "clone": ("day", "clear"),
    "fog": ("day", "fog"),
    "morning": ("dusk", "clear"),
    "overcast": ("overcast", "clear"),
    "rain": ("overcast", "rain"),
    "sunset": ("dusk", "clear"),
}
_SKY = "Sky"
_FARTHEST = 65_535  # centimetres, also the depth of sky


def virtualkitti_scenes(frames: int) -> list[TwinScene]:
    """Returns two worlds."""
    return twin_scenes({"0001": "boston", "0002": "singapore"}, frames, (60, 40))


def write_virtualkitti(job: TwinJob) -> int:
    """Writes a world: rgb in six weathers, depthgt and scenegt of the clone, vkitti3d_npy."""
    camera = _camera(job.image_size)
    for weather in WEATHERS:
        hour, air = _LOOKS[weather]
        passage = Passage(replace(job.scene, hour=hour, weather=air), seed=job.seed, lidar=LIDARS["dense"], period=0.5)
        for order in range(job.scene.frames):
            picture = passage.picture(order, camera, _EGO_FROM_CAMERA)
            stem = f"{job.scene.name}/{weather}/{order:05d}.png"
            write_png(job.out / "vkitti_1.3.1_rgb" / stem, picture.image)
            if weather == "clone":
                _write_truth(job, stem, order, picture)
    encoding = job.out / "vkitti_1.3.1_scenegt" / f"{job.scene.name}_clone_scenegt_rgb_encoding.txt"
    write_file(encoding, _encoding().encode())
    return job.scene.frames


def _write_truth(job: TwinJob, stem: str, order: int, picture: Picture) -> None:
    depth = np.minimum(np.round(picture.depth.astype(np.float64) * 100), _FARTHEST).astype(np.uint16)
    colours = class_table("virtualkitti", _colours())[picture.labels].astype(np.uint8)
    write_png(job.out / "vkitti_1.3.1_depthgt" / stem, depth)
    write_png(job.out / "vkitti_1.3.1_scenegt" / stem, colours)
    content = io.BytesIO()
    np.save(content, _cloud(depth, picture))
    write_file(job.out / "vkitti3d_npy" / job.scene.name / f"{order:05d}.npy", content.getvalue())


def _cloud(depth: UInt16[np.ndarray, "H W"], picture: Picture) -> Float64[np.ndarray, "P 7"]:
    """Returns x, y, z, red, green, blue, label of every pixel nearer than 100 m, as the vkitti3D tools compute them."""
    height, width = depth.shape
    focal, metres = 725.0 * width / 1242, depth / 100.0
    rows, columns = np.mgrid[:height, :width]
    right = (columns - (width - 1) / 2) / focal * metres
    down = (rows - (height - 1) / 2) / focal * metres
    number_of = {name: number for number, name in VIRTUALKITTI.items()}
    numbers = class_table("virtualkitti", {**number_of, _SKY: number_of["Don't care"]})
    places = np.stack([metres, -right, -down], axis=-1).reshape(-1, 3)
    cloud = np.hstack([places, picture.image.reshape(-1, 3), numbers[picture.labels].reshape(-1, 1)])
    return cloud[np.sqrt(np.square(places).sum(axis=1)) < 100.0]


def _camera(size: tuple[int, int]) -> CameraModel:
    """The pinhole camera, with c = (620.5, 187) at pixel centres for images of 1242x375."""
    width, height = size
    focal = 725.0 * width / 1242
    return CameraModel(width, height, np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]))


def _colours() -> dict[str, tuple[int, int, int]]:
    """Returns the colour of each class that the city has."""
    used = class_names("virtualkitti").values()
    colours = {
        name: ((17 * number + 5) % 256, (91 * number + 40) % 256, (53 * number + 120) % 256)
        for number, name in VIRTUALKITTI.items()
        if name in used
    }
    return {**colours, _SKY: (90, 200, 255)}


def _encoding() -> str:
    """The list of colours; vehicles have an instance number."""
    lines = ["Category(:id) r g b"]
    for name, (red, green, blue) in _colours().items():
        lines.append(f"{name}{':0' if name in ('Car', 'Van', 'Truck') else ''} {red} {green} {blue}")
    return "".join(f"{line}\n" for line in lines)
