"""The whole chain on one real nuScenes keyframe: counts, extraction, and a network that can overfit it."""

import json
from pathlib import Path

import pytest

OVERFIT = tuple(
    part
    for setting in (
        "data.source.domain=all",
        "data.target.domain=all",
        "train.batch_size=1",
        "train.steps=150",
        "train.milestones=[110]",
        "train.lr=0.004",
        "train.checkpoint_every=150",
        "model.voxel_size=0.05",
        "augment.rotation_noise=0",
        "augment.flip=none",
        "augment.rotate=false",
        "augment.translate=false",
        "fusion.drop_path=0",
    )
    for part in ("--set", setting)
)


def last_json(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("cameras", "images"), [("CAM_FRONT", 1), ("all", 6), ("CAM_BACK,CAM_FRONT_LEFT", 2)])
def test_prepare_counts_frames_and_images(xd3d, real_nuscenes, cameras, images):
    facts = last_json(xd3d("prepare", "--root", str(real_nuscenes), "--cameras", cameras, "--json"))
    assert (facts["frames"], facts["images"], facts["missing"]) == (1, images, [])


@pytest.mark.slow
def test_the_whole_chain_overfits_one_real_frame(xd3d, real_nuscenes):
    last_json(xd3d("prepare", "--root", str(real_nuscenes), "--json"))
    assert last_json(xd3d("extract-features", "--json"))["done"] == 1
    assert last_json(xd3d("train", "--cached", *OVERFIT, "--json"))["steps"] == 150
    scores = last_json(xd3d("evaluate", "--split", "train", "--json"))
    assert scores["points"] > 1000
    assert min(scores["miou"].values()) >= 0.9
    assert scores["miou"]["xm"] >= 0.95


@pytest.mark.slow
def test_a_full_size_unet_extracts_the_real_image(xd3d, real_nuscenes, real_sd_configs):
    last_json(xd3d("prepare", "--root", str(real_nuscenes), "--json"))
    model = ("--set", f"extract.model={Path(real_sd_configs) / 'sd21-base'}", "--set", "extract.weights=random")
    facts = last_json(xd3d("extract-features", *model, "--json"))
    assert (facts["done"], facts["failed"]) == (1, 0)
    info = last_json(xd3d("cache", "info", facts["cache"], "--json"))
    assert info["arrays"]["features/up1"]["shape"][1] == 1280
