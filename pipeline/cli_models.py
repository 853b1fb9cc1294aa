"""The commands for models: list the known ones, download one from the hub."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Outcome, conclude
from .options import Json

if TYPE_CHECKING:
    from ..stages.extract.catalogue import KnownModel

__all__ = ["models_app"]

ModelName = Annotated[
    str, typer.Argument(help="A known name ('xd3d models list'), a hub id OWNER/NAME, or OWNER/NAME:FILE.safetensors.")
]
AsUNet = Annotated[bool, typer.Option("--unet", help="Fetch only the UNet weights of a hub id.")]
Offline = Annotated[bool, typer.Option("--offline", help="Only check the local files; no network.")]

CHECKED = {"published": "as published", "hub": "as the hub says", "nothing": "not known in advance"}

models_app = typer.Typer(help="Frozen networks: list, fetch.", no_args_is_help=True)


@models_app.command("list")
def models_list(as_json: Json = False) -> None:
    """List the models known by name, and where they are. Example: `xd3d models list`."""
    from ..stages.extract.catalogue import known_models

    models = known_models()
    rows = [
        {**asdict(model), "path": model.path and str(model.path), "here": model.path is not None} for model in models
    ]
    conclude(Outcome(result={"models": rows}, text="\n".join(map(_line, models))), as_json)


@models_app.command("fetch")
def models_fetch(name: ModelName, unet: AsUNet = False, offline: Offline = False, as_json: Json = False) -> None:
    """Download the parts of a model that stage one needs, and check their digests; interrupted downloads resume.

    Example: `xd3d models fetch sd21-base`
    """
    from ..stages.extract.catalogue import UNET_NAMES, fetch_model

    path, files = fetch_model(name, unet=unet or name in UNET_NAMES or ":" in name, offline=offline)
    lines = [f"{file.file}: {file.bytes:,} bytes, sha256 {file.sha256} ({CHECKED[file.checked]})" for file in files]
    result = {"model": name, "path": str(path), "files": [asdict(file) for file in files]}
    conclude(Outcome(result=result, text="\n".join([*lines, f"{name} is in {path}"])), as_json)


def _line(model: "KnownModel") -> str:
    where = str(model.path) if model.path else f"not on this machine ({model.source})"
    if model.gated and not model.path:
        where += f"; accept its licence first: https://huggingface.co/{model.source}"
    size = f"{model.bytes / 1e6:,.0f} MB" if model.bytes else "size unknown"
    return f"{model.name:22} {model.kind:6} {size:>12}  {where}"
