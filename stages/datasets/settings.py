"""Settings of the data: which domain is the source, which the target, and how labels are merged."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from ...settings import Settings

__all__ = ["BenchmarkDomain", "DataSettings", "DatasetName", "DomainName", "DomainSettings", "MergeName", "SplitName"]

DatasetName = Literal["nuscenes"]
BenchmarkDomain = Literal[
    "streets", "streets-city", "streets-night", "streets-fog", "streets-sensor", "streets-development"
]
DomainName = Literal["usa", "singapore", "day", "night", "all"] | BenchmarkDomain
SplitName = Literal["train", "val", "test"]
MergeName = Literal["nuscenes-6"]


class DomainSettings(Settings):
    """One side of a shift: a part of a data set."""

    dataset: DatasetName = Field(default="nuscenes", description="Data set, as named by 'xd3d prepare --dataset'")
    domain: DomainName = Field(
        default="all",
        description="Part of it: usa and singapore by log location, day and night by scene description; streets-...:"
        " the domains of 'xd3d synthesize --plan benchmark'",
    )


class DataSettings(Settings):
    """The shift that a run is about: where it trains, where it is meant to work, and the classes it tells apart."""

    source: DomainSettings = Field(
        default=DomainSettings(domain="usa"), description="Domain with labels, on which the network is trained"
    )
    target: DomainSettings = Field(
        default=DomainSettings(domain="singapore"), description="Domain on which it is validated and tested"
    )
    validate_on: Literal["auto", "source", "target"] = Field(
        default="auto",
        description="Side whose val split chooses the checkpoint; auto: the target, or the source where the target"
        " holds out no scene",
    )
    roots: dict[DatasetName, Path] = Field(
        default_factory=dict, description="Data roots by data set; --root and XD3D_<DATASET>_ROOT win over them"
    )
    pseudo_labels: str | None = Field(
        default=None,
        description="Pseudo labels to learn where train.lam_pl is above 0: a name in the workspace or a folder;"
        " null takes those that were made last",
    )
    merge: MergeName = Field(
        default="nuscenes-6", description="How the data set's raw labels become the classes of the network"
    )
