"""The data settings: their names are those that the code knows, and reading them costs nothing."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError
from xd3d.errors import DataError
from xd3d.stages.datasets.catalogue import DOMAINS, FOLDER, DatasetName
from xd3d.stages.datasets.index import FrameIndex, FrameTable, ImageTable
from xd3d.stages.datasets.labels import merge_names
from xd3d.stages.datasets.merges import MergeName
from xd3d.stages.datasets.settings import DataSettings, DomainSettings, SplitName
from xd3d.stages.datasets.splits import SPLITS, domain_frames


def test_names_in_the_settings_are_those_of_the_code():
    assert set(get_args(DatasetName)) == set(DOMAINS)
    assert set(get_args(SplitName)) == set(SPLITS)
    assert set(get_args(MergeName)) == {*merge_names(), FOLDER}


@pytest.mark.parametrize("dataset", DOMAINS)
def test_every_domain_of_the_settings_can_be_asked_for(dataset):
    index = empty_index(dataset)
    for domain in DOMAINS[dataset]:
        with pytest.raises(DataError, match=f"{domain} 0/0/0"):
            domain_frames(index, domain, "train")


def empty_index(dataset):
    none = np.zeros(0, str)
    table = FrameTable(**{field.name: none for field in dataclasses.fields(FrameTable)})
    return FrameIndex(dataset=dataset, version="", root=Path("/"), cameras=(), frames=table, images=ImageTable.of([]))


def test_a_domain_that_the_data_set_lacks_is_refused():
    with pytest.raises(ValidationError, match="'night'"):
        DomainSettings(dataset="semantickitti", domain="night")


def test_a_merge_that_does_not_fit_a_data_set_names_those_that_do():
    with pytest.raises(ValidationError, match="of: semantickitti-19"):
        DataSettings(source=DomainSettings(dataset="semanticstf"), target=DomainSettings())


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
