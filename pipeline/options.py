"""Command-line options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "Adapt",
    "CameraNames",
    "ConfigName",
    "DatasetName",
    "Device",
    "Fusion",
    "MachineOverrides",
    "Overrides",
    "MovedRoot",
    "Root",
    "RunFolder",
    "Scheduler",
    "ShardPart",
    "Workers",
    "comma_separated",
    "machine_settings",
]

ConfigName = Annotated[str, typer.Option("--config", help="A preset ('xd3d config list') or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: KEY=VALUE; may be repeated.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None,
    typer.Option("--device", help="Where networks and models run; by default a GPU if there is one."),
]
MachineOverrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting of this machine, as model.backend=torch; may be repeated."),
]
Fusion = Annotated[
    Literal["product-prior", "product", "sum"] | None,
    typer.Option("--fusion", help="How predictions are fused; the default is the run's."),
]
Adapt = Annotated[
    Literal["none", "norm"],
    typer.Option("--adapt", help="norm: normalise with the statistics of the predicted frame, not of training."),
]
RunFolder = Annotated[Path | None, typer.Option("--run", help="A run, by name or folder; by default the last.")]
Root = Annotated[Path | None, typer.Option("--root", help="The data root; it is remembered.")]
MovedRoot = Annotated[Path | None, typer.Option("--root", help="The data root for this call, if it has moved.")]
DatasetName = Annotated[str, typer.Option("--dataset", help="The data set.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Number of processes on this machine that share the work, one per GPU.")
]
Scheduler = Annotated[str | None, typer.Option(help="Address of a dask scheduler whose workers share the work.")]
ShardPart = Annotated[
    str | None, typer.Option("--shard", help="Process part I of N, such as 2/8; other processes take the other parts.")
]
CameraNames = Annotated[
    str | None,
    typer.Option(
        "--cameras",
        help="Cameras, separated by commas, 'all' or 'none'; by default those of published settings, all of a folder.",
    ),
]


def comma_separated(text: str | None) -> list[str] | None:
    """Returns the names in an option such as ``--taps up1,up2``; None if it was not given."""
    return None if text is None else [name.strip() for name in text.split(",")]


def machine_settings(device: str | None, overrides: list[str] | None) -> list[str]:
    """Returns the options ``--device`` and ``--set`` of a command as overrides for ``TrainedRun.open``."""
    return [*([f"train.device={device}", f"extract.device={device}"] if device else []), *(overrides or [])]
