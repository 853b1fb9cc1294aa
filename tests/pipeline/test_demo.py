"""The demo as a newcomer runs it: within its limits, better with images than without; the report stands alone."""

import json
import os
import re
import resource
import subprocess
import sys

import pytest


def run_demo(folder, *options):
    """Runs the demo in a folder with a space; returns its JSON result and the report."""
    code = "from xd3d.pipeline.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--out", "the demo", *options, "--json"],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "XD3D_NUSCENES_ROOT": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    return facts, (folder / "the demo" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return run_demo(tmp_path_factory.mktemp("a demo"), "--fast")


def test_the_demo_needs_less_than_4_gb(demo):
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20


def test_the_report_stands_alone_and_shows_all_scores(demo):
    facts, report = demo
    assert list(facts) == ["report", "miou", "lidar_alone_miou", "majority_miou"]
    assert not re.findall(r"(?:src|href)=\"(?!data:)", report)
    for score in ("miou", "lidar_alone_miou", "majority_miou"):
        assert f"{100 * facts[score]:.1f}" in report
    assert report.count("data:image/png;base64,") >= 3 * 3 + 3


@pytest.mark.parametrize(
    "heading", ["Scores on the target domain", "Test frame 1", "Training", "Confusion", "Protocol"]
)
def test_the_report_has_its_parts(demo, heading):
    assert f"<h2>{heading}" in demo[1]


def test_the_report_names_fingerprint_and_split(demo):
    for fact in ("features: model", "features: image_size", "split_rule", "singapore", "nuscenes-6"):
        assert fact in demo[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_is_better_with_images_and_three_times_the_commonest_class(tmp_path):
    facts, report = run_demo(tmp_path)
    assert facts["miou"] > facts["lidar_alone_miou"]
    assert facts["miou"] >= 3 * facts["majority_miou"] > 0
    assert report.index("LiDAR alone") < report.index("<h2>")
