"""A trained run in memory: predicts the classes of points that are given as arrays, with pictures or without."""

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int64

from ..errors import ConfigError, nearest
from ..files import optional_path
from ..stages.datasets.labels import LabelMerge
from ..stages.datasets.memory import MemoryIndex
from ..stages.evaluate.metrics import Modality
from ..stages.evaluate.settings import FusionRule
from ..stages.train.domain import Domain
from .domains import DomainOpener
from .runs import TrainedRun
from .workspace import Workspace

if TYPE_CHECKING:
    from ..stages.extract.online import OnlineExtractor

__all__ = ["LoadedRun", "Prediction", "load_run"]

log = logging.getLogger(__name__)


def load_run(
    run: Path | str | None = None, *, machine: Sequence[str] = (), workspace: Workspace | Path | str | None = None
) -> "LoadedRun":
    """Opens a trained run: a folder, or a name in the workspace; by default the run that was trained last.

    Network and image model are loaded by the first prediction and kept. ``machine``: settings of this machine, such as
    ``["train.device=cpu", "extract.device=cpu"]``.

    Examples:
        >>> run = xd3d.load_run("first")
        >>> run.classes
        ('vehicle', 'driveable_surface', 'sidewalk', 'terrain', 'manmade', 'vegetation')

    Raises:
        MissingDataError: nothing has been trained yet.
        RunError: the folder holds no run.
    """
    opened = TrainedRun.open(Workspace.of(workspace), optional_path(run), machine)
    return LoadedRun(opened.workspace, opened.folder, opened.record, opened.machine)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """Classes and probabilities of P points, in the order in which they were given.

    Each mapping has the predictions "fused" (all together, by the run's rule), "xm" (the sum of both heads), "3d" and
    "2d"; without images only "3d" and, unless the rule is "sum", "fused". Where there is no prediction a label is -1
    and a row of probabilities is all 0: for a point that is not finite, and in "2d" for a point that no image shows.
    """

    classes: tuple[str, ...]  #: name of each class, by its number in the labels
    labels: Mapping[Modality, Int64[np.ndarray, "points"]]
    probabilities: Mapping[Modality, Float32[np.ndarray, "points classes"]]
    decisive: Modality  #: the prediction that counts: "fused", or "3d" if there is none

    @property
    def names(self) -> np.ndarray:
        """The class name of each point by the decisive prediction; "" where there is none."""
        return np.array([*self.classes, ""])[self.labels[self.decisive]]


@dataclass(frozen=True)
class LoadedRun(TrainedRun):
    """A trained run that predicts arrays; ``load_run`` opens one."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; labels are positions in it."""
        return tuple(self.record["classes"])

    @cached_property
    def _sources(self) -> "dict[str, OnlineExtractor]":
        """The image model for the image size of each data set that was predicted."""
        return {}

    def predict(
        self,
        points: np.ndarray,
        images: Mapping[str, Any] | None = None,
        *,
        fusion: FusionRule | None = None,
        dataset: str | None = None,
        keys: Mapping[str, str] | None = None,
    ) -> Prediction:
        """Predicts the class of every point of a sweep, as ``xd3d predict --online`` does.

        Without images the LiDAR-only prediction is made, which needs no cache and no image model.

        Args:
            points: floats [points, 3 or more]: x, y and z first, in metres in the frame of the sensor; further columns
                are not read.
            images: camera name -> (picture, intrinsics, camera_from_lidar). The picture is uint8 [height, width, 3],
                RGB, without lens distortion; the intrinsics [3, 3] are in its pixels; camera_from_lidar [4, 4] maps
                points in metres to the camera (x right, y down, z forward). The names are those of the run where its
                network tells cameras apart, and free otherwise.
            fusion: the rule of the fused prediction; by default the run's.
            dataset: the data set whose image size is used; by default that of the run's target.
            keys: camera name -> the image's key in its data set, which seeds the noise of a diffusion step above 0.

        Examples:
            >>> import numpy as np
            >>> points = np.random.default_rng(0).uniform(-20, 20, (1000, 4))
            >>> prediction = xd3d.load_run("first").predict(points)
            >>> prediction.labels["fused"].shape, prediction.probabilities["3d"].shape
            ((1000,), (1000, 6))

        Raises:
            DataError: an array has another shape or type, or a calibration is missing or wrong.
            ConfigError: the network does not know a camera.
            RunError: there is no checkpoint yet, the network needs images, or it has diverged.
            ModelError: the image model is not on this machine.
        """
        from ..stages.predict.inference import predict_each
        from ..stages.predict.whole_sweeps import sweep_prediction

        given = images or {}
        index = MemoryIndex.of(
            points,
            given,
            dataset=dataset or self.config.data.target.dataset,
            cameras=self._cameras(given),
            keys=keys or {},
        )
        if not given:
            self.require_lidar_only()
        domain = self._domain(index)
        rule = fusion or self.config.evaluate.fusion
        with closing(predict_each(self.network, domain, fusion=rule, workers=0, description="")) as each:
            (found,) = each
        if found.frame is None or found.prediction is None:
            raise found.fault or RuntimeError("a frame without a fault has a prediction")
        if given and not len(found.frame.projection_point):
            log.warning("No point lies in an image; look at camera_from_lidar and intrinsics")
        whole = sweep_prediction(self.network, domain, 0, found.frame, found.prediction)
        return Prediction(
            classes=self.classes,
            labels={modality: whole.classes(modality) for modality in whole.scores},
            probabilities={modality: whole.probabilities(modality) for modality in whole.scores},
            decisive=whole.decisive,
        )

    def _cameras(self, given: Collection[str]) -> tuple[str, ...]:
        """Returns the run's cameras that contain ``given``, or ``given`` if the network does not distinguish cameras.

        Raises:
            ConfigError: the network distinguishes cameras, and does not know one.
        """
        sides = (self.record.get(side) for side in ("target", "validation", "source"))
        known = [tuple(side["cameras"]) for side in sides if side]
        for cameras in known:
            if given and set(given) <= set(cameras):
                return cameras
        fusion, count = self.config.fusion, max(map(len, known), default=0)
        if fusion.interface and given and (count > 1 or len(given) > count):
            strange = next((name for name in given if name not in known[0]), "")
            raise ConfigError(
                f"The network of {self.folder} distinguishes {count} camera(s), and '{strange}' is none of them;"
                f" {nearest(strange, known[0])}"
            )
        return tuple(given)

    def _domain(self, index: MemoryIndex) -> Domain:
        """The frame of ``index`` with the features of its images, from the image model that is kept."""
        from ..stages.extract.online import OnlineExtractor

        kept = self._sources.get(index.dataset)
        opener = DomainOpener(self.workspace, self.config, cached=False, index=index)
        domain = opener.frames(index, np.array([0]), LabelMerge.unlabelled(self.classes), images=kept is None)
        if kept is not None and index.cameras:
            return replace(domain, features=kept.with_index(index))
        if isinstance(domain.features, OnlineExtractor):
            self._sources[index.dataset] = domain.features
        return domain
