"""Auxiliary commands: doctor, pseudo-label, config, cache and models."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
import xd3d

from ..errors import ConfigError
from . import cli_cache
from .console import Commands, Outcome, has_colours
from .options import Device, MachineOverrides, Overrides, RunFolder, machine_settings
from .workspace import Workspace

if TYPE_CHECKING:
    from ..stages.extract.catalogue import KnownModel

__all__ = ["register"]

CHECKED = {"published": "as published", "hub": "as the hub says", "nothing": "not known in advance"}

Agree = Annotated[
    bool,
    typer.Option(
        "--agree",
        help="Keep a label only where both heads predict it, or no image shows the point; for train.pl_agree=true.",
    ),
]
Vote = Annotated[
    bool, typer.Option("--vote", help="Keep a label only where its object agent has it, for train.pl_vote=true.")
]
PresetName = Annotated[str, typer.Argument(help="A preset ('xd3d config list') or a YAML file.")]

config_app = Commands(help="Presets and settings: list, show, validate.", no_args_is_help=True)
models_app = Commands(help="Frozen networks: list, fetch.", no_args_is_help=True)


def register(app: Commands) -> None:
    """Add these commands to ``app``."""
    app.command("pseudo-label")(pseudo_label)
    app.command()(doctor)
    app.add_typer(config_app, name="config")
    app.add_typer(cli_cache.app, name="cache")
    app.add_typer(models_app, name="models")


def doctor() -> Outcome:
    """Check this machine: versions, devices, sparse backend, data roots, models, disk; each fault with its remedy.

    Example: `xd3d doctor`
    """
    from .doctor import examine

    return examine(colour=has_colours())


def pseudo_label(
    run: RunFolder = None,
    agree: Agree = False,
    vote: Vote = False,
    device: Device = None,
    overrides: MachineOverrides = None,
) -> Outcome:
    """Label the target's train split with a run's best network, and keep confident labels to train on.

    It can be stopped at any time; the same command resumes.

    Example: `xd3d pseudo-label && xd3d train --cached --config nuscenes_usa_singapore/uda_pl`
    """
    return xd3d.pseudo_label(run, agree=agree, vote=vote, machine=machine_settings(device, overrides))


@config_app.command("list")
def config_list() -> Outcome:
    """List the presets, and for which published settings the data are prepared. Example: `xd3d config list`."""
    from .config import preset_names

    names = sorted(preset_names(), key=lambda name: (name.startswith("ablation/"), "/" in name, name))
    settings = [_describe(name) for name in names if "/" in name and not name.startswith("ablation/")]
    notes = {}
    for setting in settings:
        missing = [dataset for dataset, there in setting["prepared"].items() if not there]
        notes[setting["name"]] = f"not prepared: {', '.join(missing)}" if missing else "prepared"
    width = max(map(len, names))
    lines = [f"{name:{width}}  {notes.get(name, '')}".rstrip() for name in names]
    return Outcome(result={"presets": names, "settings": settings}, text="\n".join(lines))


@config_app.command("show")
def config_show(name: PresetName = "default", overrides: Overrides = None) -> Outcome:
    """Print every setting, its value and its origin. Example: `xd3d config show --set train.seed=2`."""
    from .config import dotted_values, load_config

    resolved = load_config(name, overrides or [])
    lines = [
        f"{key}: {value}    # {resolved.origins.get(key, 'built in')}" for key, value in dotted_values(resolved.config)
    ]
    result = {
        "config": resolved.config.model_dump(mode="json"),
        "origins": {key: resolved.origins.get(key, "built in") for key, _ in dotted_values(resolved.config)},
    }
    return Outcome(result=result, text="\n".join(lines))


@config_app.command("validate")
def config_validate(
    names: Annotated[list[str] | None, typer.Argument(help="Presets or YAML files; the default is 'default'.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Validate every preset.")] = False,
    overrides: Overrides = None,
) -> Outcome:
    """Check presets or files, and print all faults at once. Example: `xd3d config validate mine.yaml`."""
    from .config import DEFAULT_PRESET, load_config, preset_names

    checked = preset_names() if everything else (names or [DEFAULT_PRESET])
    faults = []
    for name in checked:
        try:
            load_config(name, overrides or [])
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    text = "\n".join(f"{name}: valid" for name in checked)
    return Outcome(result={"valid": checked}, text=text)


@models_app.command("list")
def models_list() -> Outcome:
    """List the models known by name, and where they are. Example: `xd3d models list`."""
    from ..stages.extract.catalogue import known_models

    models = known_models()
    rows = [
        {**asdict(model), "path": model.path and str(model.path), "here": model.path is not None} for model in models
    ]
    return Outcome(result={"models": rows}, text="\n".join(map(_model_line, models)))


@models_app.command("fetch")
def models_fetch(
    name: Annotated[
        str,
        typer.Argument(help="A known name ('xd3d models list'), a hub id OWNER/NAME, or OWNER/NAME:FILE.safetensors."),
    ],
    unet: Annotated[bool, typer.Option("--unet", help="Fetch only the UNet weights of a hub id.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Only check the local files; no network.")] = False,
) -> Outcome:
    """Download the parts of a model that stage one needs, and check their digests; interrupted downloads resume.

    Example: `xd3d models fetch sd21-base`
    """
    from ..stages.extract.catalogue import UNET_NAMES, fetch_model

    path, files = fetch_model(name, unet=unet or name in UNET_NAMES or ":" in name, offline=offline)
    lines = [f"{file.file}: {file.bytes:,} bytes, sha256 {file.sha256} ({CHECKED[file.checked]})" for file in files]
    result = {"model": name, "path": str(path), "files": [asdict(file) for file in files]}
    return Outcome(result=result, text="\n".join([*lines, f"{name} is in {path}"]))


def _describe(name: str) -> dict[str, Any]:
    from .config import load_config

    setting, _, task = name.partition("/")
    data, workspace = load_config(name).config.data, Workspace.current()
    sides = {side.dataset: workspace.index(side.dataset) for side in (data.source, data.target)}
    return {
        "name": name,
        "setting": setting,
        "task": task,
        "source": data.source.model_dump(),
        "target": data.target.model_dump(),
        "merge": data.merge,
        "prepared": {dataset: (index / "index.json").is_file() for dataset, index in sides.items()},
    }


def _model_line(model: "KnownModel") -> str:
    where = str(model.path) if model.path else f"not on this machine ({model.source})"
    if model.gated and not model.path:
        where += f"; accept its licence first: https://huggingface.co/{model.source}"
    size = f"{model.bytes / 1e6:,.0f} MB" if model.bytes else "size unknown"
    return f"{model.name:22} {model.kind:6} {size:>12}  {where}"
