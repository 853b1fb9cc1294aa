"""Models by name: the known ones and those of the hub, whether they are on this machine, and how to get them."""

import re
from dataclasses import dataclass
from pathlib import Path

from ...errors import ModelError, nearest
from .hub import FetchedFile, HubFiles, downloaded, fetch
from .parts import CONFIGS, WEIGHTS, check_parts, unet_folder, weight_patterns
from .published import HUB_NAMES, PACKAGED_NAMES, UNET_NAMES, published_files

__all__ = ["KnownModel", "fetch_model", "find_local", "is_hub_name", "known_models"]

PACKAGED = Path(__file__).parent / "models"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
HUB_FILE = re.compile(rf"({HUB_ID.pattern}):([\w-][\w./-]*\.safetensors)")


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model that goes by a name. ``kind``: "model", or "unet" for weights that replace a model's UNet.

    ``source``: "bundled", or where the hub keeps it; ``path``: where it is on this machine, None where it is not;
    ``bytes``: of its weights, here or as published; None where they are not known.
    """

    name: str
    kind: str
    source: str
    path: Path | None
    bytes: int | None


def known_models() -> list[KnownModel]:
    """Every model with a name, bundled ones first."""
    return [
        *(_known(name, "model", "bundled") for name in PACKAGED_NAMES),
        *(_known(name, "model", source) for name, source in HUB_NAMES.items()),
        *(_known(name, "unet", source) for name, source in UNET_NAMES.items()),
    ]


def is_hub_name(name: str, *, unet: bool = False) -> bool:
    """Whether ``name`` is a known one of the hub's or reads like a hub id (of one file, for UNet weights)."""
    known, patterns = (UNET_NAMES, (HUB_ID, HUB_FILE)) if unet else (HUB_NAMES, (HUB_ID,))
    return name in known or any(pattern.fullmatch(name) for pattern in patterns)


def find_local(name: str, *, unet: bool = False) -> Path | None:
    """Find a known name or a hub id on this machine, packaged or downloaded earlier; None where it is not whole.

    ``unet``: the name is one of UNet weights; the path may then be a file.
    """
    wanted = _hub_files(name, unet)
    folder = PACKAGED / name if name in PACKAGED_NAMES else downloaded(wanted)
    if folder is None:
        return None
    try:
        return _whole(folder, wanted, unet)
    except ModelError:
        return None


def fetch_model(name: str, *, unet: bool = False, offline: bool = False) -> tuple[Path, list[FetchedFile]]:
    """Download what stage one needs of a known model or a hub id; return where it is, and its weights with digests.

    ``unet``: the name is one of UNet weights; the path may then be a file.

    Raises:
        ModelError: the name is neither; the hub is offline, does not answer or lacks the model; or a digest differs.
    """
    if name in PACKAGED_NAMES:
        return PACKAGED / name, []
    if not is_hub_name(name, unet=unet):
        known = [*HUB_NAMES, *UNET_NAMES]
        raise ModelError(
            f"There is no model '{name}' to fetch ({nearest(name, known)}); give one, or a hub id owner/name"
        )
    wanted = _hub_files(name, unet)
    folder, files = fetch(wanted, published_files(name), offline=offline)
    return _whole(folder, wanted, unet), files


def _hub_files(name: str, unet: bool) -> HubFiles:
    """What stage one reads of a repository; other formats and precisions of the same weights stay on the hub."""
    if single := HUB_FILE.fullmatch(UNET_NAMES.get(name, name)):
        return HubFiles(hub_id=single[1], patterns=(single[2],))
    if unet:
        files = (CONFIGS["unet"], *weight_patterns("unet"))
        patterns = [f"{folder}{file}" for folder in ("", "unet/") for file in files]
    else:
        patterns = ["tokenizer/*", *(f"{part}/{config}" for part, config in CONFIGS.items())]
        patterns += [f"{part}/{file}" for part in WEIGHTS for file in weight_patterns(part)]
    return HubFiles(hub_id=HUB_NAMES.get(name, name), patterns=tuple(patterns))


def _whole(folder: Path, wanted: HubFiles, unet: bool) -> Path:
    """The path that counts in a repository's folder; ``ModelError`` where something is missing."""
    if len(wanted.patterns) == 1:
        file = folder / wanted.patterns[0]
        if not file.is_file():
            raise ModelError(f"{folder} lacks {wanted.patterns[0]}; fetch it again")
        return file
    if unet:
        return unet_folder(folder)
    check_parts(folder, "pretrained")
    return folder


def _known(name: str, kind: str, source: str) -> KnownModel:
    path = find_local(name, unet=kind == "unet")
    sizes = [file.bytes for file in published_files(name).values()]
    if path is not None:
        files = [path] if path.is_file() else path.rglob("*.safetensors")
        sizes = [file.stat().st_size for file in files]
    return KnownModel(name=name, kind=kind, source=source, path=path, bytes=sum(sizes) if sizes else None)
