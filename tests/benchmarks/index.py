"""The index of data sets of their real size: time and memory of ``prepare``, bytes on disk, time to open.

``python tests/benchmarks/index.py --work DIR`` writes data roots with as many records as the real ones (``--share`` of
them), prepares each in a process of its own and opens its index in another. The nuScenes tables have every row of
v1.0-trainval, those between the keyframes and the boxes among them; the files that they name are links to a few small
ones. Prints a table, and one JSON object as the last line.
"""

import argparse
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from xd3d.stages.datasets.catalogue import NUSCENES_32
from xd3d.stages.datasets.index import FrameIndex
from xd3d.stages.datasets.nuscenes import CAMERAS
from xd3d.stages.datasets.prepare import prepare_dataset
from xd3d.stages.synthesize.twins import synthesize_twin

VERSION = "v1.0-trainval"
SCENES, KEYFRAMES, SENSOR_RECORDS, BOXES = 850, 34_149, 2_631_083, 1_166_187
RADARS = ("RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT")
CHANNELS = ("LIDAR_TOP", *CAMERAS, *RADARS)
A2D2_FRAMES = 27_695
KITTI_FRAMES = (  # sequences 00 to 21
    *(4541, 1101, 4661, 801, 271, 2761, 1101, 1101, 4071, 1591, 1201),
    *(921, 1061, 3281, 631, 1901, 1731, 491, 1801, 4981, 831, 2721),
)
TWIN = {"image_size": (248, 76), "azimuth_steps": 60, "workers": 1}
CAMERA_ROTATION = [0.4998015430569128, -0.5030316162024876, 0.4997798114386805, -0.49737083824542755]
INTRINSICS = [[1266.4, 0.0, 816.3], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the roots, on a disk with 4 GB free")
    parser.add_argument("--share", type=float, default=1.0, help="of the real counts; default %(default)s")
    parser.add_argument("--dataset", action="append", choices=WRITERS, help="default: all of them")
    parser.add_argument("--cameras", help="as in 'xd3d prepare --cameras'; default: the published ones")
    parser.add_argument("--measure", choices=("prepare", "open"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.dataset[0], given.work, given.cameras)))
        return
    facts = {name: benchmark(name, given.work / name, given.share, given.cameras) for name in given.dataset or WRITERS}
    for name, told in facts.items():
        print(
            f"{name:14} {told['frames']:6} frames {told['images']:6} images: prepare {told['seconds']:.1f} s,"
            f" {told['peak_mib']:.0f} MiB; index {told['index_mb']:.1f} MB, opened in {told['open_seconds']:.2f} s"
        )
    print(json.dumps({"share": given.share, "cameras": given.cameras, "datasets": facts}))


def benchmark(dataset: str, work: Path, share: float, cameras: str | None) -> dict[str, Any]:
    """Write the root of ``dataset`` where it is not there yet, and measure its index."""
    root = work / f"root-{share:g}"
    if not root.is_dir():
        partial = work / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        WRITERS[dataset](partial, share)
        partial.rename(root)
    told = in_child("prepare", dataset, root, cameras)
    return told | in_child("open", dataset, root, None)


def in_child(what: str, dataset: str, root: Path, cameras: str | None) -> dict[str, Any]:
    """Measure in a process of its own, whose peak memory is that of the work alone."""
    command = [sys.executable, __file__, "--work", str(root), "--dataset", dataset, "--measure", what]
    command += ["--cameras", cameras] if cameras else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(what: str, dataset: str, root: Path, cameras: str | None) -> dict[str, Any]:
    folder = root.parent / "index"
    begin, processor = time.perf_counter(), time.process_time()
    if what == "open":
        FrameIndex.load(folder)
        return {"open_seconds": time.perf_counter() - begin, "open_cpu_seconds": time.process_time() - processor}
    summary = prepare_dataset(dataset, root, folder, cameras=cameras)
    if summary.missing:
        sys.exit(f"{len(summary.missing)} faults, the first: {summary.missing[0]}")
    return {
        "frames": summary.frames,
        "images": summary.images,
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - processor,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "index_mb": sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
    }


def write_kitti(root: Path, share: float) -> None:
    """Sequences of the real lengths; each file is a link to one of the twin's."""
    twin = synthesize_twin(root / "twin", dataset="semantickitti", frames=7, **TWIN)
    first = next(path.parent for path in sorted(twin.rglob("image_2")))
    for number, frames in enumerate(KITTI_FRAMES):
        folder = root / "dataset/sequences" / f"{number:02d}"
        for kind in ("velodyne", "labels", "image_2"):
            (folder / kind).mkdir(parents=True)
            kept = Copies(sorted((first / kind).iterdir())[0])
            for frame in range(max(1, round(share * frames))):
                kept.link(folder / kind / f"{frame:06d}{kept.path.suffix}")
        shutil.copy(first / "calib.txt", folder)
    shutil.rmtree(root / "twin")


def write_a2d2(root: Path, share: float) -> None:
    """One scene with all frames, each file a link to one of the twin's."""
    twin = synthesize_twin(root / "twin", dataset="a2d2", frames=3, **TWIN)
    for path in twin.glob("*.json"):
        shutil.copy(path, root)
    scene = sorted(folder for folder in twin.iterdir() if folder.is_dir())[0]
    for kind in ("camera", "lidar", "label"):
        folder = root / scene.name / kind / "cam_front_center"
        folder.mkdir(parents=True)
        kept = Copies(sorted((scene / kind / "cam_front_center").iterdir())[0])
        stamp = kept.path.name.split("_", 1)[0]
        for frame in range(max(1, round(share * A2D2_FRAMES))):
            kept.link(folder / f"{stamp}_{kind}_frontcenter_{frame:09d}{kept.path.suffix}")
    shutil.rmtree(root / "twin")


def write_nuscenes(root: Path, share: float) -> None:
    """The tables of v1.0-trainval, and a link for every file of the keyframes."""
    from nuscenes.utils.splits import create_splits_scenes

    splits = create_splits_scenes()
    scenes = sorted(splits["train"] + splits["val"])[: max(2, round(share * SCENES))]
    frames = max(2 * len(scenes), round(share * KEYFRAMES))
    rows = Rows(scenes, frames, max(round(share * SENSOR_RECORDS), frames * len(CHANNELS)))
    (root / VERSION).mkdir()
    for name in ("sensor", "calibrated_sensor", "log", "scene", "category", "sample", "lidarseg"):
        write_table(root, name, getattr(rows, name)())
    for name in ("attribute", "visibility", "instance", "map"):
        write_table(root, name, [])
    write_table(root, "sample_annotation", (rows.box(number) for number in range(round(share * BOXES))))
    write_table(root, "sample_data", rows.sample_data())
    write_table(root, "ego_pose", (rows.pose(number) for number in range(rows.records)))
    rows.link_files(root)


def write_table(root: Path, name: str, rows: Iterable[dict[str, Any]]) -> None:
    """One table, row by row."""
    with (root / VERSION / f"{name}.json").open("w") as file:
        file.write("[\n")
        for number, row in enumerate(rows):
            file.write((",\n" if number else "") + json.dumps(row))
        file.write("\n]")


def token(kind: str, number: int) -> str:
    """A name without a pattern, as the real ones are: how well an index can be packed depends on it."""
    return hashlib.md5(f"{kind}{number}".encode(), usedforsecurity=False).hexdigest()


class Copies:
    """Links to one file, and to further copies of it where a file system allows so many links only."""

    MOST = 30_000

    def __init__(self, path: Path) -> None:
        self.path, self._links = path, 0

    def link(self, target: Path) -> None:
        if self._links == self.MOST:
            self.path = Path(shutil.copy(self.path, self.path.with_name(f"again-{self.path.name}")))
            self._links = 0
        os.link(self.path, target)
        self._links += 1


class Rows:
    """The rows of the tables: ``frames`` keyframes of every sensor first, then the records between them."""

    def __init__(self, scenes: list[str], frames: int, records: int) -> None:
        self.scenes, self.frames, self.records = scenes, frames, records

    def scene_of(self, frame: int) -> int:
        return frame * len(self.scenes) // self.frames

    def path(self, number: int) -> str:
        channel = CHANNELS[number % len(CHANNELS)]
        folder = "samples" if number < self.frames * len(CHANNELS) else "sweeps"
        suffix = "jpg" if channel in CAMERAS else "pcd.bin" if channel == "LIDAR_TOP" else "pcd"
        return f"{folder}/{channel}/n015-2018-07-24-11-22-45+0800__{channel}__{1532402927612460 + number}.{suffix}"

    def sensor(self) -> list[dict[str, Any]]:
        kinds = {"CAM": "camera", "LID": "lidar", "RAD": "radar"}
        return [
            {"token": token("sens", place), "channel": name, "modality": kinds[name[:3]]}
            for place, name in enumerate(CHANNELS)
        ]

    def calibrated_sensor(self) -> Iterator[dict[str, Any]]:
        for number in range(len(self.scenes) * len(CHANNELS)):
            place = number % len(CHANNELS)
            yield {
                "token": token("cali", number),
                "sensor_token": token("sens", place),
                "translation": [1.70079118954, 0.0159456324149, 1.51095763913],
                "rotation": CAMERA_ROTATION if CHANNELS[place] in CAMERAS else [1.0, 0.0, 0.0, 0.0],
                "camera_intrinsic": INTRINSICS if CHANNELS[place] in CAMERAS else [],
            }

    def log(self) -> list[dict[str, Any]]:
        places = ("boston-seaport", "singapore-onenorth")
        return [{"token": token("log", place), "location": location} for place, location in enumerate(places)]

    def scene(self) -> Iterator[dict[str, Any]]:
        for place, name in enumerate(self.scenes):
            description = "Parked truck, construction, intersection, turn left, following a van"
            yield {
                "token": token("scen", place),
                "log_token": token("log", place % 2),
                "name": name,
                "description": description,
            }

    def category(self) -> list[dict[str, Any]]:
        return [{"token": token("cate", place), "name": name, "index": place} for place, name in enumerate(NUSCENES_32)]

    def sample(self) -> Iterator[dict[str, Any]]:
        for frame in range(self.frames):
            yield {
                "token": token("samp", frame),
                "timestamp": 1532402927612460 + 500_000 * frame,
                "prev": token("samp", frame - 1),
                "next": token("samp", frame + 1),
                "scene_token": token("scen", self.scene_of(frame)),
            }

    def lidarseg(self) -> Iterator[dict[str, Any]]:
        for frame in range(self.frames):
            name = token("data", frame * len(CHANNELS))
            path = f"lidarseg/{VERSION}/{name}_lidarseg.bin"
            yield {"token": name, "sample_data_token": name, "filename": path}

    def sample_data(self) -> Iterator[dict[str, Any]]:
        keyframes = self.frames * len(CHANNELS)
        for number in range(self.records):
            place = number % len(CHANNELS)
            frame = number // len(CHANNELS) if number < keyframes else number % self.frames
            camera = CHANNELS[place] in CAMERAS
            yield {
                "token": token("data", number),
                "sample_token": token("samp", frame),
                "ego_pose_token": token("pose", number),
                "calibrated_sensor_token": token("cali", self.scene_of(frame) * len(CHANNELS) + place),
                "timestamp": 1532402927612460 + number,
                "fileformat": "jpg" if camera else "pcd",
                "is_key_frame": number < keyframes,
                "height": 900 if camera else 0,
                "width": 1600 if camera else 0,
                "filename": self.path(number),
                "prev": token("data", number - 1),
                "next": token("data", number + 1),
            }

    def pose(self, number: int) -> dict[str, Any]:
        turn = math.sin(number)
        return {
            "token": token("pose", number),
            "timestamp": 1532402927612460 + number,
            "rotation": [math.cos(turn), 0.0, 0.0, math.sin(turn)],
            "translation": [411.3039349319818 + turn, 1180.8903791765097 + math.cos(number), 0.0],
        }

    def box(self, number: int) -> dict[str, Any]:
        return {
            "token": token("box", number),
            "sample_token": token("samp", number % self.frames),
            "instance_token": token("inst", number // 20),
            "visibility_token": "1",
            "attribute_tokens": [token("attr", number % 8)],
            "translation": [373.256, 1130.419, 0.8],
            "size": [0.621, 0.669, 1.642],
            "rotation": [0.9831098797903927, 0.0, 0.0, -0.18301629506281616],
            "prev": token("box", number - 1),
            "next": token("box", number + 1),
            "num_lidar_pts": 1,
            "num_radar_pts": 0,
        }

    def link_files(self, root: Path) -> None:
        kept = root / "files"
        kept.mkdir()
        angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        ring = np.zeros((len(angles), 5), "<f4")  # every camera sees some of its points
        ring[:, :2] = 10 * np.column_stack([np.cos(angles), np.sin(angles)])
        ring.tofile(kept / "sweep")
        (kept / "label").write_bytes(bytes(len(ring)))
        Image.new("RGB", (1600, 900)).save(kept / "image.jpg")
        sweeps, labels, images = (Copies(kept / name) for name in ("sweep", "label", "image.jpg"))
        for folder in (f"lidarseg/{VERSION}", *(f"samples/{name}" for name in CHANNELS)):
            (root / folder).mkdir(parents=True)
        for frame, row in enumerate(self.lidarseg()):
            labels.link(root / row["filename"])
            sweeps.link(root / self.path(frame * len(CHANNELS)))
            for place in range(1, 1 + len(CAMERAS)):
                images.link(root / self.path(frame * len(CHANNELS) + place))


WRITERS: dict[str, Callable[[Path, float], None]] = {
    "nuscenes": write_nuscenes,
    "semantickitti": write_kitti,
    "a2d2": write_a2d2,
}

if __name__ == "__main__":
    main()
