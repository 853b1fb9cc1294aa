"""Where a diffusion model comes from: a known name, a folder in diffusers' layout, or a repository of the hub.

A model is a folder with the parts ``unet``, ``vae``, ``text_encoder``, ``tokenizer`` and ``scheduler``; its UNet may be
replaced by other weights. What is missing is named before anything heavy is loaded, and the hub is asked with a time
limit, so no network means an error in seconds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import ModelError, nearest
from ...files import read_json
from .catalogue import HUB_NAMES, PACKAGED, PACKAGED_NAMES, UNET_NAMES, fetch_model, find_local, is_hub_name
from .model_files import (
    CONFIGS,
    WEIGHTS,
    check_parts,
    config_files,
    file_digest,
    folder_digest,
    unet_folder,
    weight_files,
)
from .settings import ExtractSettings

__all__ = ["ModelFolder", "missing_models", "resolve_model", "resolve_unet", "settings_model", "unet_digest"]


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A complete diffusers folder; ``weights`` and ``seed`` say whether its own weights or random ones are used.

    ``unet`` replaces its UNet: a folder with config and weights, or a file of weights for the model's own config.
    """

    name: str
    path: Path
    weights: Literal["pretrained", "random"]
    seed: int
    unet: Path | None = None

    @property
    def digest(self) -> str:
        """sha256 over every file of the folder that decides what a model computes (weight files when they are used)."""
        files = config_files(self.path)
        if self.weights == "pretrained":
            files += [file for part in WEIGHTS for file in weight_files(self.path / part, part)]
        return folder_digest(self.path, files)

    @property
    def unet_digest(self) -> str | None:
        """sha256 of the weights, and of the config, that replace the UNet; None where nothing does."""
        return None if self.unet is None else unet_digest(self.unet)

    def folder(self, part: str) -> Path:
        """Where the config of a part, such as ``unet``, is."""
        return self.unet if part == "unet" and self.unet and self.unet.is_dir() else self.path / part

    def config(self, part: str) -> dict[str, object]:
        """Read the JSON config of a part."""
        return dict(read_json(self.folder(part) / CONFIGS[part]))

    def weight_files(self, part: str) -> list[Path]:
        """List the files that hold the weights of a part (and the index of several)."""
        if part == "unet" and self.unet and self.unet.is_file():
            return [self.unet]
        return weight_files(self.folder(part), part)


def unet_digest(path: Path) -> str:
    """sha256 of weights for a UNet, and of their config where ``path`` is a folder."""
    if path.is_file():
        return file_digest(path)
    return folder_digest(path, [path / CONFIGS["unet"], *weight_files(path, "unet")])


def missing_models(settings: ExtractSettings) -> dict[str, str]:
    """What ``settings`` name that is not on this machine: "model", "unet" (what replaces its UNet) -> the name.

    No network is asked. A folder that is there counts as present, whole or not.
    """
    named = {"model": settings.model, **({"unet": settings.unet} if settings.unet else {})}
    return {part: name for part, name in named.items() if not _is_local(name, unet=part == "unet")}


def _is_local(name: str, *, unet: bool) -> bool:
    bundled, path = name in PACKAGED_NAMES and not unet, Path(name).expanduser()
    if not bundled and (path.exists() if unet else path.is_dir()):
        return True
    return (bundled or is_hub_name(name, unet=unet)) and find_local(name, unet=unet) is not None


def settings_model(settings: ExtractSettings) -> ModelFolder:
    """Find the model, and the weights that replace its UNet, of ``settings``; errors as ``resolve_model``."""
    return resolve_model(
        settings.model,
        weights=settings.weights,
        seed=settings.weights_seed,
        unet=settings.unet,
        offline=settings.offline,
    )


def resolve_model(
    name: str,
    *,
    weights: Literal["pretrained", "random"] = "pretrained",
    seed: int = 0,
    unet: str | None = None,
    offline: bool = False,
) -> ModelFolder:
    """Find a model by known name, folder or hub id, and check that it is whole; ``unet`` as ``resolve_unet`` takes it.

    A hub id is looked up among the files downloaded earlier first, and fetched only when they are not there.

    Raises:
        ModelError: there is no such model, a part of it is missing, or the hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if name in PACKAGED_NAMES:
        path = PACKAGED / name
    elif folder.is_dir():
        path = folder.resolve()
    elif is_hub_name(name):
        path = find_local(name) or fetch_model(name, offline=offline)[0]
    else:
        raise ModelError(
            f"There is no model '{name}': no folder of that name and no known model "
            f"({nearest(name, [*PACKAGED_NAMES, *HUB_NAMES])}); give a folder in diffusers' layout, or a hub id "
            "owner/name"
        )
    check_parts(path, weights)
    replaced = resolve_unet(unet, offline=offline) if unet else None
    return ModelFolder(name=name, path=path, weights=weights, seed=seed, unet=replaced)


def resolve_unet(name: str, *, offline: bool = False) -> Path:
    """Find weights that replace a model's UNet, and check that they are whole.

    ``name``: a known name, a folder with a UNet's config and weights (or with a part ``unet``), a file of the tensors
    of a diffusers UNet, a hub id ``owner/name``, or one file there, ``owner/name:FILE.safetensors``.

    Raises:
        ModelError: there are no such weights, they are not whole, or the hub cannot be reached.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if not is_hub_name(name, unet=True):
            raise ModelError(
                f"There are no UNet weights '{name}': no such folder or file, and no known name "
                f"({nearest(name, UNET_NAMES)}); give a folder or a .safetensors file, or a hub id owner/name or "
                "owner/name:FILE.safetensors"
            )
        path = find_local(name, unet=True) or fetch_model(name, unet=True, offline=offline)[0]
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelError(
                f"The UNet weights {path} are no .safetensors file; convert them, other formats can run code"
            )
        return path.absolute()
    return unet_folder(path).absolute()
