"""Settings of the data: source and target domain, and the label merge."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, model_validator

from ...errors import nearest
from ...settings import Mark, Settings
from .catalogue import DOMAINS, FOLDER, DatasetName
from .merges import MERGES, MergeName, datasets_of

__all__ = ["DataSettings", "DomainSettings", "SplitName"]

SplitName = Literal["train", "val", "test"]


class DomainSettings(Settings):
    """One side of a shift: a part of a data set."""

    dataset: DatasetName = "nuscenes"
    """Data set, as named by 'xd3d prepare --dataset'"""
    domain: Annotated[str, Mark.ABLATION] = "all"
    """Part of it: all; of nuScenes usa and singapore by log location, day and night by scene description, streets-...:
    the domains of 'xd3d synthesize --plan benchmark'; of SemanticKITTI official; of SemanticSTF a weather; of a folder
    those of its dataset.yaml"""

    @model_validator(mode="after")
    def _check(self) -> "DomainSettings":
        known = DOMAINS[self.dataset]
        if self.domain not in known and self.dataset != FOLDER:
            raise ValueError(f"{self.dataset} has no domain '{self.domain}'; {nearest(self.domain, known)}")
        return self


class DataSettings(Settings):
    """The domain shift of a run: source, target, and classes.

    Both data sets must have the classes of ``merge``, unless the validation's context says ``labels=False``.
    """

    source: DomainSettings = DomainSettings(domain="usa")
    """Domain with labels, on which the network is trained"""
    target: DomainSettings = DomainSettings(domain="singapore")
    """Domain to test on, and to adapt to without labels"""
    validate_on: Literal["auto", "source", "target", "none"] = "auto"
    """Side whose val split chooses the checkpoint; auto: the target, or the source where the target is a domain that
    never holds out scenes, such as usa and day of nuScenes; none: no validation, the last checkpoint counts, as it does
    where the dataset.yaml of a folder names no val frames"""
    roots: Annotated[dict[DatasetName, Path], Mark.FREE] = Field(default_factory=dict)
    """Data roots by data set; --root and XD3D_<DATASET>_ROOT win over them"""
    pseudo_labels: Annotated[str | None, Mark.FREE, Mark.ABLATION] = None
    """Pseudo labels to learn where train.lam_pl is above 0: a name in the workspace or a folder; null takes those that
    were made last"""
    merge: MergeName = "nuscenes-6"
    """How the data sets' raw labels become the classes of the network; folder: the classes that its dataset.yaml
    names"""
    points: Literal["seen", "all"] = "seen"
    """Which points of a sweep count: those that an image shows, or all of them"""

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> "DataSettings":
        if not (info.context or {}).get("labels", True):
            return self
        known = datasets_of(self.merge)
        for side in (self.source, self.target):
            if side.dataset not in known and side.dataset != FOLDER:
                fitting = [name for name in MERGES if side.dataset in datasets_of(name)]
                raise ValueError(
                    f"merge {self.merge} is for {', '.join(known)}, not for {side.dataset}; choose one of:"
                    f" {', '.join(fitting)}"
                )
        return self
