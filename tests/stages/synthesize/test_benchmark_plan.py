"""The benchmark's plan: its parts, and that the first domains stay as they were."""

import hashlib
import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from xd3d.errors import ConfigError
from xd3d.pipeline.ablation.plan import FEW_STREETS, STREETS
from xd3d.stages.datasets.catalogue import BenchmarkDomain
from xd3d.stages.synthesize import synthesize as module
from xd3d.stages.synthesize.nuscenes_writer import SceneJob, write_scene
from xd3d.stages.synthesize.plan import BENCHMARK_GROUPS, MAXIMUM_FRAMES, plan_scenes
from xd3d.stages.synthesize.style_sampling import random_style

ORDER = ("city", "night", "fog", "sensor", "development", "haze", "dim", "dusk", "snow", "tilted")
FIRST = tuple(group for group in BENCHMARK_GROUPS if group.part == 0)

#: The first scene of each group that the plan had in the beginning, one keyframe and 160 x 90 pixels of it, as it was
#: before others joined: points, means of labels, coordinates and intensities, mean and deviation of the picture.
BEFORE = {
    "scene-0347": (29641, 25.035, 6.290, 15.436, 114.48, 49.71),
    "scene-0092": (29499, 25.175, 6.533, 13.782, 91.38, 61.02),
    "scene-0639": (23411, 23.657, 6.252, 11.922, 126.87, 54.45),
    "scene-0012": (22899, 25.161, 6.917, 8.873, 140.90, 55.57),
    "scene-0994": (23405, 24.280, 5.936, 10.987, 70.84, 57.34),
    "scene-0962": (23782, 25.902, 7.101, 8.943, 49.62, 36.13),
    "scene-0224": (28048, 10.718, 2.676, 2.113, 186.76, 22.77),
    "scene-0519": (27787, 10.151, 2.585, 1.933, 207.72, 25.64),
    "scene-0582": (79865, 25.111, 7.613, 9.769, 107.88, 48.67),
    "scene-0904": (80081, 24.979, 7.359, 11.280, 102.60, 51.43),
    "scene-0525": (22638, 22.818, 6.592, 6.646, 84.26, 25.21),
    "scene-0625": (24309, 24.025, 5.662, 11.290, 79.67, 36.67),
}


def facts(plans):
    return [(p.name, p.keyframes, p.weather, p.start, p.slot, p.group.location, p.group.logfile) for p in plans]


@pytest.mark.parametrize("group", FIRST, ids=lambda group: f"{group.domain}-{group.split}")
def test_the_first_domains_are_rendered_as_before_others_joined(group, tmp_path):
    """Other processors give other last bits, so the numbers may differ by a few points and by rounding."""
    (plan,) = (plan for plan in plan_scenes(STREETS.frames, BENCHMARK_GROUPS) if plan.name == group.names[0])
    for folder in (".parts", "samples/LIDAR_TOP", "samples/CAM_FRONT", "lidarseg/v1.0-trainval"):
        (tmp_path / folder).mkdir(parents=True)
    plan = replace(plan, keyframes=1)
    write_scene(SceneJob(out=tmp_path, plan=plan, seed=0, cameras=("CAM_FRONT",), image_size=(160, 90)))
    points = np.fromfile(next(tmp_path.glob("samples/LIDAR_TOP/*")), np.float32).reshape(-1, 5)
    labels = np.fromfile(next(tmp_path.glob("lidarseg/*/*")), np.uint8)
    with Image.open(next(tmp_path.glob("samples/CAM_FRONT/*"))) as image:
        picture = np.asarray(image, np.float64)
    count, *means = BEFORE[group.names[0]]
    assert len(points) == pytest.approx(count, abs=5)
    found = (labels.mean(), np.abs(points[:, :3]).mean(), points[:, 3].mean(), picture.mean(), picture.std())
    np.testing.assert_allclose(found, means, rtol=1e-3)


def test_the_styles_that_the_tiny_pipeline_was_trained_on_are_the_same_bits():
    digest = hashlib.sha256()
    for seed in range(50):
        for day_only in (False, True):
            digest.update(repr(random_style(np.random.default_rng(seed), day_only=day_only)).encode())
    assert digest.hexdigest()[:16] == "091560a593bc392a"


@pytest.mark.parametrize(("frames", "first", "grown"), [(STREETS.frames, 1200, 1416), (FEW_STREETS.frames, 240, 283)])
def test_parts_that_joined_later_left_the_scenes_as_they_were(frames, first, grown):
    plans = plan_scenes(frames, BENCHMARK_GROUPS)
    assert facts(plan for plan in plans if plan.group.part == 0) == facts(plan_scenes(first, FIRST))
    two = [group for group in BENCHMARK_GROUPS if group.part <= 1]
    assert facts(plan for plan in plans if plan.group.part <= 1) == facts(plan_scenes(grown, two))


def test_the_first_scenes_are_those_that_1200_frames_made():
    digest = hashlib.sha256(repr(facts(plan_scenes(1200, FIRST))).encode()).hexdigest()
    assert digest[:16] == "8a7ac2411e925f58"


@settings(max_examples=25)
@given(st.integers(len(BENCHMARK_GROUPS), MAXIMUM_FRAMES))
def test_any_number_of_frames_is_shared_out_and_each_part_by_itself(frames):
    plans = plan_scenes(frames, BENCHMARK_GROUPS)
    assert sum(plan.keyframes for plan in plans) == frames
    first = [plan for plan in plans if plan.group.part == 0]
    assert facts(first) == facts(plan_scenes(sum(plan.keyframes for plan in first), FIRST))


def test_each_test_shift_has_120_frames_to_train_on_and_60_for_the_test():
    plans = plan_scenes(STREETS.frames, BENCHMARK_GROUPS)
    for shift, domain in STREETS.domains.items():
        frames = {
            split: [plan.keyframes for plan in plans if (plan.group.domain, plan.group.split) == (domain, split)]
            for split in ("train", "val")
        }
        if shift in STREETS.shifts:
            assert (sum(frames["train"]), sum(frames["val"])) == (120, 60)
            assert len(frames["val"]) >= 8
        assert len(frames["train"]) >= 2


def test_fresh_shifts_are_reported_and_no_choice_is_made_on_them():
    assert list(STREETS.shifts) == ["city", "night", "fog", "sensor", "dusk", "snow", "tilted"]
    assert list(STREETS.development) == ["development", "haze", "dim"]
    assert set(STREETS.fresh) < set(STREETS.shifts)
    assert not set(STREETS.fresh) & set(STREETS.development)
    known = {group.domain for group in BENCHMARK_GROUPS}
    assert {STREETS.source, *STREETS.domains.values()} == known == set(get_args(BenchmarkDomain))


def test_a_root_of_the_benchmark_says_which_domains_it_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "in_processes", lambda *_: iter(()))
    monkeypatch.setattr(module, "_finish", lambda *_: None)
    module.synthesize(tmp_path / "root", frames=22, plan="benchmark")
    found = json.loads((tmp_path / "root" / module.FACTS).read_text())
    assert found["domains"] == [STREETS.source, *(STREETS.domains[name] for name in ORDER)]
    (tmp_path / "root" / module.FACTS).write_text(json.dumps(found | {"domains": found["domains"][:6]}))
    (tmp_path / "root" / "maps" / "map.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"\(domains"):
        module.synthesize(tmp_path / "root", frames=22, plan="benchmark")
