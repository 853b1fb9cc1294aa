"""The recipes of CONTRIBUTING.md, applied to a copy of the source and run there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("cache", "configs", "pipeline", "stages")
#: `file`: text, then a fenced block of a kind.
BLOCK = re.compile(r"^`([\w./-]+)`:[^\n]*\n\n```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
QUICK = ["--set", "train.steps=1", "--set", "train.milestones=[1]", "--set", "train.validate_every=1"]


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
            before, after = (re.sub(r"^.", "", lines, flags=re.MULTILINE) for lines in (old, new))
            assert text.count(before) == 1, f"{file} holds this {text.count(before)} times:\n{before}"
            text = text.replace(before, after)
        (copy / file).write_text(text, encoding="utf-8")


@pytest.fixture
def copy_of(tmp_path):
    """Call it with the heading of a recipe for ``xd3d`` with that recipe, as a function that runs commands."""
    copy = tmp_path / "source" / "xd3d"
    for part in PARTS:
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, copy)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("XD3D_")}
        done = subprocess.run(
            [sys.executable, "-c", "from xd3d.pipeline.cli import main; main()", *arguments],
            cwd=tmp_path,
            env={**clean, "PYTHONPATH": str(copy.parent), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    def make(heading: str):
        blocks = recipe(heading)
        assert 1 <= len(blocks) <= 3
        apply(blocks, copy)
        return run

    return make


def test_a_fusion_variant_is_trained_after_its_recipe(copy_of):
    xd3d = copy_of("A fusion variant")
    xd3d("synthesize", "city", "--frames", "16")
    xd3d("prepare", "--dataset", "nuscenes", "--root", "city")
    xd3d("extract-features", "--dataset", "nuscenes")
    xd3d("train", "--cached", "--config", "inject_height", *QUICK, "--set", "model.voxel_size=0.3")
    assert '"fused"' in xd3d("evaluate", "--json").stdout
