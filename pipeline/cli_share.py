"""The commands that share caches and runs: push, pull."""

from pathlib import Path
from typing import Annotated

import typer

from .console import Outcome
from .options import ConfigName, Overrides, comma_separated
from .workspace import Workspace

__all__ = ["pull", "push"]

Place = Annotated[
    str,
    typer.Argument(
        help="A folder, s3://bucket/folder, hf://datasets/owner/name[/folder] (caches), hf://owner/name[/folder] (runs)"
        ", or a URL of fsspec."
    ),
]
Taps = Annotated[str | None, typer.Option(help="Only these taps of a cache, separated by commas.")]
Networks = Annotated[str | None, typer.Option(help="Only these networks of a cache of several, separated by commas.")]
Images = Annotated[
    Path | None, typer.Option(help="Only the images whose keys are in this file; shards are taken whole.")
]
Scenes = Annotated[str | None, typer.Option(help="Only the images of these scenes, separated by commas.")]
Split = Annotated[str | None, typer.Option(help="Only the images of a split: source-train, target-val, ...")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace another cache or run that is there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Forecast files and bytes; change nothing.")]


def push(
    what: Annotated[str, typer.Argument(help="A cache or a run: a folder, s3://..., or a name in the workspace.")],
    place: Place,
    taps: Taps = None,
    networks: Networks = None,
    images: Images = None,
    scenes: Scenes = None,
    split: Split = None,
    config: ConfigName = "default",
    overrides: Overrides = None,
    confirm_licence: Annotated[
        bool,
        typer.Option(
            "--confirm-licence",
            help="The licence of the data set allows me to share features of its images with all who can read PLACE.",
        ),
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Create a new repository on the hub as public; by default it is private.")
    ] = False,
    replace: Replace = False,
    dry_run: DryRun = False,
) -> Outcome:
    """Send a cache or a run to the Hugging Face Hub, S3 or a folder, with digests and a card.

    If it is stopped, the same command resumes; what is there is not sent again.

    Example: `xd3d push nuscenes-0123456789ab hf://datasets/me/features --taps up1 --confirm-licence`
    """
    from .caches import ImageChoice
    from .transfer import commands

    return commands.push(
        Workspace.current(),
        what,
        place,
        taps=comma_separated(taps),
        networks=comma_separated(networks),
        images=ImageChoice(
            images=images, scenes=comma_separated(scenes), split=split, config=config, overrides=overrides
        ),
        confirm_licence=confirm_licence,
        public=public,
        replace=replace,
        dry_run=dry_run,
    )


def pull(
    place: Place,
    out: Annotated[
        str | None, typer.Option(help="Where to put it; by default where the workspace keeps caches or runs.")
    ] = None,
    taps: Taps = None,
    networks: Networks = None,
    images: Images = None,
    scenes: Scenes = None,
    split: Split = None,
    config: ConfigName = "default",
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
) -> Outcome:
    """Fetch a cache or a run that was pushed, and check every byte; commands then find it like one made here.

    If it is stopped, the same command resumes; what is there is not fetched again.

    Example: `xd3d pull hf://datasets/me/features && xd3d train --cached`
    """
    from .caches import ImageChoice
    from .transfer import commands

    return commands.pull(
        Workspace.current(),
        place,
        out=out,
        taps=comma_separated(taps),
        networks=comma_separated(networks),
        images=ImageChoice(
            images=images, scenes=comma_separated(scenes), split=split, config=config, overrides=overrides
        ),
        replace=replace,
        dry_run=dry_run,
    )
