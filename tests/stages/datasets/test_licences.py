"""Every published data set has its terms in the table, and pages of the documentation say the same."""

from pathlib import Path
from typing import get_args

import pytest
import xd3d
from xd3d.stages.datasets.catalogue import FOLDER, DatasetName
from xd3d.stages.datasets.licences import licence_of

DOCS = Path(xd3d.__file__).resolve().parent / "docs"
PUBLISHED = [name for name in get_args(DatasetName) if name != FOLDER]


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_a_published_data_set_has_terms_and_their_address(dataset):
    licence = licence_of(dataset)
    assert licence != licence_of(FOLDER)
    assert licence.url.startswith("https://")


def test_terms_that_restrict_sharing_are_told():
    assert "non-commercial" in licence_of("nuscenes").sharing
    assert "CC BY-NC-SA 3.0" in licence_of("semantickitti").name
    assert licence_of("a2d2").hub == "cc-by-nd-4.0"
    assert "owner" in licence_of("a2d2").sharing
    assert "not know" in licence_of("anything else").name


@pytest.mark.parametrize("dataset", ["a2d2", "virtualkitti"])
def test_the_page_of_a_data_set_names_the_same_licence(dataset):
    assert licence_of(dataset).name in (DOCS / "data" / f"{dataset}.md").read_text(encoding="utf-8")
