"""The README stays true: each of its commands is run, in order, and each file it links to is there."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from xd3d.pipeline.ablation.plan import STREETS
from xd3d.pipeline.ablation.rows import ScoreTable, parse_rows
from xd3d.pipeline.ablation.tables import headline_table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
QUICK = ["--set", "train.steps=1", "--set", "train.batch_size=1", "--set", "train.validate_every=1"]


#: The published preset with the bundled model and the slim network: Stable Diffusion's weights cannot be fetched here.
REHEARSAL = """
extends: nuscenes_usa_singapore/dg
extract: {model: tiny-street, image_size: [90, 160]}
model: {preset: slim, voxel_size: 0.2}
fusion: {tokens: 32, query_channels: 64, image_channels: 32}
train: {batch_size: 2, milestones: [1]}
"""


@pytest.mark.timeout(1200)  # on a busy machine
def test_every_command_of_the_readme_works(xd3d, tmp_path):
    """Long training is cut short, the synthetic city is small, and it also stands in for the reader's nuScenes."""
    (tmp_path / "published.yaml").write_text(REHEARSAL)
    shown = [
        shlex.split(command.replace("--config nuscenes_usa_singapore/dg", "--config published.yaml"))
        for command in COMMANDS
        if command.startswith("xd3d ")
    ]
    synthesis = [command for command in shown if command[1] == "synthesize"]
    for command in [*synthesis, *(command for command in shown if command[1] != "synthesize")]:
        command = ["city" if part == "/data/nuscenes" else "9" if part == "120" else part for part in command]
        done = xd3d(*command[1:], *(QUICK if command[1] == "train" else ()))
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"


@pytest.mark.parametrize(
    ("target", "command"),
    [("demo", "xd3d demo"), ("test", "python -m pytest")],
)
def test_make_targets_run_what_the_readme_says(target, command):
    assert f"make {target}" in COMMANDS
    dry_run = ["make", "--dry-run", "--directory", str(ROOT), target]
    done = subprocess.run(dry_run, capture_output=True, text=True, check=True)
    assert command in done.stdout


def test_every_command_of_the_readme_is_one_that_these_tests_run():
    assert {command.split()[0] for command in COMMANDS} == {"xd3d", "make"}


def test_every_file_that_the_readme_links_to_is_there():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_scores_of_the_readme_are_those_of_the_published_rows():
    results = json.loads((ROOT / "docs/results.json").read_text(encoding="utf-8"))
    table = headline_table(ScoreTable(parse_rows(results["rows"]), list(STREETS.shifts)))
    assert table in README
