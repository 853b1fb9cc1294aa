"""Checks the machine: faults with their remedies, warnings, what works, and in one line what is not set up."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import typer

from ..errors import Xd3dError
from ..files import free_bytes
from .console import Outcome
from .workspace import Workspace

__all__ = ["Finding", "examine"]

PACKAGES = ("torch", "diffusers", "transformers", "zarr", "numcodecs", "dask", "nuscenes-devkit", "numpy")
#: An extra of pip and a module that it brings; the loggers are further extras.
EXTRAS = {"s3": "obstore", "onnx": "onnxruntime", "cluster": "dask_jobqueue", "sweeps": "laspy"}
ENOUGH_DISK = 2_000_000_000
NAMED = 4  #: largest number of missing items that are listed by name; more are only counted
#: How to set up what a group of notes names.
SET_UP = {
    "data sets": "xd3d prepare --dataset NAME --root DIR",
    "models": "xd3d models fetch NAME",
    "extras": "pip install 'xd3d[NAME]'",
}


@dataclass(frozen=True)
class Finding:
    """Result of one check; faults and notes have a remedy. Findings of a ``group`` share a line, by their ``label``."""

    name: str
    status: Literal["ok", "note", "fault"]
    detail: str
    remedy: str = ""
    group: str = ""
    label: str = ""


def examine(*, colour: bool = False) -> Outcome:
    """Checks versions, devices, sparse backend, data roots, models and disk; the exit code is 1 if there is a fault."""
    workspace = Workspace.current()
    findings = [
        *_versions(),
        *_devices(),
        *_backends(),
        *_roots(workspace),
        *_models(),
        *_extras(),
        _disk(workspace.home),
        *_caches(workspace),
    ]
    faults = sum(finding.status == "fault" for finding in findings)
    return Outcome(
        result={"ok": not faults, "findings": [asdict(finding) for finding in findings]},
        text="\n".join(_lines(findings, colour=colour)),
        exit_code=1 if faults else 0,
    )


def _lines(findings: Sequence[Finding], *, colour: bool) -> Iterator[str]:
    """Yields the text, most urgent first; the last line counts faults and warnings."""

    def mark(word: str, shade: str) -> str:
        return typer.style(f"{word:8}", fg=shade, bold=True) if colour else f"{word:8}"

    faults = [finding for finding in findings if finding.status == "fault"]
    warnings = [finding for finding in findings if finding.status == "note" and not finding.group]
    for word, shade, urgent in (("FAULT", "red", faults), ("warning", "yellow", warnings)):
        for finding in urgent:
            yield f"{mark(word, shade)} {finding.name}: {finding.detail}"
            yield f"{'':8} -> {finding.remedy}"
    works: dict[str, list[str]] = {}
    missing: dict[str, list[str]] = {}
    for finding in findings:
        if finding.status == "ok":
            shown = f"{finding.label} {finding.detail}".strip() if finding.group else finding.detail
            works.setdefault(finding.group or finding.name, []).append(shown)
        elif finding.group and finding.status == "note":
            missing.setdefault(finding.group, []).append(finding.label)
    for name, details in works.items():
        yield f"{mark('ok', 'green')} {name}: {', '.join(details)}"
    if missing:
        parts = [
            f"{f'{len(labels)} {group}' if len(labels) > NAMED else f'{group} ' + ', '.join(labels)} ({SET_UP[group]})"
            for group, labels in missing.items()
        ]
        line = f"Not set up, and needed only if you use it: {'; '.join(parts)}"
        yield typer.style(line, dim=True) if colour else line
    count = f"{len(faults)} fault(s), {len(warnings)} warning(s)"
    yield typer.style(count, fg="red" if faults else "green", bold=True) if colour else count


def _versions() -> Iterator[Finding]:
    yield Finding("python", "ok", platform.python_version(), group="versions", label="python")
    for package in PACKAGES:
        try:
            version = importlib.metadata.version(package)
            yield Finding(package, "ok", version, group="versions", label=package)
        except importlib.metadata.PackageNotFoundError:
            remedy = "pip install --constraint constraints.txt --editable ."
            yield Finding(package, "fault", "not installed", remedy)


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("cpu", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            capability = f"compute capability {facts.major}.{facts.minor}"
            detail = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, {capability}"
            yield Finding(f"cuda:{number}", "ok", detail)
    else:
        remedy = "for full-size models install a CUDA build of torch on a machine with a GPU"
        yield Finding("cuda", "note", "no GPU is visible; the CPU will do the work", remedy)


def _backends() -> Iterator[Finding]:
    import torch

    from ..stages.train.sparse import choose_backend

    yield _spconv()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        choice = choose_backend("auto", device)
        yield Finding("sparse backend", "ok", f"{choice.name}: {choice.reason}")
    except Xd3dError as error:
        yield Finding("sparse backend", "fault", str(error), "--set model.backend=torch")


def _spconv() -> Finding:
    """Which build of spconv is here, and the GPUs it was compiled for; without one the torch backend does its work."""
    from ..stages.train.sparse.spconv_build import compiled_capabilities, installed_build, listed

    build, fault = installed_build()
    if fault:
        remedy = "faster on a CUDA GPU, not needed: the torch backend computes the same; wheels are for Linux on x86-64"
        return Finding("spconv", "note", fault, remedy)
    compiled = listed(compiled_capabilities())
    made_for = f"compiled for GPUs of compute capability {compiled}" if compiled else "it does not tell for which GPUs"
    return Finding("spconv", "ok", f"{build}, {made_for}")


def _roots(workspace: Workspace) -> Iterator[Finding]:
    from ..stages.datasets.readers import READERS

    for dataset in sorted(READERS):
        try:
            root = workspace.root(dataset)
        except Xd3dError as error:
            name, remedy = f"{dataset} root", str(error)
            yield Finding(name, "note", "not given yet", remedy, group="data sets", label=dataset)
            continue
        if root.is_dir():
            yield Finding(f"{dataset} root", "ok", str(root))
        else:
            remedy = f"xd3d prepare --dataset {dataset} --root DIR"
            yield Finding(f"{dataset} root", "fault", f"{root} is not there", remedy)


def _models() -> Iterator[Finding]:
    from ..stages.extract.catalogue import known_models

    for model in known_models():
        name = f"{'UNet weights' if model.kind == 'unet' else 'model'} {model.name}"
        if model.path is not None:
            yield Finding(name, "ok", str(model.path))
        elif model.source == "bundled":
            remedy = "reinstall xd3d: its bundled model is incomplete"
            yield Finding(name, "fault", "its files are missing", remedy)
        else:
            remedy = f"xd3d models fetch {model.name}, or give a folder: --set extract.{model.kind}=DIR"
            detail = "not on this machine"
            yield Finding(name, "note", detail, remedy, group="models", label=model.name)


def _extras() -> Iterator[Finding]:
    from ..stages.train.loggers import MODULES

    for extra, module in {**EXTRAS, **MODULES}.items():
        if find_spec(module) is not None:
            yield Finding(f"extra {extra}", "ok", "", group="extras", label=extra)
        else:
            remedy = f"pip install 'xd3d[{extra}]'"
            yield Finding(f"extra {extra}", "note", "not installed", remedy, group="extras", label=extra)


def _disk(home: Path) -> Finding:
    existing = next(path for path in [home, *home.parents] if os.path.exists(path))  # noqa: PTH110 - Path.exists may raise
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        remedy = "set XD3D_HOME to a folder that you may write to"
        return Finding("workspace", "fault", f"{existing} cannot be written", remedy)
    free = free_bytes(existing)
    detail = f"{home}, {free / 1e9:.1f} GB free"
    if free < ENOUGH_DISK:
        remedy = "free some space, or set XD3D_HOME to a larger disk"
        return Finding("workspace", "fault", detail, remedy)
    return Finding("workspace", "ok", detail)


def _caches(workspace: Workspace) -> Iterator[Finding]:
    """Whether the folder or URL that ``XD3D_CACHES`` names can be reached."""
    from ..cache.stores import open_store

    if not os.environ.get("XD3D_CACHES"):
        return
    root = workspace.cache_root()
    try:
        store = open_store(root)
        count, free = len(store.listing("")), store.free_bytes()
    except Xd3dError as error:
        remedy = "correct XD3D_CACHES, or unset it to keep caches in the workspace"
        yield Finding("caches", "fault", str(error), remedy)
        return
    room = "" if free is None else f", {free / 1e9:.1f} GB free"
    yield Finding("caches", "ok", f"{root}, {count} there{room}")
