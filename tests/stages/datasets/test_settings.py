"""The data settings: their names are those that the code knows, and reading them costs nothing."""

import subprocess
import sys
from typing import get_args

import pytest
from pydantic import ValidationError
from xd3d.stages.datasets.labels import merge_names
from xd3d.stages.datasets.settings import DataSettings, DomainName, DomainSettings, MergeName, SplitName
from xd3d.stages.datasets.splits import DOMAINS, SPLITS


def test_names_in_the_settings_are_those_of_the_code():
    assert set(get_args(DomainName)) == set(DOMAINS)
    assert set(get_args(SplitName)) == set(SPLITS)
    assert set(get_args(MergeName)) == set(merge_names())


def test_the_default_shift_is_usa_to_singapore():
    settings = DataSettings()
    assert (settings.source.domain, settings.target.domain, settings.merge) == ("usa", "singapore", "nuscenes-6")


def test_every_setting_says_what_it_is():
    for model in (DataSettings, DomainSettings):
        assert all(field.description for field in model.model_fields.values())


def test_an_unknown_key_is_refused():
    with pytest.raises(ValidationError, match="sorce"):
        DataSettings.model_validate({"sorce": {"domain": "usa"}})


def test_settings_import_no_heavy_module():
    code = (
        "import sys, xd3d.stages.datasets.settings, xd3d.stages.evaluate.settings;"
        "print([m for m in ('numpy', 'torch', 'nuscenes', 'matplotlib', 'cv2', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
