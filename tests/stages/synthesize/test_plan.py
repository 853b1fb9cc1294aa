from collections import Counter
from itertools import pairwise

import pytest
from xd3d.errors import ConfigError
from xd3d.stages.synthesize.plan import BENCHMARK_GROUPS, GROUPS, MAXIMUM_FRAMES, plan_scenes


@pytest.mark.parametrize("frames", [6, 7, 9, 24, 61, 250, 1000, MAXIMUM_FRAMES])
def test_every_group_gets_frames_and_none_is_lost(frames):
    plans = plan_scenes(frames)
    assert sum(plan.keyframes for plan in plans) == frames
    assert {(plan.group.location, plan.group.split) for plan in plans} == {(g.location, g.split) for g in GROUPS}
    assert all(1 <= plan.keyframes <= 40 for plan in plans)
    assert len({plan.name for plan in plans}) == len(plans)
    assert len({(plan.group.location, plan.slot) for plan in plans}) == len(plans)


def test_24_frames_leave_a_scene_to_hold_out_in_each_target_domain():
    scenes = Counter((plan.group.location, plan.group.split) for plan in plan_scenes(24))
    assert scenes["singapore-onenorth", "train"] >= 2
    assert scenes["singapore-hollandvillage", "train"] >= 2


def test_names_stand_in_the_official_list_of_their_split():
    from nuscenes.utils import splits

    official = {"train": set(splits.train), "val": set(splits.val)}
    for group in (*GROUPS, *BENCHMARK_GROUPS):
        assert set(group.names) <= official[group.split]


def test_night_is_only_in_singapore_and_fog_only_by_day():
    plans = plan_scenes(400)
    assert {plan.group.location.split("-")[0] for plan in plans if plan.group.hour == "night"} == {"singapore"}
    assert any(plan.weather == "fog" for plan in plans)
    assert not any(plan.weather == "fog" and plan.group.hour == "night" for plan in plans)


def test_scenes_of_a_log_do_not_overlap_in_time():
    plans = plan_scenes(MAXIMUM_FRAMES)
    for logfile in {plan.group.logfile for plan in plans}:
        spans = sorted((p.start, p.start + 500_000 * p.keyframes) for p in plans if p.group.logfile == logfile)
        assert all(end < start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize("frames", [len(BENCHMARK_GROUPS), 100, 1600, MAXIMUM_FRAMES])
def test_the_benchmark_drives_every_domain_and_no_street_twice(frames):
    plans = plan_scenes(frames, BENCHMARK_GROUPS)
    assert sum(plan.keyframes for plan in plans) == frames
    assert {(p.group.domain, p.group.split) for p in plans} == {(g.domain, g.split) for g in BENCHMARK_GROUPS}
    assert all(1 <= plan.keyframes <= 40 for plan in plans)
    assert len({plan.name for plan in plans}) == len(plans)
    assert all(plan.weather == plan.group.weather for plan in plans)
    assert len({plan.group.logfile for plan in plans}) == len(BENCHMARK_GROUPS)


@pytest.mark.parametrize("frames", [-1, 0, 5, MAXIMUM_FRAMES + 1])
def test_numbers_out_of_range_are_refused_with_the_range(frames):
    with pytest.raises(ConfigError, match=f"6 and {MAXIMUM_FRAMES}"):
        plan_scenes(frames)
