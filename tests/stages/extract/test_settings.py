"""Settings of stage one say at once everything that is wrong with them."""

import subprocess
import sys

import pytest
from pydantic import ValidationError
from xd3d.stages.extract.settings import AgentSettings, ExtractSettings


def test_the_defaults_are_those_of_the_method():
    settings = ExtractSettings()
    assert settings.taps == ("up0", "up1", "up2", "up3", "rgb")
    assert settings.map_taps == ("up0", "up1", "up2", "up3")
    assert (settings.agents.count, settings.agents.rounds, settings.agents.temperature) == (100, 10, 0.02)
    assert settings.image_size == (225, 400)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taps": ("up1", "down2")}, "'down2' is no tap address"),
        ({"taps": ("up1", "up2", "up1")}, "names up1 more than once"),
        ({"taps": ("rgb",)}, "at least one feature map"),
        ({"image_size": (225, 20)}, r"32\.\.8192"),
        ({"image_sizes": {"a2d2": (9000, 480)}}, r"image_sizes\.a2d2 .* found \[9000, 480\]"),
        ({"agents": {"grid": "up3"}, "taps": ("up1", "up2")}, "agents.grid names 'up3'"),
        ({"agents": {"tap_weights": {"rgb": 1.0}}}, "agents.tap_weights names 'rgb'"),
        ({"agents": {"tap_weights": {"up1": 0.0}}, "taps": ("up1",)}, "leave one above 0"),
        ({"agents": {"tap_weights": {"up1": 2.0}, "assign": "rgb"}}, "no effect when assign is 'rgb'"),
        ({"agents": {"tap_weights": {"up1": -1.0}}}, "not negative"),
        ({"agents": {"temperature": 0}}, "greater than 0"),
        ({"draws": 4}, "draws is 4, but there is no noise"),
        ({"noise": False}, "noise is false.*stock weights"),
        ({"noise": False, "timestep": 261}, "noise is false.*stock weights"),
        ({"noise": False, "timestep": 261, "unet": "cleandift-sd21", "draws": 2}, "no noise to draw"),
        ({"unet": "cleandift-sd21", "weights": "random"}, "leave one of them out"),
        ({"views": ("identity", "vflip")}, "'vflip' is no view; write identity, hflip or jitter:1"),
        ({"views": ("identity", "jitter:01")}, "'jitter:01' is no view"),
        ({"views": ("identity", "hflip", "hflip")}, "views names one more than once"),
        ({"views": ("hflip",)}, "views needs identity"),
        ({"batch": 3}, "batch"),
    ],
)
def test_faults_are_refused_with_a_reason(changes, message):
    with pytest.raises(ValidationError, match=message):
        ExtractSettings(**changes)


def test_all_faults_are_reported_together():
    with pytest.raises(ValidationError, match=r"no tap address.*32\.\.8192"):
        ExtractSettings(taps=("upp", "up1"), image_size=(1, 1))


def test_a_network_with_taps_of_its_own_may_be_grouped_by_one_of_them():
    assert ExtractSettings(model="dinov2-base", agents={"grid": "block11", "tap_weights": {"block11": 2.0}})
    with pytest.raises(ValidationError, match=r"agents\.grid names 'block11'"):
        ExtractSettings(model="sd21", agents={"grid": "block11"})


@pytest.mark.parametrize("model", [ExtractSettings, AgentSettings])
def test_every_setting_explains_itself(model):
    assert all(field.description for field in model.model_fields.values())


def test_settings_load_without_heavy_modules():
    heavy = "[name for name in ('torch', 'diffusers', 'numpy') if name in sys.modules]"
    code = f"import sys, xd3d.stages.extract.settings; print({heavy})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_data_set_has_the_image_size_that_is_named_for_it():
    settings = ExtractSettings(image_size=(375, 1242), image_sizes={"a2d2": (302, 480)})
    assert settings.for_dataset("a2d2") == ExtractSettings(image_size=(302, 480))
    assert settings.for_dataset("semantickitti") == ExtractSettings(image_size=(375, 1242))
