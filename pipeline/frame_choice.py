"""Which frames a command predicts, from its options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from ..errors import ConfigError, DataError, nearest
from ..stages.datasets.folder import build_index
from ..stages.datasets.folder_description import NAME, composed
from ..stages.datasets.index import FrameIndex
from ..stages.datasets.readers import READERS
from ..stages.datasets.splits import domain_frames
from .domains import open_index
from .options import comma_separated
from .workspace import Workspace

__all__ = ["FrameChoice", "choose_frames", "refuse_options"]


@dataclass(frozen=True, kw_only=True)
class FrameChoice:
    """The frames to predict: those of ``split`` in ``domain`` whose scene or name matches a glob in ``scenes``.

    ``root`` is the data root if it is not the one that was prepared; a folder with a ``dataset.yaml`` need not be
    prepared. ``official``: ``split`` is an official one; "all" without ``scenes`` are the test frames if there are any.
    """

    dataset: str
    root: Path | None = None
    domain: str = "all"
    split: str = "all"
    scenes: Sequence[str] = ()
    official: bool = False

    def open_index(self, workspace: Workspace) -> FrameIndex:
        """Opens the index of the data set; that of a folder that is not the prepared one is made, and not stored.

        Raises:
            MissingDataError: the data set is not prepared.
        """
        if self.dataset != "folder" or self.root is None:
            return open_index(workspace, self.dataset, self.root)
        prepared = workspace.index("folder")
        if (prepared / "index.json").exists() and FrameIndex.load(prepared).root.resolve() == self.root.resolve():
            return open_index(workspace, "folder")
        return build_index(self.root)

    def rows(self, index: FrameIndex) -> Int64[np.ndarray, "rows"]:
        """Returns the rows of the frames in ``index``.

        Raises:
            ConfigError: there is no such domain or split, or a name in ``scenes`` matches no frame of it.
            DataError: it has no frame.
        """
        rows = domain_frames(index, self.domain, "all" if self.official else self.split)
        if self.official and not (self.split == "all" and self.scenes):
            rows = self._of_official_split(index, rows)
        if not self.scenes:
            return rows
        chosen = np.zeros(len(rows), bool)
        for name in self.scenes:
            wanted = composed(name)
            fits = [
                any(fnmatchcase(composed(str(names[row])), wanted) for names in (index.frames.scene, index.frames.key))
                for row in rows
            ]
            if not any(fits):
                there = ", ".join(sorted({str(scene) for scene in index.frames.scene[rows]})[:10])
                raise ConfigError(f"No frame and no scene matches '{name}' (option --scenes); the scenes are {there}")
            chosen |= fits
        return rows[chosen]

    def _of_official_split(self, index: FrameIndex, rows: Int64[np.ndarray, "rows"]) -> Int64[np.ndarray, "some"]:
        found = index.frames.split[rows]
        chosen = found == ("test" if self.split == "all" else self.split)
        if self.split == "all" and not chosen.any():
            return rows
        if not chosen.any():
            there = ", ".join(sorted(set(map(str, found))))
            raise DataError(f"No frame of {index.root} is in the official split '{self.split}'; it holds: {there}")
        return rows[chosen]


def choose_frames(
    points: Path | None,
    dataset: str | None,
    *,
    root: Path | None,
    domain: str | None,
    split: str | None,
    scenes: str | None,
    submission: bool,
    sweeps_alone: Mapping[str, object],
    frames_alone: Mapping[str, object],
) -> FrameChoice | Path:
    """Returns the frames that the options of a command choose, or ``points`` if these are sweeps alone.

    A folder with a ``dataset.yaml`` is a data set. ``sweeps_alone`` and ``frames_alone`` are the options, by name,
    that only the one or the other has.

    Raises:
        ConfigError: nothing is chosen, or options contradict each other.
    """
    if dataset is None and points is not None and (points / NAME).is_file():
        dataset = "folder"
    if dataset is None:
        if points is None:
            raise ConfigError("There is nothing to label: give sweeps, a folder with a dataset.yaml, or --dataset NAME")
        chosen: dict[str, object] = {"--root": root, "--domain": domain, "--split": split, "--scenes": scenes}
        chosen |= {"--submission": submission, **frames_alone}
        refuse_options(chosen, f"for frames of a data set, and {points} holds sweeps alone; add --dataset NAME")
        return points
    if dataset not in READERS:
        raise ConfigError(f"There is no data set '{dataset}'; {nearest(dataset, READERS)} (option --dataset)")
    refuse_options(sweeps_alone, f"for sweeps alone, not for the frames of {dataset}")
    if points is not None:
        refuse_options({"--root": root}, f"a second data root: {points} is given already")
    return FrameChoice(
        dataset=dataset,
        root=points or root,
        domain=domain or "all",
        split=split or "all",
        scenes=comma_separated(scenes) or [],
        official=submission,
    )


def refuse_options(options: Mapping[str, object], reason: str) -> None:
    """Refuses options that do not apply, for a ``reason`` (after "it is"); ``options`` has their values by name.

    Raises:
        ConfigError: one of them is given.
    """
    given = [name for name, value in options.items() if value]
    if given:
        raise ConfigError(f"Leave out {', '.join(given)}: {'they are' if len(given) > 1 else 'it is'} {reason}")
