"""Cache maintenance that needs the data set's index, the model or the workspace."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CacheError, ConfigError, nearest
from .config import DEFAULT_PRESET, load_config
from .console import Outcome
from .domains import DomainOpener, open_index
from .workspace import Workspace

if TYPE_CHECKING:
    from ..cache.networks import NetworksReader
    from ..cache.reader import FeatureReader
    from ..stages.datasets.index import FrameIndex

__all__ = ["add_memberships", "chosen_images", "collect_garbage", "export_part", "open_cache"]


def open_cache(
    path: Path | str | None = None,
    *,
    dataset: str = "nuscenes",
    config: str = DEFAULT_PRESET,
    overrides: Sequence[str] = (),
    workspace: Workspace | Path | str | None = None,
) -> "FeatureReader | NetworksReader":
    """Open a feature cache for reading; rows are images.

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
        opener = DomainOpener(Workspace.of(workspace), load_config(config, overrides).config, cached=True)
        return opener.open_cache(dataset)
    from ..cache.networks import part_paths
    from ..cache.reader import FeatureReader

    if (parts := part_paths(path)) != [path]:
        raise CacheError(f"{path} is a cache of several networks; open one part: {', '.join(map(str, parts))}")
    return FeatureReader(path)


def add_memberships(
    workspace: Workspace, path: str, dataset: str | None, root: Path | None, device: str | None = None
) -> Outcome:
    """Upgrade the cache at ``path`` to the newest format; ``dataset`` is for a cache that does not record its own."""
    from ..stages.extract.upgrade import upgrade_cache

    def index() -> "FrameIndex":
        return open_index(workspace, dataset, root) if dataset else _index_of(workspace, path, root)

    done = upgrade_cache(path, index=index, root=root, device=device or "auto")
    text = f"The cache {done.cache} has format {done.format}, with the memberships of its images"
    if done.upgraded:
        text = (
            f"{done.upgraded} images were given memberships ({done.bytes / 1e6:.1f} MB, {done.seconds:.0f} s),"
            f" {done.recomputed} of them by assigning cells to the stored agents; the cache has format {done.format}"
        )
    return Outcome(result={**asdict(done), "seconds": round(done.seconds, 3)}, text=text)


def collect_garbage(workspace: Workspace, path: str | None, *, dry_run: bool) -> Outcome:
    """Remove stale files from the cache at ``path``, or from all caches of the workspace, and caches that are empty.

    The exit code is 1 if a cache of the workspace was skipped, for example because it is being written.
    """
    from ..cache.gc import collect_garbage, remove_unused
    from ..cache.networks import part_paths

    files: list[dict[str, object]] = []
    busy: dict[str, str] = {}
    caches = [path] if path else _all_caches(workspace)
    for place in [part for cache in caches for part in part_paths(cache)]:
        try:
            unused = remove_unused(place, dry_run=dry_run) if isinstance(place, Path) else None
            found = unused or collect_garbage(place, dry_run=dry_run)
        except CacheError as error:
            if path:
                raise
            busy[str(place)] = str(error)
            continue
        files += [{"cache": found["cache"], **file} for file in found["files"]]
    total = sum(int(str(file["bytes"])) for file in files)
    verb = "would be removed" if dry_run else "removed"
    lines = [f"{file['bytes']:>14,} {file['cache']}/{file['file']}" for file in files]
    lines += [f"skipped: {reason}" for reason in busy.values()]
    return Outcome(
        result={"files": files, "bytes": total, "dry_run": dry_run, "busy": busy},
        text="\n".join([*lines, f"{len(files)} files with {total:,} bytes {verb}"]),
        exit_code=1 if busy else 0,
    )


def _all_caches(workspace: Workspace) -> list[Path | str]:
    """Every cache of the workspace; symbolic links are skipped, because they may lead out of it."""
    from ..cache.metadata import MANIFEST
    from ..cache.stores import open_store

    place = workspace.cache_root()
    if isinstance(place, Path):
        return [
            folder for folder in sorted(place.glob("*")) if (folder / MANIFEST).is_file() and not folder.is_symlink()
        ]
    caches = [f"{place}/{name}" for name in sorted(open_store(place).listing(""))]
    return [cache for cache in caches if open_store(cache).exists(MANIFEST)]


def export_part(
    workspace: Workspace,
    path: str,
    out: str,
    *,
    taps: Sequence[str] | None,
    images: Path | None,
    scenes: Sequence[str] | None,
    split: str | None,
    config: str = DEFAULT_PRESET,
    overrides: Sequence[str] = (),
) -> Outcome:
    """Copy some taps, and the images of a list, of scenes or of a split, from a cache to a new one."""
    from ..cache.export import export_cache
    from ..cache.metadata import load_layout
    from ..cache.stores import open_store
    from ..cache.views import IDENTITY, view_keys

    dataset = _dataset_of(path) if scenes else ""
    chosen = chosen_images(workspace, dataset, images, scenes, split, config, overrides)
    if chosen is not None:
        views = load_layout(open_store(path)).fingerprint.get("views", [IDENTITY])
        chosen = view_keys(chosen, views)
    done = export_cache(path, out, taps=taps, images=chosen)
    left = f"; {done['left_out']} uncommitted images were left out" if done["left_out"] else ""
    return Outcome(
        result=done,
        text=f"{done['images']} images, taps {', '.join(done['taps'])}, {done['bytes'] / 1e9:.2f} GB in {out}{left}",
    )


def chosen_images(
    workspace: Workspace,
    dataset: str,
    images: Path | None,
    scenes: Sequence[str] | None,
    split: str | None,
    config: str,
    overrides: Sequence[str],
) -> list[str] | None:
    """Returns the keys of a list of images, of scenes of ``dataset``, or of a split of the config's source or target.

    None if nothing is chosen.

    Raises:
        ConfigError: several ways are given, or there is no such scene or split.
        MissingDataError: the data set is not prepared.
    """
    import numpy as np

    from ..stages.datasets.splits import domain_frames

    if len([way for way in (images, scenes, split) if way]) > 1:
        raise ConfigError("Choose images in one way: --images, --scenes or --split")
    if images:
        return images.read_text(encoding="utf-8").split()
    if not scenes and not split:
        return None
    if scenes:
        index = open_index(workspace, dataset)
        if strange := sorted(set(scenes) - set(index.frames.scene.tolist())):
            near = nearest(strange[0], set(index.frames.scene.tolist()))
            raise ConfigError(f"The data set has no scene {strange[0]}: {near}")
        frames = index.frames_where(np.isin(index.frames.scene, list(scenes)))
    else:
        data = load_config(config, overrides).config.data
        sides = {"source": data.source, "target": data.target}
        side, _, part = str(split).partition("-")
        if side not in sides or part not in ("train", "val", "test"):
            raise ConfigError(f"'{split}' is no split: write source-train, source-val, target-val, target-test, ...")
        index = open_index(workspace, sides[side].dataset)
        frames = domain_frames(index, sides[side].domain, part)
    return [str(index.images.key[row]) for frame in frames for row in index.images_of(frame)]


def _index_of(workspace: Workspace, path: str, root: Path | None) -> "FrameIndex":
    """The index of the data set that the cache records."""
    return open_index(workspace, _dataset_of(path), root)


def _dataset_of(path: str) -> str:
    """The data set that the cache records."""
    from ..cache.recipe import load_recipe
    from ..cache.stores import open_store

    recipe = load_recipe(open_store(path)) or {}
    if "dataset" not in recipe:
        raise CacheError(
            f"The cache {path} does not say of which data set it was made; upgrade it with --dataset NAME, and choose"
            " images of it with --images FILE or --split NAME"
        )
    return str(recipe["dataset"])
