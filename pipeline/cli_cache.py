"""The commands that manage a feature cache."""

from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from ..errors import CacheError
from .console import Commands, Outcome
from .options import ConfigName, Device, MovedRoot, Overrides, comma_separated
from .workspace import Workspace

__all__ = ["app"]


def _located(cache: str | None) -> str | None:
    return None if cache is None else Workspace.current().find_cache(cache)


CachePath = Annotated[
    str,
    typer.Argument(
        help="The cache: its name in the workspace, a folder, or s3://bucket/prefix/NAME.", callback=_located
    ),
]

app = Commands(help="The feature cache: info, verify, repair, upgrade, gc, diff, export.", no_args_is_help=True)


@app.command()
def info(path: CachePath) -> Outcome:
    """Show what a cache holds: images, failures, bytes, arrays. Example: `xd3d cache info xd3d-work/cache/NAME`."""
    from ..cache.network_parts import describe_networks

    found = describe_networks(path)
    text = "\n".join(f"{key}: {value}" for key, value in found.items())
    return Outcome(result=found, text=text)


@app.command()
def verify(
    path: CachePath,
    quick: Annotated[
        bool, typer.Option("--quick", help="Metadata, commit records and file sizes only; no values are read.")
    ] = False,
) -> Outcome:
    """Read everything in a cache and compare checksums. Example: `xd3d cache verify xd3d-work/cache/NAME`.

    The exit code is 1 if something is damaged, or if a complete cache has lost images.
    """
    from ..cache.network_parts import check_parts

    result = check_parts(path, quick=quick)
    lines = [
        f"{fault['image'] or 'the cache'}: {fault['array'] or 'no array'} in {fault['file']}: {fault['reason']}"
        for fault in result["damaged"]
    ]
    images = "" if result["images"] is None else f" of {result['images']}"
    lines.append(f"{result['checked']}{images} images are committed and were checked, {len(result['damaged'])} faults")
    return Outcome(result=result, text="\n".join(lines), exit_code=0 if result["ok"] else 1)


@app.command()
def repair(path: CachePath) -> Outcome:
    """Drop what is damaged in a cache, and keep the rest. Example: `xd3d cache repair xd3d-work/cache/NAME`.

    The command that made the cache then writes the dropped images again.
    """
    from ..cache.metadata import MANIFEST
    from ..cache.network_parts import repair_parts

    done = repair_parts(path)
    text = f"{len(done['metadata'])} metadata files were written anew or removed, {done['dropped']} images dropped"
    if done["dropped"] or any(PurePosixPath(file).name == MANIFEST for file in done["metadata"]):
        text += (
            "; write what is missing with the command that made the cache: xd3d extract-features, or xd3d cache export"
        )
    return Outcome(result=done, text=text)


@app.command()
def upgrade(
    path: CachePath,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Data set of the cache, if it does not record it.")
    ] = None,
    root: MovedRoot = None,
    device: Device = None,
) -> Outcome:
    """Upgrade a cache to the newest format. Example: `xd3d cache upgrade xd3d-work/cache/NAME`.

    It computes the memberships of each image's agents from the cached maps and the pictures; the frozen network is not
    needed. If it is stopped, the same command resumes; until it ends the cache reads as before.
    """
    from ..stages.extract.upgrade import upgrade_cache
    from .caches import recorded_dataset
    from .domains import open_index

    workspace = Workspace.current()
    done = upgrade_cache(
        path,
        index=lambda: open_index(workspace, dataset or recorded_dataset(path), root),
        device=device or "auto",
    )
    text = f"The cache {done.cache} has format {done.format}, with the memberships of its images"
    if done.upgraded:
        text = (
            f"{done.upgraded} images were given memberships ({done.bytes / 1e6:.1f} MB, {done.seconds:.0f} s),"
            f" {done.recomputed} of them by assigning cells to the stored agents; the cache has format {done.format}"
        )
    return Outcome(result={**asdict(done), "seconds": round(done.seconds, 3)}, text=text)


@app.command()
def gc(
    path: Annotated[
        str | None,
        typer.Argument(
            help="The cache; by default all caches of the workspace. A cache without any committed image is removed.",
            callback=_located,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed, with its size.")] = False,
) -> Outcome:
    """Remove stale files that no running process owns; committed data stay. Example: `xd3d cache gc --dry-run`."""
    from ..cache.maintenance import collect_garbage, remove_unused
    from ..cache.network_parts import part_paths

    files: list[dict[str, object]] = []
    busy: dict[str, str] = {}
    caches = [path] if path else _all_caches(Workspace.current())
    for part in [part for cache in caches for part in part_paths(cache)]:
        try:
            unused = remove_unused(part, dry_run=dry_run) if isinstance(part, Path) else None
            found = unused or collect_garbage(part, dry_run=dry_run)
        except CacheError as error:
            if path:
                raise
            busy[str(part)] = str(error)
            continue
        files += [{"cache": found["cache"], **file} for file in found["files"]]
    total = sum(int(str(file["bytes"])) for file in files)
    verb = "would be removed" if dry_run else "removed"
    lines = [f"{file['bytes']:>14,} {file['cache']}/{file['file']}" for file in files]
    lines += [f"skipped: {reason}" for reason in busy.values()]
    return Outcome(
        result={"files": files, "bytes": total, "dry_run": dry_run, "busy": busy},
        text="\n".join([*lines, f"{len(files)} files with {total:,} bytes {verb}"]),
        exit_code=1 if busy else 0,  # a cache of the workspace was skipped, for example because it is being written
    )


@app.command()
def diff(first: CachePath, second: CachePath) -> Outcome:
    """Show how two caches differ; the exit code is 1 if they do. Example: `xd3d cache diff A B`."""
    from ..cache.maintenance import diff_caches

    found = diff_caches(first, second)
    lines = list(found["fingerprint"])
    for kind in ("images", "arrays", "readable"):
        lines += [f"{kind}, {side.replace('_', ' ')}: {len(names)}" for side, names in found[kind].items() if names]
    lines += [f"{array}: {len(keys)} images differ" for array, keys in found["rows"].items() if keys]
    lines.append("The caches are equal" if found["equal"] else "The caches differ")
    return Outcome(result=found, text="\n".join(lines), exit_code=0 if found["equal"] else 1)


@app.command()
def export(
    path: CachePath,
    out: Annotated[str, typer.Argument(help="The folder of the new cache.")],
    taps: Annotated[str | None, typer.Option(help="Taps to keep, separated by commas; the default is all.")] = None,
    images: Annotated[Path | None, typer.Option(help="A file with the keys of the images to keep, one a line.")] = None,
    scenes: Annotated[str | None, typer.Option(help="Scenes to keep, separated by commas.")] = None,
    split: Annotated[str | None, typer.Option(help="A split to keep: source-train, target-val, ...")] = None,
    config: ConfigName = "default",
    overrides: Overrides = None,
) -> Outcome:
    """Write some taps or images of a cache as a new cache. Example: `xd3d cache export PATH OUT --split source-val`.

    If it is stopped, the same command resumes.
    """
    from ..cache.export import export_cache
    from ..cache.metadata import load_layout
    from ..cache.stores import open_store
    from ..cache.views import IDENTITY, view_keys
    from .caches import ImageChoice, recorded_dataset

    choice = ImageChoice(images=images, scenes=comma_separated(scenes), split=split, config=config, overrides=overrides)
    keys = choice.keys(Workspace.current(), "" if scenes is None else recorded_dataset(path))
    if keys is not None:
        keys = view_keys(keys, load_layout(open_store(path)).fingerprint.get("views", [IDENTITY]))
    done = export_cache(path, out, taps=comma_separated(taps), images=keys)
    left = f"; {done['left_out']} uncommitted images were left out" if done["left_out"] else ""
    return Outcome(
        result=done,
        text=f"{done['images']} images, taps {', '.join(done['taps'])}, {done['bytes'] / 1e9:.2f} GB in {out}{left}",
    )


def _all_caches(workspace: Workspace) -> list[Path | str]:
    """Every cache of the workspace; symbolic links are skipped, because they may lead out of it."""
    from ..cache.metadata import MANIFEST
    from ..cache.stores import open_store

    root = workspace.cache_root()
    if isinstance(root, Path):
        return [
            folder for folder in sorted(root.glob("*")) if (folder / MANIFEST).is_file() and not folder.is_symlink()
        ]
    caches = [f"{root}/{name}" for name in sorted(open_store(root).listing(""))]
    return [cache for cache in caches if open_store(cache).exists(MANIFEST)]
