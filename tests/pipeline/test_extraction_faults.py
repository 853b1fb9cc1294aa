"""Stage one through the command line when images are bad, and when others are at work on the cache."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from xd3d.cache.reader import FeatureReader

SMALL = ("--set", "extract.image_size=[64,112]", "--set", "extract.taps=[up2]", "--set", "extract.agents.rounds=1")
ONE_A_SHARD = ("--set", "extract.agents.count=4096", "--set", "extract.shard_mb=1")


def facts(done):
    return json.loads(done.stdout.splitlines()[-1])


def encoded(image, kind):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_bad_images_are_recorded_odd_ones_are_read_and_repaired_ones_retried(xd3d, broken_root):
    root = broken_root()
    assert xd3d("prepare", "--root", str(root)).returncode == 0
    files = sorted(root.glob("samples/CAM_FRONT/*.jpg"))
    whole = [file.read_bytes() for file in files]
    grey = Image.fromarray(np.linspace(0, 65535, 90 * 160).astype(np.uint16).reshape(90, 160))
    spoilt = [
        b"",
        b"no picture at all",
        whole[2][: len(whole[2]) // 2],
        encoded(Image.new("RGB", (20, 10)), "JPEG"),
        encoded(Image.new("CMYK", (160, 90), (10, 200, 30, 40)), "JPEG"),
        encoded(grey, "PNG"),
    ]
    for file, data in zip(files, spoilt, strict=False):
        file.write_bytes(data)
    done = xd3d("extract-features", *SMALL, "--json")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (facts(done)["done"], facts(done)["failed"]) == (14, 4)
    reader = FeatureReader(facts(done)["cache"])
    reasons = [reason for _, reason in sorted(reader.failed.items())]
    names = [next(file.name for file in files[:4] if file.name in reason) for reason in reasons]
    assert sorted(names) == sorted(file.name for file in files[:4])
    assert sum("is 20x10 pixels, the index says 160x90" in reason for reason in reasons) == 1
    assert sum("cannot be decoded" in reason for reason in reasons) == 3
    for file, data in zip(files, whole, strict=True):
        file.write_bytes(data)
    mended = xd3d("extract-features", *SMALL, "--retry-failed", "--json")
    assert mended.returncode == 0, mended.stderr
    assert (facts(mended)["done"], facts(mended)["failed"]) == (18, 0)
    assert FeatureReader(facts(mended)["cache"]).available.all()


@pytest.mark.slow
def test_beside_an_extractor_others_read_and_no_second_one_writes(xd3d, tiny_nuscenes_root, tmp_path):
    assert xd3d("prepare", "--root", str(tiny_nuscenes_root)).returncode == 0
    command = [sys.executable, "-c", "from xd3d.pipeline.cli import main; main()", "extract-features"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("XD3D_HOME", None)
    first = subprocess.Popen(
        [*command, *SMALL, *ONE_A_SHARD, "--json"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        while not (found := list(tmp_path.glob("xd3d-work/cache/*/done/*.json"))):
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # it stands still, lock in hand
        reader = FeatureReader(found[0].parents[1])
        early = int(reader.available.sum())
        assert 0 < early < 18
        features = reader.read(np.flatnonzero(reader.available))
        assert np.isfinite(features.geometry).all()
        for more in ((), ("--shard", "1/2")):
            second = xd3d("extract-features", *SMALL, *ONE_A_SHARD, *more)
            assert second.returncode == 1
            assert f"Another writer uses the cache {found[0].parents[1]}: pid {first.pid} on" in second.stderr
    finally:
        first.send_signal(signal.SIGCONT)
        said, _ = first.communicate(timeout=200)
    assert json.loads(said.splitlines()[-1])["done"] == 18
    reader.refresh()
    assert reader.available.all()


@pytest.mark.parametrize("value", [np.nan, pytest.param(np.inf, marks=pytest.mark.slow)])
def test_features_that_are_no_numbers_fail_their_image_alone(tmp_path, tiny_nuscenes_root, monkeypatch, value):
    from xd3d.stages.datasets.index import FrameIndex
    from xd3d.stages.datasets.prepare import prepare_dataset
    from xd3d.stages.extract.diffusion_backbone import DiffusionBackbone
    from xd3d.stages.extract.job import extract_features
    from xd3d.stages.extract.settings import ExtractSettings

    prepare_dataset("nuscenes", tiny_nuscenes_root, tmp_path / "index", version=None, cameras="CAM_FRONT")
    index = FrameIndex.load(tmp_path / "index")
    spoilt, run = str(index.images.key[4]), DiffusionBackbone.__call__

    def overflowing(self, pictures, keys):
        maps = run(self, pictures, keys)
        maps["up2"][[key == spoilt for key in keys], 1, 0, 0] = value
        return maps

    settings = ExtractSettings(image_size=(64, 112), taps=("up2",), device="cpu", agents={"count": 4, "rounds": 1})
    with monkeypatch.context() as patch:
        patch.setattr(DiffusionBackbone, "__call__", overflowing)
        done = extract_features(index, settings, tmp_path / "cache")
    assert (done.done, done.failed) == (17, 1)
    assert "features/up2 is not finite: 1 values, the first at [1, 0, 0]" in FeatureReader(tmp_path / "cache").failed[4]
    assert extract_features(index, settings, tmp_path / "cache", retry_failed=True).failed == 0
