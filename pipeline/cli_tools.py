"""The commands beside the main pipeline: doctor, pseudo-label, config, cache and models."""

from typing import Annotated

import typer

from . import cli_cache
from .cli_models import models_app
from .console import Outcome, conclude, has_colours
from .options import Device, Json, MachineOverrides, Overrides, RunFolder
from .workspace import Workspace

__all__ = ["register"]

Agree = Annotated[
    bool, typer.Option("--agree", help="Keep a label only where both heads predict it, for train.pl_agree=true.")
]
Vote = Annotated[
    bool, typer.Option("--vote", help="Keep a label only where its object agent has it, for train.pl_vote=true.")
]
PresetName = Annotated[str, typer.Argument(help="A preset ('xd3d config list') or a YAML file.")]

config_app = typer.Typer(help="Presets and settings: list, show, validate.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command("pseudo-label")(pseudo_label)
    app.command()(doctor)
    app.add_typer(config_app, name="config")
    app.add_typer(cli_cache.app, name="cache")
    app.add_typer(models_app, name="models")


def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, devices, sparse backend, data roots, models, disk; each fault with its remedy.

    Example: `xd3d doctor`
    """
    from .doctor import examine

    conclude(examine(colour=has_colours()), as_json)


def pseudo_label(
    run: RunFolder = None,
    agree: Agree = False,
    vote: Vote = False,
    device: Device = None,
    overrides: MachineOverrides = None,
    as_json: Json = False,
) -> None:
    """Label the target's train split with a run's best network, and keep confident labels to train on.

    It can be stopped at any time; the same command resumes.

    Example: `xd3d pseudo-label && xd3d train --cached --config nuscenes_usa_singapore/uda_pl`
    """
    from .pseudo import pseudo_label
    from .runs import machine_settings

    machine = machine_settings(device, overrides)
    conclude(pseudo_label(run, agree=agree, vote=vote, machine=machine), as_json)


@config_app.command("list")
def config_list(as_json: Json = False) -> None:
    """List the presets, and for which published settings the data are prepared. Example: `xd3d config list`."""
    from .presets import list_presets

    conclude(list_presets(Workspace.current()), as_json)


@config_app.command("show")
def config_show(name: PresetName = "default", overrides: Overrides = None, as_json: Json = False) -> None:
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
    conclude(Outcome(result=result, text="\n".join(lines)), as_json)


@config_app.command("validate")
def config_validate(
    names: Annotated[list[str] | None, typer.Argument(help="Presets or YAML files; the default is 'default'.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Validate every preset.")] = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Check presets or files, and print all faults at once. Example: `xd3d config validate mine.yaml`."""
    from ..errors import ConfigError
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
    conclude(Outcome(result={"valid": checked}, text=text), as_json)
