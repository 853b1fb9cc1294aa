"""Which cameras of a data set an index holds."""

from collections.abc import Sequence

from ...errors import ConfigError, nearest

__all__ = ["choose_cameras", "refuse_cameras"]


def choose_cameras(cameras: str | Sequence[str], present: Sequence[str]) -> tuple[str, ...]:
    """Camera names without repeats, in the order of ``present``; "all" stands for every one, "none" for LiDAR only.

    Raises:
        ConfigError: a name is not among ``present`` (the nearest is named), or none is given.
    """
    names = cameras.split(",") if isinstance(cameras, str) else cameras
    wanted = {name.strip() for name in names if name.strip()}
    if wanted == {"all"}:
        return tuple(present)
    if wanted == {"none"}:
        return ()
    unknown = sorted(wanted - set(present))
    if unknown:
        hint = nearest(unknown[0], [*present, "all", "none"])
        raise ConfigError(f"The data set has no camera '{unknown[0]}'; {hint} (option --cameras)")
    if not wanted:
        raise ConfigError(f"No camera is chosen; choose some of {', '.join(present)}, all or none (option --cameras)")
    return tuple(name for name in present if name in wanted)


def refuse_cameras(dataset: str, cameras: str | Sequence[str] | None) -> None:
    """Refuse cameras for a data set without images.

    Raises:
        ConfigError: some are asked for.
    """
    if cameras not in (None, "none", ["none"], ("none",)):
        raise ConfigError(f"{dataset} has no images, and --cameras says '{cameras}'; leave it out")
