"""The command ``predict``; a separate module because it has many options."""

from pathlib import Path
from typing import Annotated, Literal

import typer
import xd3d

from .console import Outcome
from .options import Adapt, Device, Fusion, MachineOverrides, MovedRoot, RunFolder, machine_settings

__all__ = ["predict"]

Points = Annotated[
    Path | None,
    typer.Argument(help="A sweep (.bin, .npy, .ply, .pcd, .las, .mcap), a folder of them, or one with a dataset.yaml."),
]
Dataset = Annotated[
    str | None, typer.Option("--dataset", help="Label the frames of this prepared data set, with their images.")
]
Domain = Annotated[str | None, typer.Option("--domain", help="Label only this domain; default all.")]
FrameSplit = Annotated[
    Literal["train", "val", "test", "all"] | None,
    typer.Option("--split", help="Label only this split (with --submission, the official one); default all."),
]
Scenes = Annotated[
    str | None, typer.Option("--scenes", help="Only scenes, sequences or frames of these names or globs: 08,1*.")
]
Online = Annotated[bool, typer.Option("--online", help="Compute image features now instead of reading the cache.")]
Probabilities = Annotated[
    bool, typer.Option("--probabilities", help="Write each class's probability too, float16 in .npy files.")
]
Submission = Annotated[
    bool, typer.Option("--submission", help="Write the official files of nuScenes or SemanticKITTI, and their zip.")
]
Out = Annotated[Path | None, typer.Option("--out", file_okay=False, help="Output folder; by default in the workspace.")]
Columns = Annotated[
    int | None,
    typer.Option(
        "--columns",
        min=3,
        help="Numbers per point in raw files; by default 4 in .bin, 5 in .pcd.bin, or as the values say.",
    ),
]
Ids = Annotated[
    Literal["train", "raw"], typer.Option("--ids", help="Numbers in labels: class + 1, or the ids of the data set.")
]
Colour = Annotated[bool, typer.Option("--colour", help="Write coloured clouds too, as .labels.ply.")]
Picture = Annotated[bool, typer.Option("--picture", help="Draw the first sweep and its labels from above.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Forecast the disk space of a data set's labels.")]


def predict(
    points: Points = None,
    run: RunFolder = None,
    dataset: Dataset = None,
    root: MovedRoot = None,
    domain: Domain = None,
    split: FrameSplit = None,
    scenes: Scenes = None,
    online: Online = False,
    fusion: Fusion = None,
    adapt: Adapt = "none",
    probabilities: Probabilities = False,
    submission: Submission = False,
    out: Out = None,
    columns: Columns = None,
    ids: Ids = "train",
    colour: Colour = False,
    picture: Picture = False,
    dry_run: DryRun = False,
    device: Device = None,
    overrides: MachineOverrides = None,
) -> Outcome:
    """Label LiDAR sweeps: of a data set with their images (fused, xM, 2D, 3D), or sweeps alone, without images.

    It writes one .label file a sweep, and classes.json. It can be stopped at any time; the same command resumes.

    Example: `xd3d predict --dataset nuscenes --submission` or `xd3d predict /data/velodyne --picture`
    """
    return xd3d.predict(
        points,
        run,
        dataset=dataset,
        root=root,
        domain=domain,
        split=split,
        scenes=scenes,
        online=online,
        fusion=fusion,
        adapt=adapt,
        probabilities=probabilities,
        submission=submission,
        out=out,
        columns=columns,
        ids=ids,
        colour=colour,
        picture=picture,
        dry_run=dry_run,
        machine=machine_settings(device, overrides),
    )
