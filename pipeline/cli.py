"""The command line: each command parses its options, calls one function of the Python API and prints the result.

The package imports these functions, and with them heavy libraries, on first use.
"""

from pathlib import Path
from typing import Annotated, Literal, no_type_check

import typer
import xd3d

from . import cli_ablate, cli_predict, cli_share, cli_tools
from .console import Commands, Outcome, run_command_line, set_up_logging
from .options import (
    Adapt,
    CameraNames,
    ConfigName,
    DatasetName,
    Device,
    Fusion,
    MachineOverrides,
    MovedRoot,
    Overrides,
    Root,
    RunFolder,
    Scheduler,
    ShardPart,
    Workers,
    machine_settings,
)
from .sharing import Sharing, require_one_process

__all__ = ["app", "main"]

app = Commands(
    name="xd3d",
    help="Cross-domain LiDAR segmentation that pays for Stable Diffusion once: extract features, then train from them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Split = Literal["train", "val", "test"]
Tested = Annotated[str, typer.Option(help="What to score: source, target, or another domain of the target's data set.")]
Cached = Annotated[bool, typer.Option("--cached", help="Read features from the cache instead of running the model.")]
NewRun = Annotated[
    Path | None, typer.Option("--run", help="A folder or a name; by default it follows from the config.")
]
Absent = Literal["exclude", "zero", "one"]


@app.callback()
@no_type_check  # the object is click's Context, which typer's does not describe
def _options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log details.")] = False,
) -> None:
    set_up_logging(verbose)
    require_one_process(context.invoked_subcommand or "")


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder of the demo: data, workspace and report.html.")
    ] = Path("xd3d-demo"),
    frames: Annotated[
        int | None, typer.Option(min=24, help="Frames of the synthetic city; 96 by default, 24 with --fast.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the city and of the training.")] = 1,
    fast: Annotated[
        bool, typer.Option("--fast", help="Run all stages in about a minute; the scores mean nothing.")
    ] = False,
) -> Outcome:
    """Run all stages on a synthetic city, train with and without cached features, and write report.html.

    Example: `xd3d demo --out my-demo`
    """
    from .demo import run_demo

    return run_demo(out, frames=frames, seed=seed, fast=fast)


@app.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="The folder to create; it must be empty or not exist.")],
    frames: Annotated[int, typer.Option(help="Total number of LiDAR keyframes.")] = 120,
    seed: Annotated[int, typer.Option(min=0, help="Random seed; equal arguments give equal files.")] = 0,
    cameras: CameraNames = None,
    plan: Annotated[
        Literal["city", "benchmark"], typer.Option(help="Two cities, or the domains of the benchmark.")
    ] = "city",
    dataset: Annotated[str, typer.Option("--format", help="The data set whose format is written.")] = "nuscenes",
) -> Outcome:
    """Write the synthetic city as a data root of nuScenes, or in the format of another data set.

    Example: `xd3d synthesize city --frames 200 && xd3d prepare --dataset nuscenes --root city`
    """
    return xd3d.synthesize(out, dataset=dataset, frames=frames, seed=seed, cameras=cameras, plan=plan)


@app.command()
def prepare(
    dataset: DatasetName = "nuscenes",
    root: Root = None,
    version: Annotated[
        str | None,
        typer.Option(
            help="Of nuScenes a version folder such as v1.0-mini, detected by default; of VirtualKITTI, depth."
        ),
    ] = None,
    cameras: CameraNames = None,
    picture: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Draw points over images, coloured by depth, to this .png file."),
    ] = None,
    config: Annotated[
        str, typer.Option("--config", help="A preset or a YAML file; only its data.roots are read.")
    ] = "default",
    overrides: Overrides = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out frames with missing or damaged files.")
    ] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Allow files of nuScenes that are links out of the root.")
    ] = False,
) -> Outcome:
    """Index a data set and check that every file exists and is complete, before hours of work.

    Example: `xd3d prepare --dataset nuscenes --root /data/nuscenes --cameras all`
    """
    return xd3d.prepare(
        dataset,
        root,
        version=version,
        cameras=cameras,
        config=config,
        overrides=overrides or [],
        allow_missing=allow_missing,
        follow_links=follow_links,
        picture=picture,
    )


@app.command("extract-features")
def extract_features(
    dataset: DatasetName = "nuscenes",
    config: ConfigName = "default",
    overrides: Overrides = None,
    root: MovedRoot = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Forecast bytes, disk and time from one image.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Retry images that failed.")] = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    shard: ShardPart = None,
) -> Outcome:
    """Stage one: run the frozen network once over every image and store features and agent queries.

    It can be stopped at any time; the same command resumes.

    Example: `xd3d extract-features --dataset nuscenes --dry-run`
    """
    sharing = Sharing.from_options(workers, scheduler, shard, dry_run=dry_run)
    return xd3d.extract_features(
        dataset, config, overrides or [], root, dry_run=dry_run, retry_failed=retry_failed, sharing=sharing
    )


@app.command()
def train(
    cached: Cached = False,
    config: ConfigName = "default",
    overrides: Overrides = None,
    run: NewRun = None,
) -> Outcome:
    """Stage two: train the sparse 3D network and the fusion module.

    A run that was stopped resumes from its last checkpoint. Under torchrun, the processes share each batch.

    Example: `xd3d train --cached --config nuscenes_usa_singapore/dg --set train.batch_size=4`
    """
    return xd3d.train(config, overrides or [], cached=cached, run=run, torchrun=True)


@app.command()
def pretrain(
    cached: Cached = False,
    config: ConfigName = "default",
    overrides: Overrides = None,
    run: NewRun = None,
) -> Outcome:
    """Pretrain the 3D network on image features, without labels; `xd3d train --set train.init=RUN` starts from it.

    It learns from the source; with a config that adapts (UDA), from the unlabelled target too. A run that was stopped
    resumes. Under torchrun, the processes share each batch.

    Example: `xd3d pretrain --cached --config nuscenes_usa_singapore/uda`
    """
    return xd3d.pretrain(config, overrides or [], cached=cached, run=run, torchrun=True)


@app.command()
def evaluate(
    run: RunFolder = None,
    split: Annotated[Split | None, typer.Option(help="The split to score; the default is the config's.")] = None,
    domain: Tested = "target",
    absent: Annotated[Absent | None, typer.Option(help="How a class that occurs nowhere is counted.")] = None,
    fusion: Fusion = None,
    lidar_only: Annotated[bool, typer.Option("--lidar-only", help="Score the prediction without images.")] = False,
    adapt: Adapt = "none",
    window: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --adapt norm: number of frames in the statistics, the current one and those before it."
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Write the predictions to a folder, in the official submission format."),
    ] = None,
    device: Device = None,
    overrides: MachineOverrides = None,
) -> Outcome:
    """Score a run: IoU per class and their mean, for 2D, 3D, the sum of both (xM) and all predictions fused.

    Example: `xd3d evaluate --split test --json`
    """
    return xd3d.evaluate(
        run,
        split=split,
        domain=domain,
        absent=absent,
        fusion=fusion,
        lidar_only=lidar_only,
        adapt=adapt,
        window=window,
        export=export,
        machine=machine_settings(device, overrides),
    )


@app.command()
def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="A run, or two to compare: folders or names; by default the last run.")
    ] = None,
    run: RunFolder = None,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="The file to write; by default report.html in the run folder.")
    ] = None,
    device: Device = None,
    overrides: MachineOverrides = None,
) -> Outcome:
    """Write a single-file report of a run: interactive point clouds, pictures, curves, scores and the protocol.

    Example: `xd3d report --out scores.html`
    """
    chosen = [*([] if run is None else [run]), *(runs or [])]
    if len(chosen) > 2:
        raise typer.BadParameter("one run, or two to compare")
    first, other = [*chosen, None, None][:2]
    return xd3d.report(first, out, other=other, machine=machine_settings(device, overrides))


# The help lists commands in the order in which they are added.
for _command in (cli_predict.predict, cli_share.push, cli_share.pull, cli_ablate.ablate):
    app.command()(_command)
cli_tools.register(app)


def main() -> None:
    """Entry point of the ``xd3d`` command."""
    run_command_line(app)
