"""The command ``ablate``; a separate module because it has many options."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from .console import Outcome
from .options import Overrides

__all__ = ["ablate"]


def ablate(
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Folder of data, runs, rows and tables; xd3d-ablation, in the short form xd3d-ablation-short.",
        ),
    ] = None,
    short: Annotated[
        bool,
        typer.Option(
            "--short", help="Main variants, four shifts, one seed, few frames and steps: half an hour on two cores."
        ),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="Variants, separated by commas; by default all but network-*, the controls of pretraining (pretrain-*)"
            " and the sweep of options that are off by default.",
        ),
    ] = None,
    shifts: Annotated[
        list[str] | None,
        typer.Option(
            "--shifts", help="Shifts, separated by commas; by default those reported, in the short form four."
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, separated by commas; 1,2,3, in the short form 1.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs at once; they share the threads equally.")] = 2,
    overrides: Overrides = None,
    docs: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Update results.md and results.json in this folder too; rows published there are not made again.",
        ),
    ] = None,
) -> Outcome:
    """Train variants of the method on one domain, test it on shifted ones, and write the tables.

    It can be stopped at any time; the same command resumes. The data are synthesised.

    Example: `xd3d ablate --short --out my-ablation`
    """
    from .ablation.plan import FEW_STREETS, STREETS, Request
    from .ablation.run import run_ablation
    from .ablation.variants import choose_variants

    benchmark = FEW_STREETS if short else STREETS
    request = Request(
        variants=choose_variants(_names(only, "--only"), short=short),
        shifts=benchmark.choose(_names(shifts, "--shifts")),
        seeds=_numbers(("1" if short else "1,2,3") if seeds is None else seeds),
        short=short,
        overrides=overrides or [],
    )
    folder = out or Path("xd3d-ablation-short" if short else "xd3d-ablation")
    return run_ablation(folder, benchmark, request, processes=jobs, docs=docs)


def _names(given: list[str] | None, option: str) -> list[str]:
    names = [name.strip() for text in given or [] for name in text.split(",") if name.strip()]
    if given and not names:
        raise ConfigError(f"{option} names nothing; give names, or leave it out for all")
    return names


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise ConfigError(f"--seeds takes different whole numbers separated by commas, such as 1,2,3; found {text!r}")
    return numbers
