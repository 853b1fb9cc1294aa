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
    ("variant", "parts"),
    [
        ("3d-only", (False, False, False)),
        ("image", (True, False, False)),
        ("no-interface", (True, True, False)),
        ("full", (True, True, True)),
    ],
)
def test_each_variant_adds_to_the_one_before(variant, parts):
    fusion = FusionSettings(variant=variant)
    assert (fusion.image, fusion.queries, fusion.interface) == parts


def test_settings_import_nothing_heavy():
    code = "import sys, xd3d.stages.train.settings; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
