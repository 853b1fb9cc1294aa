"""The command ``extract-features``: stage one on the images of a data set, or the forecast of its cost."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache.network_parts import part_paths
from ..cache.reader import FeatureReader
from ..files import optional_path
from .config import DEFAULT_PRESET, config_options, load_config
from .console import Outcome
from .domains import DomainOpener
from .sharing import ONE_PROCESS, Sharing
from .workspace import Workspace

if TYPE_CHECKING:
    from ..stages.extract.job import ExtractSummary

__all__ = ["extract_features"]


def extract_features(
    dataset: str = "nuscenes",
    config: str = DEFAULT_PRESET,
    overrides: Sequence[str] = (),
    root: Path | str | None = None,
    *,
    dry_run: bool = False,
    retry_failed: bool = False,
    sharing: Sharing = ONE_PROCESS,
    workspace: Workspace | Path | str | None = None,
) -> Outcome:
    """Runs stage one: applies the frozen network to every image of ``dataset``, or with ``sharing`` to a part of them.

    It can be stopped at any time; the same call resumes. The exit code is 1 if an image has no features, or, with
    ``dry_run``, if the disk is too small.

    Args:
        dataset: name of a prepared data set.
        config: name of a preset, or a YAML file.
        overrides: settings that differ from it, as ``"key=value"``.
        root: folder of the data set, where it is not that of ``prepare``.
        dry_run: compute one image, and forecast the bytes and the time of all.
        retry_failed: compute images again that failed before.
        sharing: how to divide the images among processes.
        workspace: its folder; by default ``XD3D_HOME``, or ``xd3d-work`` in the working directory.

    Examples:
        >>> done = xd3d.extract_features("nuscenes", overrides=["extract.image_size=[48, 80]"])
        >>> done.result["done"] == done.result["images"]
        True

    Raises:
        MissingDataError: the data set is not prepared.
        ModelError: the network cannot be found, or is incomplete.
        CacheError: the cache is damaged, or another process writes it.
    """
    workspace = Workspace.of(workspace)
    settings = load_config(config, overrides, labels=False).config
    opener = DomainOpener(workspace, settings, cached=True, root=optional_path(root))
    if dry_run:
        return _forecast(opener, dataset, retry_failed=retry_failed)
    done = _extract(opener, dataset, sharing, retry_failed=retry_failed)
    if done.exit_code:
        return done
    command = shlex.join(["xd3d", "train", "--cached", *config_options(config, overrides)])
    others = ", when the other parts are done" if (sharing.part or (1, 1))[1] > 1 else ""
    return replace(done, text=f"{done.text} Next{others}: {command}")


def _forecast(opener: DomainOpener, dataset: str, *, retry_failed: bool) -> Outcome:
    from ..stages.extract.forecast import forecast

    index, settings = opener.index(dataset), opener.extract_settings(dataset)
    expected = forecast(index, settings, opener.cache_path(dataset), retry_failed=retry_failed)
    hours = expected.seconds / 3600
    free = "" if expected.free_bytes is None else f" ({expected.free_bytes / 1e9:.1f} GB are free)"
    advice = "" if expected.fits else "\nThe disk is too small: free some space, or set XD3D_CACHES to a larger disk."
    return Outcome(
        result={**asdict(expected), "fits": expected.fits},
        text=f"{expected.left} of {expected.images} images left, {expected.bytes_per_image / 1e6:.2f} MB per image:"
        f" {expected.bytes_left / 1e9:.2f} GB{free},"
        f" {expected.seconds_per_image:.2f} s per image: {hours:.2f} h{advice}",
        exit_code=0 if expected.fits else 1,
    )


def _extract(opener: DomainOpener, dataset: str, sharing: Sharing, *, retry_failed: bool) -> Outcome:
    path = opener.cache_path(dataset)
    index, settings = opener.index(dataset), opener.extract_settings(dataset)
    fill: Callable[..., ExtractSummary]
    if sharing.workers or sharing.scheduler:
        from ..stages.extract.dask_cluster import extract_with_workers

        fill = partial(extract_with_workers, workers=sharing.workers, scheduler=sharing.scheduler)
    else:
        from ..stages.extract.job import extract_features

        fill = partial(extract_features, part=sharing.part)
    if settings.models:
        from ..stages.extract.network_parts import extract_networks

        done = extract_networks(index, settings, path, fill=fill, retry_failed=retry_failed)
    else:
        done = fill(index, settings, path, retry_failed=retry_failed)
    advice = _failures(path, done.failed)
    return Outcome(
        result={
            "cache": str(path),
            "fingerprint": done.fingerprint,
            "images": done.images,
            "done": done.done,
            "failed": done.failed,
            "seconds": round(done.seconds, 3),
            "images_per_second": round(done.images_per_second, 4),
            **{f"share_{activity}": round(share, 4) for activity, share in done.shares.items()},
        },
        text=f"{done.done} of {done.images} images are in {path} ({done.seconds:.0f} s).{advice}",
        exit_code=1 if done.done < done.images else 0,
    )


def _failures(cache: Path | str, failed: int) -> str:
    """Says how many images failed, why the first one did, and what helps."""
    if not failed:
        return ""
    reader = next(reader for part in part_paths(cache) if (reader := FeatureReader(part)).failed)
    reason = next(iter(reader.failed.values()))
    in_half = reader.fingerprint.get("dtype") in ("float16", "bfloat16")
    remedy = "try extract.dtype=float32; " if in_half and "not finite" in reason else ""
    return f"\n{failed} images failed ({reason}); {remedy}--retry-failed tries them again"
