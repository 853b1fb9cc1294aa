"""The commands that look after a feature cache."""

from typing import Annotated

import typer

from .console import Outcome, conclude
from .options import Json, Overrides, Root
from .workspace import Workspace

__all__ = ["app"]

CachePath = Annotated[str, typer.Argument(help="The cache's folder, or where else it is kept.")]

app = typer.Typer(help="The feature cache: info, verify, repair.", no_args_is_help=True)


@app.command()
def info(path: CachePath, as_json: Json = False) -> None:
    """Say what a cache holds: images, failures, bytes, arrays. Example: `xd3d cache info xd3d-work/cache/NAME`."""
    from ..cache.info import cache_info

    found = cache_info(path)
    text = "\n".join(f"{key}: {value}" for key, value in found.items())
    conclude(Outcome(result=found, text=text), as_json)


@app.command()
def verify(
    path: CachePath,
    quick: Annotated[
        bool, typer.Option("--quick", help="Metadata, commit records and file sizes only; no values are read.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read everything in a cache and compare checksums. Example: `xd3d cache verify xd3d-work/cache/NAME`."""
    from ..cache.verify import verify_cache

    result = verify_cache(path, quick=quick)
    lines = [
        f"{fault['image'] or 'the cache'}: {fault['array'] or 'no array'} in {fault['file']}: {fault['reason']}"
        for fault in result["damaged"]
    ]
    lines.append(f"{result['checked']} images checked, {len(result['damaged'])} faults")
    conclude(Outcome(result=result, text="\n".join(lines), exit_code=0 if result["ok"] else 1), as_json)


@app.command()
def repair(
    path: CachePath,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Its data set, for a cache that does not know it itself.")
    ] = None,
    config: Annotated[str, typer.Option("--config", help="The preset or file it was made with, likewise.")] = "default",
    overrides: Overrides = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Compute anew what is damaged in a cache, and keep the rest. Example: `xd3d cache repair xd3d-work/cache/NAME`.

    How its features were asked for stands in the cache; for caches made before that was kept, give --dataset and the
    config they were made with.
    """
    from .caches import repair_cache

    conclude(repair_cache(Workspace.current(), path, dataset, config, overrides or [], root), as_json)
