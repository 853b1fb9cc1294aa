import subprocess
import sys

import pytest
from pydantic import ValidationError
from xd3d.stages.train.settings import FusionSettings, TrainSettings


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"query_channels": 20}, "query_channels"),
        ({"taps": ()}, "taps"),
        ({"taps": ("up1", "up1")}, "taps"),
        ({"variant": "half"}, "variant"),
    ],
)
def test_a_wrong_fusion_setting_is_named(values, named):
    with pytest.raises(ValidationError, match=named):
        FusionSettings(**values)


def test_milestones_must_rise():
    with pytest.raises(ValidationError, match="milestones"):
        TrainSettings(milestones=(200, 100))


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"variant": "3d-only", "queries": "agents"}, (False, False, False, False, False)),
        ({"variant": "image", "queries": "agents"}, (True, False, False, False, False)),
        ({}, (True, True, True, False, False)),
        ({"inject": "none", "context": "none", "queries": "voxels"}, (True, False, False, True, False)),
        ({"queries": "agents"}, (True, True, True, True, True)),
        ({"context": "mlp"}, (True, True, False, False, False)),
    ],
)
def test_each_variant_adds_to_the_one_before(values, parts):
    fusion = FusionSettings(**values)
    found = (fusion.image, fusion.injects, fusion.memberships, fusion.voxel_queries, fusion.interface)
    assert found == parts


def test_only_queries_that_look_at_agents_can_be_located():
    with pytest.raises(ValidationError, match="locate_queries"):
        FusionSettings(locate_queries=True, queries="agents", keys="features")


def test_settings_import_nothing_heavy():
    code = "import sys, xd3d.stages.train.settings; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
