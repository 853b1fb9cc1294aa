"""What every test may ask for: the real data beside the project, a tiny nuScenes root written by hand, an S3 server.

`tiny_nuscenes_root` is read-only and shared; `broken_root` hands out writable copies of it to damage.
"""

import itertools
import json
import math
import os
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import type_checks
from PIL import Image

# Set before torch and matplotlib are first imported: the suite runs on small machines without a display.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
os.environ.setdefault("MPLBACKEND", "Agg")
# Bits are compared, which are one machine's own on a CPU alone; tests that want a GPU run where this names one.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Workspaces, caches and data roots of whoever runs the suite are not for tests.
for _name in [name for name in os.environ if name.startswith("XD3D_") and name != "XD3D_REAL_DATA"]:
    del os.environ[_name]
# Container images often turn this off: every worker and every process of a test would compile all modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Scene name (official train or val), location, description.
TINY_SCENES = (
    ("scene-0001", "boston-seaport", "Wait at crosswalk, pedestrians"),
    ("scene-0002", "boston-seaport", "Turn left, parked cars"),
    ("scene-0004", "singapore-onenorth", "Bus stop, dense traffic"),
    ("scene-0005", "singapore-queenstown", "Construction, intersection"),
    ("scene-0006", "singapore-hollandvillage", "Night, rain, parked cars"),
    ("scene-0007", "singapore-hollandvillage", "Night, wait at traffic light"),
    ("scene-0003", "boston-seaport", "Wide street, buses"),
    ("scene-0012", "singapore-onenorth", "Jaywalker, turn right"),
    ("scene-0013", "singapore-queenstown", "After night rain, difficult lighting"),
)
TINY_VERSION = "v1.0-trainval"
TINY_FRAMES = 2
TINY_SIZE = (160, 90)
CAMERA_YAWS = {
    "CAM_FRONT": 0,
    "CAM_FRONT_RIGHT": -55,
    "CAM_BACK_RIGHT": -110,
    "CAM_BACK": 180,
    "CAM_BACK_LEFT": 110,
    "CAM_FRONT_LEFT": 55,
}


def real_data_folder() -> Path:
    """Folder of the real data: ``XD3D_REAL_DATA``, else ``shared/data`` beside the project."""
    given = os.environ.get("XD3D_REAL_DATA")
    return Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"


def require(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"real data not found: no folder {folder} (set XD3D_REAL_DATA to the folder that holds it)")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with pieces of the real data sets."""
    return require(real_data_folder())


@pytest.fixture(scope="session")
def real_nuscenes() -> Path:
    """Data root with one real nuScenes keyframe, version ``v1.0-mini``."""
    return require(real_data_folder() / "nuscenes")


@pytest.fixture(scope="session")
def real_sd_configs() -> Path:
    """Folder with the published configs of Stable Diffusion: ``sd14``, ``sd21-base``, ``sd21``."""
    return require(real_data_folder() / "stable_diffusion_configs")


def pytest_runtest_setup() -> None:
    type_checks.begin_test()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Call it with a name and a function that fills a new folder: the folder, made once for all workers. Read only."""
    from xd3d.locks import FileLock

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made once"
    shared.mkdir(exist_ok=True)

    def make(name: str, write: Callable[[Path], object]) -> Path:
        folder, unfinished = shared / name, shared / f"{name}.unfinished"
        lock = FileLock(shared / f"{name}.lock", wait=True)
        try:
            if not folder.exists():
                write(unfinished)
                unfinished.rename(folder)
        finally:
            lock.release()
        return folder

    return make


@pytest.fixture(autouse=True)
def own_workspace(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep every test away from the workspace in the current folder."""
    monkeypatch.setenv("XD3D_HOME", str(tmp_path_factory.getbasetemp() / "unused-workspace"))


@pytest.fixture(scope="session")
def tiny_nuscenes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root of version ``v1.0-trainval``: 9 scenes of 2 keyframes, 6 cameras of 160x90, sweeps of 600 points.

    Boston and Singapore, day and night, official train and val scene names. Read only.
    """
    root = tmp_path_factory.mktemp("tiny nuscenes")
    TinyRoot(root).write()
    return root


@pytest.fixture
def broken_root(tiny_nuscenes_root: Path, tmp_path: Path) -> Callable[[], Path]:
    """Call it for a writable copy of the tiny root, to damage."""

    def copy() -> Path:
        target = tmp_path / f"root{len(list(tmp_path.glob('root*')))}"
        return Path(shutil.copytree(tiny_nuscenes_root, target))

    return copy


def quaternion(yaw: float) -> list[float]:
    return [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]


def camera_rotation(yaw: float) -> list[float]:
    """ego_from_camera for a level camera that looks along ``yaw`` (camera: x right, y down, z forward)."""
    c, s = math.cos(yaw / 2), math.sin(yaw / 2)
    return [0.5 * value for value in (c + s, -c - s, c - s, s - c)]


def tiny_sweep(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """600 points (x, y, z, intensity, ring) in the LiDAR frame and their raw labels: ground bands, walls, cars."""
    points = np.zeros((600, 5), np.float32)
    points[:, :2] = rng.uniform(-30, 30, (600, 2))
    across = np.abs(points[:, 0])
    labels = np.select([across < 5, across < 8, across < 12], [24, 26, 27], 28).astype(np.uint8)
    points[:, 2] = np.where(labels == 28, rng.uniform(-1.5, 2, 600), -1.8)
    raised = rng.random(600)
    for label, low, high in ((30, 0.0, 0.1), (17, 0.1, 0.18), (2, 0.18, 0.2)):
        chosen = (raised >= low) & (raised < high)
        labels[chosen] = label
        points[chosen, 2] = rng.uniform(-1.7, 0.2, chosen.sum())
    points[:, 3] = rng.integers(0, 256, 600)
    points[:, 4] = rng.integers(0, 32, 600)
    return points, labels


class TinyRoot:
    """Writes a nuScenes root: first its sensors, then scene by scene."""

    def __init__(self, root: Path) -> None:
        self.root, self.rng = root, np.random.default_rng(20)
        self.rows: dict[str, list[dict[str, object]]] = {}
        for channel in ("LIDAR_TOP", *CAMERA_YAWS):
            (root / "samples" / channel).mkdir(parents=True)
        for folder in (f"lidarseg/{TINY_VERSION}", TINY_VERSION, "maps"):
            (root / folder).mkdir(parents=True)

    def add(self, table: str, **row: object) -> str:
        """Adds a row to a table; returns its token."""
        rows = self.rows.setdefault(table, [])
        token = f"{table}-{len(rows):04d}"
        rows.append({"token": token, **row})
        return token

    def write(self) -> None:
        from xd3d.stages.datasets.catalogue import NUSCENES_32

        for index, name in enumerate(NUSCENES_32):
            self.add("category", name=name, description="", index=index)
        sensors = self.sensors()
        logs = [self.scene(sensors, *scene) for scene in TINY_SCENES]
        Image.new("L", (20, 20)).save(self.root / "maps/tiny.png")
        self.add("map", category="semantic_prior", filename="maps/tiny.png", log_tokens=logs)
        for name in ("attribute", "visibility", "instance", "sample_annotation"):
            self.rows[name] = []
        for name, rows in self.rows.items():
            (self.root / TINY_VERSION / f"{name}.json").write_text(json.dumps(rows))

    def sensors(self) -> dict[str, str]:
        """Calibrated sensor token of each channel."""
        width, height = TINY_SIZE
        intrinsic = [[width * 0.6, 0.0, width / 2], [0.0, width * 0.6, height / 2], [0.0, 0.0, 1.0]]
        mounted = {
            "LIDAR_TOP": self.add(
                "calibrated_sensor",
                sensor_token=self.add("sensor", channel="LIDAR_TOP", modality="lidar"),
                translation=[0.9, 0.0, 1.8],
                rotation=quaternion(-math.pi / 2),
                camera_intrinsic=[],
            )
        }
        for channel, degrees in CAMERA_YAWS.items():
            yaw = math.radians(degrees)
            mounted[channel] = self.add(
                "calibrated_sensor",
                sensor_token=self.add("sensor", channel=channel, modality="camera"),
                translation=[1.5 * math.cos(yaw), 0.5 * math.sin(yaw), 1.5],
                rotation=camera_rotation(yaw),
                camera_intrinsic=intrinsic,
            )
        return mounted

    def scene(self, sensors: dict[str, str], name: str, location: str, description: str) -> str:
        """Writes one scene and returns the token of its log."""
        log = self.add("log", logfile=f"n-{name}", vehicle="n", date_captured="2018-07-24", location=location)
        scene = self.add("scene", log_token=log, nbr_samples=TINY_FRAMES, name=name, description=description)
        samples = []
        for number in range(TINY_FRAMES):
            stamp = 1_532_402_927_000_000 + 1_000_000 * int(name[-4:]) + 500_000 * number
            samples.append(self.add("sample", timestamp=stamp, prev=samples[-1] if samples else "", scene_token=scene))
            self.keyframe(sensors, samples[-1], stamp, brightest=60 if "night" in description.lower() else 256)
        for row, following in zip(self.rows["sample"][-TINY_FRAMES:], [*samples[1:], ""], strict=True):
            row["next"] = following
        self.rows["scene"][-1] |= {"first_sample_token": samples[0], "last_sample_token": samples[-1]}
        return log

    def keyframe(self, sensors: dict[str, str], sample: str, stamp: int, *, brightest: int) -> None:
        points, labels = tiny_sweep(self.rng)
        width, height = TINY_SIZE
        for order, (channel, mounted) in enumerate(sensors.items()):
            time = stamp - 7_000 * order  # each sensor has its own stamp, and the car drives on in between
            metres = 5.0 * (time % 1_000_000_000) * 1e-6
            pose = self.add(
                "ego_pose", timestamp=time, rotation=quaternion(0.3 + 0.01 * order), translation=[metres, 40.0, 0.0]
            )
            lidar = channel == "LIDAR_TOP"
            filename = f"samples/{channel}/{sample}__{channel}.{'pcd.bin' if lidar else 'jpg'}"
            if lidar:
                points.tofile(self.root / filename)
            else:
                picture = self.rng.integers(0, brightest, (9, 16, 3), dtype=np.uint8)
                Image.fromarray(picture).resize(TINY_SIZE, Image.Resampling.BICUBIC).save(self.root / filename)
            data = self.add(
                "sample_data",
                sample_token=sample,
                ego_pose_token=pose,
                calibrated_sensor_token=mounted,
                timestamp=time,
                fileformat="pcd" if lidar else "jpg",
                is_key_frame=True,
                width=0 if lidar else width,
                height=0 if lidar else height,
                filename=filename,
                prev="",
                next="",
            )
            if lidar:
                path = f"lidarseg/{TINY_VERSION}/{data}_lidarseg.bin"
                labels.tofile(self.root / path)
                self.add("lidarseg", sample_data_token=data, filename=path)
                self.rows["lidarseg"][-1]["token"] = data


_buckets = itertools.count()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server on this machine alone."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment that leads to the server; its address."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def new_bucket(s3: str) -> Callable[[], str]:
    """Make an empty bucket; the URL of a place in it."""

    def make() -> str:
        name = f"bucket-{next(_buckets)}"
        urllib.request.urlopen(urllib.request.Request(f"{s3}/{name}", method="PUT")).close()
        return f"s3://{name}/caches/one"

    return make
