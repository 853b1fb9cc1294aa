"""The recipes of CONTRIBUTING.md, applied to a copy of the source and run there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("cache", "configs", "pipeline", "stages")
#: `file`: text, then a fenced block of a kind.
BLOCK = re.compile(r"^`([\w./-]+)`:[^\n]*\n\n```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
QUICK = [
    *("--set", "model.preset=slim", "--set", "train.steps=1"),
    *("--set", "train.milestones=[1]", "--set", "train.validate_every=1"),
]
#: Runs commands, one after the other, and prints a list of what they print.
RUN = """
import contextlib, io, json, sys
from xd3d.pipeline.cli import main
told = []
for command in json.loads(sys.argv[1]):
    sys.argv = ["xd3d", *command]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise
    told.append(out.getvalue())
print(json.dumps(told))
"""


def recipe(heading: str) -> dict[str, tuple[str, str]]:
    """The blocks of a recipe: file -> kind and text."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split(f"\n### {heading}\n")[1].split("\n### ")[0]
    return {file: (kind, block) for file, kind, block in BLOCK.findall(section)}


def apply(blocks: dict[str, tuple[str, str]], copy: Path) -> None:
    """Writes new files and replaces lines; each replaced text must occur exactly once."""
    for file, (kind, block) in blocks.items():
        if kind != "diff":
            (copy / file).write_text(block, encoding="utf-8")
            continue
        text = (copy / file).read_text(encoding="utf-8")
        for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", block, re.MULTILINE):
            before, after = (re.sub(r"^.", "", lines, flags=re.MULTILINE).removesuffix("\n") for lines in (old, new))
            assert text.count(before) == 1, f"{file} holds this {text.count(before)} times:\n{before}"
            text = text.replace(before, after)
        (copy / file).write_text(text, encoding="utf-8")


@pytest.fixture
def copy_of(tmp_path):
    """Call it with the heading of a recipe for ``xd3d`` with that recipe: a function from commands to their outputs."""
    copy = tmp_path / "source" / "xd3d"
    for part in PARTS:
        shutil.copytree(ROOT / part, copy / part)
    for path in ROOT.glob("*.py"):
        shutil.copy2(path, copy)

    def run(*commands: tuple[str, ...]) -> list[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("XD3D_")}
        done = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(commands)],
            cwd=tmp_path,
            env={**clean, "PYTHONPATH": str(copy.parent), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def make(heading: str):
        blocks = recipe(heading)
        assert 1 <= len(blocks) <= 3
        apply(blocks, copy)
        return run

    return make


def test_a_fusion_variant_is_trained_after_its_recipe(copy_of, tiny_nuscenes_root):
    xd3d = copy_of("A fusion variant")
    small = ("--set", "extract.image_size=[48,80]")
    coarse = ("--set", "model.voxel_size=0.3", "--set", "train.batch_size=2")
    *_, scores = xd3d(
        ("prepare", "--dataset", "nuscenes", "--root", str(tiny_nuscenes_root)),
        ("extract-features", "--dataset", "nuscenes", *small),
        ("train", "--cached", "--config", "inject_height", *QUICK, *small, *coarse),
        ("evaluate", "--json"),
    )
    assert '"fused"' in scores


def test_a_data_set_is_trained_on_after_its_recipe(copy_of, tmp_path):
    xd3d = copy_of("A data set")
    rng = np.random.default_rng(0)
    for scene in ("a", "b"):
        for folder in ("velodyne", "labels"):
            (tmp_path / "toy" / scene / folder).mkdir(parents=True)
        for frame in range(2):
            points = rng.uniform(-10, 10, (400, 4)).astype("<f4")
            points.tofile(tmp_path / f"toy/{scene}/velodyne/{frame:06d}.bin")
            (1 + (points[:, 2] > 0)).astype("<u4").tofile(tmp_path / f"toy/{scene}/labels/{frame:06d}.label")
    shift = [
        *("--set", "data.source.dataset=toy", "--set", "data.source.domain=all"),
        *("--set", "data.target.dataset=toy", "--set", "data.target.domain=all", "--set", "data.merge=toy-2"),
        *("--set", "fusion.variant=3d-only", "--set", "model.voxel_size=0.5", "--set", "train.batch_size=2"),
    ]
    prepared, _, scores = xd3d(
        ("prepare", "--dataset", "toy", "--root", "toy", "--json"),
        ("train", *shift, *QUICK),
        ("evaluate", "--split", "train", "--json"),
    )
    assert '"frames": 4' in prepared
    assert '"thing"' in scores


def test_a_kind_of_network_is_extracted_after_its_recipe(copy_of, tmp_path, tiny_nuscenes_root):
    xd3d = copy_of("A kind of network")
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells/cells.json").write_text('{"size": 16}')
    network = ("--set", "extract.model=./cells", "--set", "extract.image_size=[48,80]")
    _, extracted = xd3d(
        ("prepare", "--dataset", "nuscenes", "--root", str(tiny_nuscenes_root)),
        ("extract-features", "--dataset", "nuscenes", *network, "--json"),
    )
    done = json.loads(extracted.splitlines()[-1])
    assert done["failed"] == 0
    assert '"features/mean"' in xd3d(("cache", "info", done["cache"], "--json"))[0]
