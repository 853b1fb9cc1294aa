"""A small cache in a workspace, and the places that it is pushed to: a folder, S3, the hub, and fsspec's memory."""

import itertools
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hub_server import TOKEN, serving
from numpy_encoder import write_shard
from xd3d.cache.schema import ImageFeatures, TapSpec
from xd3d.cache.writer import CacheWriter
from xd3d.fingerprint import fingerprint_digest
from xd3d.pipeline.workspace import Workspace

IMAGES, AGENTS = 18, 3
FINGERPRINT = {"model": "0123", "taps": ["up0", "up1", "rgb"], "agents": {"count": AGENTS}, "views": ["identity"]}
TAPS = (
    TapSpec(name="up0", channels=9, height=3, width=5, extent=(3.0, 5.0)),
    TapSpec(name="up1", channels=4, height=3, width=5, extent=(3.0, 5.0)),
    TapSpec(name="rgb", channels=3, height=4, width=7, extent=(4.0, 7.0), dtype="uint8"),
)
_memories = itertools.count()


def features_of(rows):
    drawn = [np.random.default_rng([5, row]) for row in rows]
    return ImageFeatures(
        maps={
            "up0": np.stack([g.standard_normal((9, 3, 5), dtype=np.float32) for g in drawn]),
            "up1": np.stack([g.standard_normal((4, 3, 5), dtype=np.float32) for g in drawn]),
            "rgb": np.stack([g.integers(0, 256, (3, 4, 7), dtype=np.uint8) for g in drawn]),
        },
        agents={
            "up0": np.stack([g.standard_normal((AGENTS, 9), dtype=np.float32) for g in drawn]),
            "up1": np.stack([g.standard_normal((AGENTS, 4), dtype=np.float32) for g in drawn]),
        },
        geometry=np.stack([g.random((AGENTS, 5), dtype=np.float32) for g in drawn]),
        assignment=np.stack([g.integers(0, AGENTS, (4, 3, 5)).astype(np.uint8) for g in drawn]),
        membership=np.stack([g.integers(0, 64, (4, 3, 5), dtype=np.uint8) for g in drawn]),
    )


@pytest.fixture
def tmp_path():
    """A folder of the test's own, in memory where there is some: hundreds of flushes cost nothing there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def write_cache():
    """Write a cache of 18 images in 5 shards into a workspace; ``fingerprint`` replaces fields, ``fails`` images."""

    def write(workspace, *, fails=None, shards=None, **fingerprint):
        fields = {**FINGERPRINT, **fingerprint}
        path = workspace.cache("nuscenes", fingerprint_digest(fields))
        path.parent.mkdir(parents=True, exist_ok=True)
        with CacheWriter.open(
            path,
            taps=TAPS,
            agents=AGENTS,
            image_keys=[f"image-{row:04d}" for row in range(IMAGES)],
            images_per_frame=2,
            fingerprint=fields,
            shard_bytes=4000,
            recipe={"dataset": "nuscenes", "extract": {"model": str(workspace.home / "my models" / "sd21")}},
            grid=TAPS[1],
        ) as writer:
            for shard in writer.pending_shards()[:shards]:
                failures = {row: reason for row, reason in (fails or {}).items() if row in shard.rows}
                write_shard(writer, shard, features_of(shard.rows), failures)
        return path

    return write


@pytest.fixture
def mine(tmp_path):
    """The workspace of who pushes."""
    return Workspace(home=tmp_path / "mine")


@pytest.fixture
def yours(tmp_path):
    """The workspace of who pulls."""
    return Workspace(home=tmp_path / "yours")


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine, and a client that knows no other and has a token."""
    from huggingface_hub import constants

    with serving() as running:
        for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
            value = running.address + ("" if name == "ENDPOINT" else "/{repo_id}/resolve/{revision}/{filename}")
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture
def new_place(tmp_path, new_bucket, hub):
    """Call it with "folder", "s3", "hub" or "memory" for the address of an empty place."""

    def make(kind):
        places = {
            "folder": lambda: str(tmp_path / "shared" / "features"),
            "s3": new_bucket,
            "hub": lambda: "hf://datasets/owner/features/front",
            "memory": lambda: f"memory://place-{next(_memories)}/features",
        }
        return places[kind]()

    return make
