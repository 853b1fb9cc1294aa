"""Finds a model: by known name, as a folder, or in a repository on the hub.

A diffusion model is a folder with the parts ``unet``, ``vae``, ``text_encoder``, ``tokenizer`` and ``scheduler``; its
UNet may be replaced by other weights. ``model_files`` says what a folder of the other kinds holds. Missing files are
reported before anything heavy is loaded, and requests to the hub have a timeout, so without a network there is an error
within seconds.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import ModelError, nearest
from .catalogue import (
    HUB_NAMES,
    PACKAGED,
    PACKAGED_NAMES,
    UNET_NAMES,
    VISION_NAMES,
    fetch_model,
    find_local,
    is_hub_name,
)
from .digests import file_digest, folder_digest
from .model_files import (
    CONFIGS,
    DESCRIPTION,
    NETWORK,
    PICKLES,
    WEIGHTS,
    Kind,
    check_files,
    conversion,
    deciding_files,
    folder_kind,
    read_facts,
    refuse_foreign,
    snapshot_folder,
    unet_folder,
    weight_files,
)
from .settings import ExtractSettings

__all__ = ["ModelFolder", "missing_models", "resolve_model", "resolve_unet", "settings_model", "unet_digest"]


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A complete model folder; ``weights`` and ``seed`` select its own weights or random ones.

    ``unet`` replaces the UNet of a diffusion model: a folder with config and weights, or a file of weights for the
    model's own config.
    """

    name: str
    path: Path
    weights: Literal["pretrained", "random"]
    seed: int
    unet: Path | None = None

    @property
    def digest(self) -> str:
        """sha256 over every file that affects the output of the model (weight files only if they are used)."""
        return folder_digest(self.path, deciding_files(self.path, self.kind, self.weights))

    @property
    def kind(self) -> Kind:
        """The kind of network in the folder."""
        return folder_kind(self.path)

    @property
    def unet_digest(self) -> str | None:
        """sha256 of the weights, and of the config, that replace the UNet; None if it is not replaced."""
        return None if self.unet is None else unet_digest(self.unet)

    def folder(self, part: str) -> Path:
        """Returns the folder with the config of a part, such as ``unet``."""
        return self.unet if part == "unet" and self.unet and self.unet.is_dir() else self.path / part

    def config(self, part: str) -> dict[str, object]:
        """Reads the JSON config of a part."""
        return dict(read_facts(self.folder(part) / CONFIGS[part]))

    def weight_files(self, part: str) -> list[Path]:
        """Returns the weight files of a part (and their index, if there are several)."""
        if part == "unet" and self.unet and self.unet.is_file():
            return [self.unet]
        return weight_files(self.folder(part), WEIGHTS[part])


def unet_digest(path: Path) -> str:
    """Returns the sha256 of weights for a UNet, and of their config if ``path`` is a folder."""
    if path.is_file():
        return file_digest(path)
    return folder_digest(path, [path / CONFIGS["unet"], *weight_files(path, WEIGHTS["unet"])])


def missing_models(settings: ExtractSettings) -> dict[str, str]:
    """Returns the models of ``settings`` that are not on this machine: "model" or "unet" (its replacement) -> name.

    The network is not used. An existing folder counts as present, complete or not.
    """
    named = {"model": settings.model, **({"unet": settings.unet} if settings.unet else {})}
    return {part: name for part, name in named.items() if not _is_local(name, unet=part == "unet")}


def _is_local(name: str, *, unet: bool) -> bool:
    bundled, path = name in PACKAGED_NAMES and not unet, Path(name).expanduser()
    if not bundled and (path.exists() if unet else path.is_dir()):
        return True
    return (bundled or is_hub_name(name, unet=unet)) and find_local(name, unet=unet) is not None


def settings_model(settings: ExtractSettings) -> ModelFolder:
    """Finds the model of ``settings``, and the weights that replace its UNet; raises like ``resolve_model``."""
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
    """Finds a model by known name, folder or hub id, and checks that it is complete; ``unet`` as in ``resolve_unet``.

    A hub id is first looked up among earlier downloads.

    Raises:
        ModelError: there is no such model, a part of it is missing, or the hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if name in PACKAGED_NAMES:
        path = PACKAGED / name
    elif folder.is_dir():
        path = snapshot_folder(folder.resolve())
    elif folder.is_file():
        refuse_foreign(folder)
        raise ModelError(_one_file(folder))
    elif is_hub_name(name):
        path = find_local(name) or fetch_model(name, offline=offline)[0]
    else:
        raise ModelError(
            f"There is no model '{name}': no folder of that name and no known model "
            f"({nearest(name, [*PACKAGED_NAMES, *HUB_NAMES, *VISION_NAMES])}); give a model folder, or a hub id "
            "owner/name"
        )
    check_files(path, kind := folder_kind(path), weights)
    if weights == "random" and kind == "onnx":
        raise ModelError(f"The ONNX file in {path} holds its weights; set extract.weights to pretrained")
    if unet and kind != "diffusers":
        raise ModelError(f"extract.unet replaces the UNet of a diffusion model, and {path} holds none; set it to null")
    replaced = resolve_unet(unet, offline=offline) if unet else None
    return ModelFolder(name=name, path=path, weights=weights, seed=seed, unet=replaced)


def resolve_unet(name: str, *, offline: bool = False) -> Path:
    """Finds weights that replace a model's UNet, and checks that they are complete.

    ``name``: a known name, a folder with a UNet's config and weights (or with a part ``unet``), a file of the tensors
    of a diffusers UNet, a hub id ``owner/name``, or one file there, ``owner/name:FILE.safetensors``.

    Raises:
        ModelError: there are no such weights, they are incomplete, or the hub cannot be reached.
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
        if path.suffix in PICKLES:
            how = conversion(path, path.with_suffix(".safetensors"))
            raise ModelError(f"The UNet weights {path} are no .safetensors file, but {how}")
        if path.suffix != ".safetensors":
            raise ModelError(f"The UNet weights {path} are no .safetensors file; convert them")
        refuse_foreign(path)
        return path.absolute()
    return unet_folder(snapshot_folder(path)).absolute()


def _one_file(path: Path) -> str:
    """Says how a checkpoint in one file becomes a model folder."""
    if path.suffix == ".onnx":
        return (
            f"The model {path} is one file; an ONNX network is a folder with {NETWORK}, and {DESCRIPTION} beside it"
            " (docs/backbones.md)"
        )
    names = f"{shlex.quote(str(path))} {shlex.quote(str(path.with_suffix('')))}"
    return (
        f"The model {path} is one file, a checkpoint; a model is a folder in diffusers' layout. Convert it with: python"
        " -c 'import sys; from diffusers import StableDiffusionPipeline as P;"
        f" P.from_single_file(sys.argv[1]).save_pretrained(sys.argv[2])' {names}; if it holds only a UNet of diffusers,"
        " give it as extract.unet"
    )
