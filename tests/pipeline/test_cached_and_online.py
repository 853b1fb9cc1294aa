"""Training from the cache and with the diffusion model in the loop are the same code and give the same losses.

The online source rounds or codes its features as the cache does, so on the CPU they agree to the last bit.
"""

import pytest
from xd3d.cache.layout import PROFILES
from xd3d.errors import CacheMismatchError
from xd3d.pipeline import jobs
from xd3d.pipeline.sharing import Sharing
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.train.log import read_log
from xd3d.stages.train.pace import PACE_NAMES

SMALL = (
    "extract.image_size=[90,160]",
    "extract.agents.count=16",
    "extract.views=[identity,hflip]",
    "train.steps=20",
    "train.batch_size=2",
    "train.milestones=[15]",
    "train.validate_every=20",
)


@pytest.mark.parametrize("profile", PROFILES)
def test_losses_of_20_steps_are_equal_when_features_come_from_the_cache_or_from_the_model(
    tiny_nuscenes_root, tmp_path, profile
):
    workspace, settings = Workspace(home=tmp_path / "work"), (*SMALL, f"extract.profile={profile}")
    jobs.prepare(workspace, "nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT")
    jobs.extract(workspace, "nuscenes", "default", settings, None, retry_failed=False, sharing=Sharing())
    other = next(each for each in PROFILES if each != profile)
    with pytest.raises(CacheMismatchError, match=rf'profile: expected "{other}", found "{profile}"'):
        jobs.train(workspace, "default", [*SMALL, f"extract.profile={other}"], cached=True, run=tmp_path / "refused")
    logs = {}
    for cached in (True, False):
        done = jobs.train(workspace, "default", settings, cached=cached, run=tmp_path / f"cached {cached}")
        assert done.result["steps"] == 20
        logs[cached] = [record for record in read_log(tmp_path / f"cached {cached}") if "loss" in record]
    assert len(logs[True]) == 20
    terms = [name for name in logs[True][0] if name not in PACE_NAMES]
    for stored, live in zip(logs[True], logs[False], strict=True):
        for name in terms:
            assert stored[name] == live[name], (stored["step"], name)
    assert logs[True][0]["loss"] != logs[True][-1]["loss"]
