"""The twin of A2D2: front-centre LiDAR views with rows and columns, and images and labels with lens distortion."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8

from ..datasets.catalogue import A2D2_COLOURS
from ..datasets.lens import Lens
from ..datasets.projection import project
from .camera import CameraModel, Picture
from .lidar import Sweep
from .poses import EGO_FROM_CAMERA, EGO_FROM_LIDAR, rigid
from .rigs import LIDARS
from .twin_scene import City, Passage, TwinJob, TwinScene, class_table, twin_scenes, write_file, write_png

__all__ = ["a2d2_scenes", "finish_a2d2", "write_a2d2"]

_EGO_FROM_CAMERA = rigid(EGO_FROM_CAMERA, (1.72, 0.0, 0.94))
_DISTORTION = (-0.26, 0.12, 0.0003, -0.0004, -0.03)


def a2d2_scenes(frames: int) -> list[TwinScene]:
    """Returns two train scenes and the test scene."""
    cities: dict[str, City] = {
        "20180810_142822": "boston",
        "20180925_101535": "singapore",
        "20180807_145028": "boston",
    }
    return twin_scenes(cities, frames, (40, 40, 20))


def write_a2d2(job: TwinJob) -> int:
    """Writes a scene: camera, label and lidar of ``cam_front_center``."""
    lidar = replace(LIDARS["boston"], azimuth_steps=job.azimuth_steps)
    passage = Passage(job.scene, seed=job.seed, lidar=lidar, period=0.5)
    lens = twin_lens(job.image_size)
    mount = np.linalg.inv(_EGO_FROM_CAMERA) @ rigid(EGO_FROM_LIDAR, (0.0, 0.0, lidar.mount_height))
    for order in range(job.scene.frames):
        canvas, margin = _canvas(lens, job.image_size)
        picture = passage.picture(order, canvas, _EGO_FROM_CAMERA)
        image, labels = _distorted(picture, lens, job.image_size, margin)
        stamp, number = job.scene.name.replace("_", ""), f"{1000 + 7 * order:09d}"
        for kind, pixels in (("camera", image), ("label", labels)):
            write_png(_path(job, kind, f"{stamp}_{kind}_frontcenter_{number}.png"), pixels)
        arrays = _arrays(passage.sweep(order), mount, lens, job.image_size)
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_file(_path(job, "lidar", f"{stamp}_lidar_frontcenter_{number}.npz"), content.getvalue())
    return job.scene.frames


def finish_a2d2(jobs: Sequence[TwinJob]) -> None:
    """Writes the calibration and the list of classes."""
    out, size = jobs[0].out, jobs[0].image_size
    lens = twin_lens(size)
    matrices = {"CamMatrix": lens.straight, "CamMatrixOriginal": lens.stored, "Distortion": [lens.distortion]}
    camera = {**matrices, "Lens": "Telecam", "Resolution": size}
    calibration = {"cameras": {"front_center": camera}, "lidars": {}, "vehicle": {}}
    write_file(out / "cams_lidars.json", json.dumps(calibration, indent=2).encode())
    write_file(out / "class_list.json", json.dumps(A2D2_COLOURS, indent=2).encode())


def twin_lens(size: tuple[int, int]) -> Lens:
    """Returns the front-centre lens at an image size: A2D2's field of view, barrel distortion."""
    width, height = size
    focal, straight = 1.0 * width, 0.9 * width
    centre = (0.502 * width, 0.56 * height)
    return Lens(
        kind="telecam",
        stored=((focal, 0.0, centre[0]), (0.0, focal, centre[1]), (0.0, 0.0, 1.0)),
        straight=((straight, 0.0, centre[0]), (0.0, straight, centre[1]), (0.0, 0.0, 1.0)),
        distortion=_DISTORTION,
    )


def _canvas(lens: Lens, size: tuple[int, int]) -> tuple[CameraModel, int]:
    """A pinhole camera that covers the undistorted image and a margin, the source of the distorted image.

    Integer coordinates are pixel centres in OpenCV and corners in the renderer, hence the half pixel.
    """
    margin = size[0] // 5
    intrinsics = np.array(lens.straight)
    intrinsics[:2, 2] += 0.5 + margin
    return CameraModel(size[0] + 2 * margin, size[1] + 2 * margin, intrinsics), margin


def _distorted(
    picture: Picture, lens: Lens, size: tuple[int, int], margin: int
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W 3"]]:
    """The distorted image and label image."""
    import cv2

    columns, rows = np.meshgrid(np.arange(size[0], dtype=np.float64), np.arange(size[1], dtype=np.float64))
    straight = lens.straighten(np.stack([columns.ravel(), rows.ravel()], axis=1)) + margin
    x, y = (straight[:, axis].reshape(columns.shape).astype(np.float32) for axis in (0, 1))
    colour_of = {name: tuple(bytes.fromhex(colour[1:])) for colour, name in A2D2_COLOURS.items()}
    labels = class_table("a2d2", colour_of)[picture.labels].astype(np.uint8)
    return cv2.remap(picture.image, x, y, cv2.INTER_LINEAR), cv2.remap(labels, x, y, cv2.INTER_NEAREST)


def _arrays(
    sweep: Sweep, camera_from_lidar: Float64[np.ndarray, "4 4"], lens: Lens, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """The arrays of a LiDAR view: the points in the undistorted image, from the camera's position, x forward."""
    intrinsics = np.array(lens.straight)
    intrinsics[:2, 2] += 0.5
    pixels, depth = project(sweep.points[:, :3], camera_from_lidar, intrinsics)
    with np.errstate(invalid="ignore"):
        seen = ((pixels > 0) & (pixels < size)).all(axis=1)
    local = sweep.points[seen, :3].astype(np.float64) @ camera_from_lidar[:3, :3].T + camera_from_lidar[:3, 3]
    points = np.stack([local[:, 2], -local[:, 0], -local[:, 1]], axis=1)
    return {
        "azimuth": np.arctan2(points[:, 1], points[:, 0]),
        "row": pixels[seen, 1],
        "lidar_id": np.zeros(len(points), np.int64),
        "depth": depth[seen],
        "reflectance": sweep.points[seen, 3].astype(np.int64),
        "col": pixels[seen, 0],
        "points": points,
        "timestamp": np.zeros(len(points), np.int64),
        "distance": np.linalg.norm(points, axis=1),
    }


def _path(job: TwinJob, kind: str, name: str) -> Path:
    return job.out / job.scene.name / kind / "cam_front_center" / name
