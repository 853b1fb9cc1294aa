"""The demo, as a newcomer runs it: within its limits, better than a guess, and with a report that stands alone."""

import json
import re
import resource

import pytest


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One full demo, in a folder with a space; its facts and its report."""
    import os
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("a demo")
    code = "from xd3d.pipeline.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--out", "the demo", "--json"],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "XD3D_NUSCENES_ROOT": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    return facts, (folder / "the demo" / "report.html").read_text(encoding="utf-8")


@pytest.mark.timeout(900)
def test_the_target_score_is_three_times_that_of_the_commonest_class(demo):
    facts, _ = demo
    assert list(facts) == ["report", "miou", "majority_miou"]
    assert facts["miou"] >= 3 * facts["majority_miou"] > 0


def test_the_demo_needs_less_than_4_gb(demo):
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20


def test_the_report_stands_alone_and_shows_both_scores(demo):
    facts, report = demo
    assert not re.findall(r"(?:src|href)=\"(?!data:)", report)
    assert f"{100 * facts['miou']:.1f}" in report
    assert f"{100 * facts['majority_miou']:.1f}" in report
    assert report.count("data:image/png;base64,") >= 3 * 3 + 3


@pytest.mark.parametrize(
    "heading", ["Scores on the target domain", "Test frame 1", "Training", "Confusion", "Protocol"]
)
def test_the_report_has_its_parts(demo, heading):
    assert f"<h2>{heading}" in demo[1]


def test_the_report_names_fingerprint_and_split(demo):
    for fact in ("features: model", "features: image_size", "split_rule", "singapore", "nuscenes-6"):
        assert fact in demo[1]
