"""The demo: its report stands alone; as a newcomer runs it, within its limits and better with images than without."""

import base64
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from xd3d.pipeline import demo as pipeline_demo
from xd3d.pipeline import jobs

QUICK = (
    "extract.image_size=[90,160]",
    "model.preset=slim",
    "train.steps=3",
    "train.milestones=[2]",
    "train.validate_every=3",
)


def run_demo(folder):
    """Runs the demo in a folder with a space; returns its JSON result and the report."""
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


@pytest.fixture(scope="module")
def demo(city, tmp_path_factory):
    """The result and the report of the fast demo, on smaller images and in fewer steps."""
    synthesize, extract, train = jobs.synthesize, jobs.extract_features, jobs.train

    def synthesized(out, **options):
        signature(synthesize).bind(out, **options)
        shutil.copytree(city, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "synthesize", synthesized)
        patch.setattr(
            jobs, "extract_features", lambda data, name, _, *more, **k: extract(data, name, QUICK, *more, **k)
        )
        patch.setattr(jobs, "train", lambda name, changes, **k: train(name, [*changes, *QUICK], **k))
        facts = pipeline_demo.run_demo(tmp_path_factory.mktemp("a demo"), frames=None, seed=1, fast=True).result
    return facts, Path(facts["report"]).read_text(encoding="utf-8")


def test_the_report_stands_alone_and_shows_all_scores(demo):
    facts, report = demo
    assert list(facts) == ["report", "miou", "lidar_alone_miou", "majority_miou"]
    assert not re.findall(r"(?:src|href)=\"(?!data:)", report)
    for score in ("miou", "lidar_alone_miou", "majority_miou"):
        assert f"{100 * facts[score]:.1f}" in report
    assert re.search(r"mean of [^<]*3d-only", report), "LiDAR alone is in the table of scores too"
    assert report.count("data:image/png;base64,") >= 3 * 3 + 3
    assert len(report) < 15e6


@pytest.mark.parametrize(
    "heading", ["Scores on the target domain", "Test frame 1", "Training", "Confusion", "Protocol"]
)
def test_the_report_has_its_parts(demo, heading):
    assert f"<h2>{heading}" in demo[1]


def test_the_report_names_fingerprint_and_split(demo):
    for fact in ("features: model", "features: image_size", "split_rule", "singapore", "nuscenes-6"):
        assert fact in demo[1]


def cloud_data(report):
    """The data of the interactive point clouds, as embedded in the report."""
    return json.loads(re.search(r'id="clouds-data">(.*?)</script>', report, re.DOTALL)[1])


def test_the_clouds_show_both_networks_on_the_same_points(demo):
    data = cloud_data(demo[1])
    assert [re.search(r"variant=([\w-]+)", name)[1] for name in data["runs"]] == ["full", "3d-only"]
    for frame in data["frames"]:
        decode = {"points": "<f4", "truth": "u1", "agents": "<u2"}
        arrays = {name: np.frombuffer(base64.b64decode(frame[name]), kind) for name, kind in decode.items()}
        count = len(arrays["truth"])
        assert (len(arrays["points"]), len(arrays["agents"])) == (3 * count, count)
        assert arrays["agents"].max() < 100, "the demo's points are those that the camera sees"
        for run in frame["runs"]:
            classes = np.frombuffer(base64.b64decode(run["classes"]), "u1")
            probabilities = np.frombuffer(base64.b64decode(run["probabilities"]), "u1").reshape(count, -1)
            np.testing.assert_array_equal(probabilities[np.arange(count), classes], probabilities.max(1))


@pytest.fixture
def browser(demo):
    """The report in a headless Chromium."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs Chromium and ChromeDriver on the path")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.set_window_size(1280, 1000)
    opened.get(Path(demo[0]["report"]).as_uri())
    yield opened
    opened.quit()


def test_the_clouds_can_be_coloured_turned_and_asked(browser, demo):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    clouds = browser.find_element(By.ID, "clouds")
    canvas = clouds.find_elements(By.TAG_NAME, "canvas")[0]
    buttons = {button.text: button for button in clouds.find_elements(By.TAG_NAME, "button")}
    browser.execute_script("arguments[0].scrollIntoView()", clouds)

    def pixels():
        return browser.execute_script("return arguments[0].toDataURL()", canvas)

    seen = {}
    for name in ("truth", "prediction", "errors", "agent", "distance", "frame 2"):
        buttons[name].click()
        assert buttons[name].get_attribute("aria-pressed") == "true"
        seen[name] = pixels()
    assert len(set(seen.values())) == len(seen), "each button draws another picture"
    ActionChains(browser).drag_and_drop_by_offset(canvas, 60, 10).perform()
    assert pixels() != seen["frame 2"]
    buttons["reset view"].click()
    assert pixels() == seen["frame 2"]
    x, y = browser.execute_script(
        "const c = arguments[0], k = c.owner.findIndex((i) => i >= 0);"
        "return [(k % c.width) - c.width / 2, Math.floor(k / c.width) - c.height / 2]",
        canvas,
    )
    ActionChains(browser).move_to_element_with_offset(canvas, int(x), int(y)).perform()
    assert any(name in clouds.find_element(By.CLASS_NAME, "tip").text for name in cloud_data(demo[1])["classes"])
    assert browser.get_log("browser") == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_needs_less_than_4_gb_and_is_better_with_images_and_three_times_the_commonest_class(tmp_path):
    facts, report = run_demo(tmp_path)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20
    assert facts["miou"] > facts["lidar_alone_miou"]
    assert facts["miou"] >= 3 * facts["majority_miou"] > 0
    assert report.index("LiDAR alone") < report.index("<h2>")
