"""Opens caches, and chooses images of them by list, scene or split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..cache.network_parts import NetworksReader, part_paths
from ..cache.reader import FeatureReader
from ..cache.recipe import load_recipe
from ..cache.stores import open_store
from ..errors import CacheError, ConfigError, nearest
from ..stages.datasets.folder_description import composed
from ..stages.datasets.splits import domain_frames
from ..stages.datasets.text_files import read_text
from .config import DEFAULT_PRESET, load_config
from .domains import DomainOpener, open_index
from .workspace import Workspace

__all__ = ["ImageChoice", "open_cache", "recorded_dataset"]


def open_cache(
    path: Path | str | None = None,
    *,
    dataset: str = "nuscenes",
    config: str = DEFAULT_PRESET,
    overrides: Sequence[str] = (),
    workspace: Workspace | Path | str | None = None,
) -> FeatureReader | NetworksReader:
    """Opens a feature cache for reading; rows are images.

    Args:
        path: folder or URL, whose rows are in the order of its ``image_keys``; by default the cache of ``dataset`` with
            these settings, in the order of the index.
        dataset: name of a prepared data set.
        config: name of a preset, or a YAML file.
        overrides: settings that differ from it, as ``"key=value"``.
        workspace: its folder; by default ``XD3D_HOME``, or ``xd3d-work`` in the working directory.

    Examples:
        >>> cache = xd3d.open_cache(overrides=["extract.image_size=[48, 80]"])
        >>> features = cache.read([0, 1])
        >>> features.maps["up1"].shape, features.agents["up1"].shape
        ((2, 96, 3, 5), (2, 100, 96))

    Raises:
        CacheError: there is no cache, it is damaged, or ``path`` is one of several networks, of which only the parts
            can be opened by path.
        CacheMismatchError: all caches of the data set were made with other settings.
    """
    if path is None:
        settings = load_config(config, overrides, labels=False).config
        opener = DomainOpener(Workspace.of(workspace), settings, cached=True)
        return opener.open_cache(dataset)
    if (parts := part_paths(path)) != [path]:
        raise CacheError(f"{path} is a cache of several networks; open one part: {', '.join(map(str, parts))}")
    return FeatureReader(path)


@dataclass(frozen=True, kw_only=True)
class ImageChoice:
    """The images of a list, of scenes, or of a split of a config's source or target (``source-val``); all by default.

    ``images`` is a text file with the key of an image on each line.
    """

    images: Path | None = None
    scenes: Sequence[str] | None = None
    split: str | None = None
    config: str = DEFAULT_PRESET
    overrides: Sequence[str] | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing is chosen."""
        return self._given == 0

    @property
    def _given(self) -> int:
        return sum(way is not None for way in (self.images, self.scenes, self.split))

    def keys(self, workspace: Workspace, dataset: str) -> list[str] | None:
        """Returns the keys of the images; those of scenes are of ``dataset``. None if nothing is chosen.

        Raises:
            ConfigError: several ways are given, or there is no such scene or split.
            MissingDataError: the data set is not prepared, or there is no file ``images``.
            DataError: the file ``images`` is not text.
        """
        if self._given > 1:
            raise ConfigError("Choose images in one way: --images, --scenes or --split")
        if self.images is not None:
            text = read_text(self.images, "list of images", "give a text file with one key per line (--images)")
            return [key for line in text.splitlines() if (key := line.strip())]
        if self.whole:
            return None
        if self.scenes is not None:
            index = open_index(workspace, dataset)
            scenes = [composed(scene) for scene in index.frames.scene.tolist()]
            chosen, known = set(map(composed, self.scenes)), set(scenes)
            if strange := sorted(chosen - known):
                raise ConfigError(f"The data set has no scene {strange[0]}: {nearest(strange[0], known)}")
            frames = np.flatnonzero([scene in chosen for scene in scenes])
        else:
            data = load_config(self.config, self.overrides or (), labels=False).config.data
            sides = {"source": data.source, "target": data.target}
            side, _, part = str(self.split).partition("-")
            if side not in sides or part not in ("train", "val", "test"):
                raise ConfigError(
                    f"'{self.split}' is no split: write source-train, source-val, target-val, target-test, ..."
                )
            index = open_index(workspace, sides[side].dataset)
            frames = domain_frames(index, sides[side].domain, part)
        return [str(index.images.key[row]) for frame in frames for row in index.images_of(frame)]


def recorded_dataset(path: str) -> str:
    """Returns the data set that the cache at ``path`` records.

    Raises:
        CacheError: it records none.
    """
    recipe = load_recipe(open_store(path)) or {}
    if "dataset" not in recipe:
        raise CacheError(
            f"The cache {path} does not record its data set; give --dataset NAME to 'xd3d cache upgrade', and choose"
            " images of the cache with --images FILE or --split NAME"
        )
    return str(recipe["dataset"])
