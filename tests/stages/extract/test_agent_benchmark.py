"""The benchmark of agents measures what it says: both measures equal a loop over pixels, and its last line is JSON."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from xd3d.cache.schema import TapSpec
from xd3d.stages.datasets.labels import IGNORE

FOLDER = Path(__file__).parents[2] / "benchmarks"
SHAPES = {"up0": (112, 8, 13), "up1": (96, 15, 25), "up2": (64, 29, 50), "up3": (32, 57, 100)}


@pytest.fixture
def regions(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("regions")
    for name in ("regions", "streets"):
        sys.modules.pop(name, None)


@pytest.fixture
def cut():
    """Two pictures cut into seven regions, with labels of which some are ignored."""
    rng = np.random.default_rng(0)
    found = np.kron(rng.integers(0, 7, (2, 9, 10)), np.ones((25, 40), int)).astype(np.int64)
    labels = np.kron(rng.integers(0, 6, (2, 45, 50)), np.ones((5, 8), int)).astype(np.int64)
    labels[rng.random(labels.shape) < 0.2] = IGNORE
    return found, labels


def loop_miou(pairs):
    truth, guess = np.array(pairs).T
    ious = []
    for name in range(6):
        either = ((truth == name) | (guess == name)).sum()
        if either:
            ious.append(((truth == name) & (guess == name)).sum() / either)
    return 100 * np.mean(ious)


def test_the_achievable_map_is_scored_as_a_loop_over_pixels_scores_it(regions, cut):
    pairs = []
    for picture, classes in zip(*cut, strict=True):
        for region in range(7):
            inside = classes[(picture == region) & (classes != IGNORE)]
            if len(inside):
                majority = np.bincount(inside).argmax()
                pairs += [(name, majority) for name in inside]
    assert regions.achievable(regions.class_pixels(*cut, 7)) == pytest.approx(loop_miou(pairs))


def test_a_probe_is_scored_as_a_loop_over_pixels_scores_it(regions, cut):
    pixels = regions.class_pixels(*cut, 7)
    guesses = torch.from_numpy(np.random.default_rng(1).integers(0, 6, len(pixels)))
    pairs = [
        (name, int(guesses[row * 7 + region]))
        for row, (picture, classes) in enumerate(zip(*cut, strict=True))
        for name, region in zip(classes.ravel(), picture.ravel(), strict=True)
        if name != IGNORE
    ]
    assert regions.painted(pixels, guesses) == pytest.approx(loop_miou(pairs))


def test_pooled_queries_are_the_mean_over_a_regions_pixels(regions, cut):
    spec = TapSpec(name="up0", channels=3, height=8, width=13, extent=(225 / 32, 400 / 32))
    maps = torch.randn(2, 3, 8, 13, generator=torch.Generator().manual_seed(0))
    queries = regions.pooled(cut[0], 7, {"up0": spec}, {"up0": maps})["up0"]
    pixels = maps.repeat_interleave(32, 2).repeat_interleave(32, 3)[:, :, :225, :400]
    for row, picture in enumerate(cut[0]):
        for region in np.unique(picture):
            expected = pixels[row][:, torch.from_numpy(picture == region)].mean(1)
            torch.testing.assert_close(queries[row, region], expected, atol=1e-5, rtol=1e-4)


def test_every_way_to_cut_gives_about_as_many_regions_as_agents(regions):
    image = np.kron(np.random.default_rng(2).integers(0, 256, (9, 16, 3)), np.ones((25, 25, 1))).astype(np.uint8)
    assert len(np.unique(regions.equal_cells(100))) == 100
    assert 85 <= len(np.unique(regions.slic_regions(image, 100, 20.0))) <= 115
    assert 50 <= len(np.unique(regions.colour_regions(image, 100, 1.0))) <= 100


@pytest.mark.slow
def test_the_last_line_is_one_json_object_with_the_differences(tmp_path):
    rng = np.random.default_rng(3)
    domains = ("boston day", "singapore day", "boston night", "boston fog", "singapore night")
    wanted = [("boston day", 0, 2), *((domain, 10_000, 1) for domain in domains)]
    for domain, first, count in wanted:
        stem = f"{domain} {first}-{first + count - 1}".replace(" ", "-")
        images = np.kron(rng.integers(0, 256, (count, 9, 16, 3)), np.ones((1, 25, 25, 1))).astype(np.uint8)
        labels = np.kron(rng.integers(0, 6, (count, 9, 16)), np.ones((1, 25, 25))).astype(np.int16)
        np.savez(tmp_path / f"{stem}.npz", images=images, labels=labels)
        for model in ("trained", "random", "day-only"):
            maps = {tap: rng.standard_normal((count, *shape)).astype(np.float16) for tap, shape in SHAPES.items()}
            np.savez(tmp_path / f"{model}-{stem}.npz", **maps)
    size = ("--train", "2", "--test", "1", "--count", "9", "--seeds", "1")
    run = subprocess.run(
        [sys.executable, FOLDER / "agents.py", "--work", tmp_path, *size],
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    last = json.loads(run.stdout.splitlines()[-1])
    for measure in ("achievable", "on_grid", "pixels", "regions"):
        for name in ("cells", "kmeans", "slic", "random", "day_only"):
            assert len(last[measure][f"agents_minus_{name}"]) == 2
        assert all(0 <= mean <= 100 for mean, _ in last[measure]["miou"].values())
