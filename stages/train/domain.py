"""A domain for training and inference: frames of an index, a label merge, and a source of image features."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from ..datasets.catalogue import DOMAINS
from ..datasets.frames import Frame, load_frame
from ..datasets.index import FrameIndex
from ..datasets.labels import LabelMerge
from .features import FeatureSource
from .pseudo_labels import PseudoLabels

__all__ = ["Domain"]


@dataclass(frozen=True, kw_only=True)
class Domain:
    """An ordered list of frames (rows of the index's frame table), and the source of their image features.

    ``features`` is None if no images are used. ``labelled``: label files are read; otherwise every point has the label
    ``IGNORE``. ``pseudo`` are pseudo labels of these frames to train on. ``every_point`` keeps the points that no image
    shows. ``image_size`` is the height and width in pixels of the images of stage one, the unit of crops.
    """

    index: FrameIndex
    frames: Int[np.ndarray, "chosen"]
    merge: LabelMerge
    features: FeatureSource | None = None
    labelled: bool = True
    pseudo: PseudoLabels | None = None
    every_point: bool = False
    image_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.frames)

    def load(self, position: int, rng: np.random.Generator | None = None) -> Frame:
        """Loads points, labels, pseudo labels and projections of the frame at ``position`` in ``frames``.

        If a data set has several images of the same view, ``rng`` draws one; without it, the first is used.

        Raises:
            DataError: a file is damaged, or the frame has changed since its pseudo labels were made.
        """
        merge = self.merge if self.labelled else None
        frame = load_frame(self.index, int(self.frames[position]), merge, every_point=self.every_point, rng=rng)
        return frame if self.pseudo is None else replace(frame, pseudo=self.pseudo.read(position, len(frame.points)))

    def unlabelled(self) -> "Domain":
        """Returns the same domain without labels: label files are never opened."""
        return replace(self, labelled=False)

    def key(self, position: int) -> str:
        """Returns the unique name of the frame at ``position``."""
        return str(self.index.frames.key[self.frames[position]])

    def weather(self, position: int) -> str:
        """Returns the weather of the frame at ``position`` if the data set has domains by weather, else ""."""
        words = str(self.index.frames.description[self.frames[position]])
        return words if words in DOMAINS[self.index.dataset] else ""

    def cameras(self, frame: Frame) -> Int[np.ndarray, "views"]:
        """Returns the index of each view's camera in the index's list of cameras."""
        names = self.index.images.camera[frame.image_rows]
        return np.array([self.index.cameras.index(str(name)) for name in names], np.int64)

    def require_features(self) -> None:
        """Checks that every view of every image has features.

        Raises:
            CacheError: some have none.
        """
        if self.features is not None:
            images = np.flatnonzero(np.isin(self.index.images.frame, self.frames))
            views = len(self.features.views)
            self.features.require((images[:, None] * views + np.arange(views)).ravel().tolist())
