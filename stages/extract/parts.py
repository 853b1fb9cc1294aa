"""The layout of a diffusers folder: its parts, which files decide what they compute, and whether it is whole."""

from pathlib import Path
from typing import Literal

from ...errors import ModelError
from ...files import read_json

__all__ = ["CONFIGS", "WEIGHTS", "check_parts", "config_files", "unet_folder", "weight_files", "weight_patterns"]

#: parts of a model, each with its config
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


def config_files(path: Path) -> list[Path]:
    """List the configs and vocabularies of every part of a model."""
    return [file for part in CONFIGS for file in sorted((path / part).glob("*")) if _decides(file)]


def weight_files(folder: Path, part: str) -> list[Path]:
    """List the weight files of a part in ``folder``: one file, or the shards that its index names; empty if none."""
    whole = folder / WEIGHTS[part]
    if whole.is_file():
        return [whole]
    index = whole.with_name(f"{whole.name}.index.json")
    if not index.is_file():
        return []
    shards = sorted(set(read_json(index)["weight_map"].values()))
    missing = [shard for shard in shards if not (folder / Path(shard).name).is_file()]
    if missing:
        raise ModelError(f"{folder} lacks {', '.join(missing)}, which {index.name} names; copy the model again")
    return [index, *(folder / Path(shard).name for shard in shards)]


def weight_patterns(part: str) -> list[str]:
    """Patterns of the weight files of a part, other formats and precisions left out."""
    stem = WEIGHTS[part].removesuffix(".safetensors")
    return [WEIGHTS[part], f"{WEIGHTS[part]}.index.json", f"{stem}-0*.safetensors"]


def check_parts(path: Path, weights: Literal["pretrained", "random"]) -> None:
    """Check that a model is whole.

    Raises:
        ModelError: a part, its config, or the weights that are needed are missing; the message names what.
    """
    for part, config in CONFIGS.items():
        if not (path / part).is_dir():
            found = ", ".join(sorted(entry.name for entry in path.glob("*") if entry.is_dir())) or "no folders"
            raise ModelError(
                f"The model folder {path} has no part '{part}' (found: {found}); a model needs {', '.join(CONFIGS)}"
            )
        if not (path / part / config).is_file():
            raise ModelError(f"The part '{part}' of the model folder {path} lacks {config}; copy the model again")
        if weights == "pretrained" and part in WEIGHTS and not weight_files(path / part, part):
            raise ModelError(
                f"The part '{part}' of the model folder {path} lacks {WEIGHTS[part]}; "
                "fetch the weights, or set extract.weights to random to try it without"
            )


def unet_folder(path: Path) -> Path:
    """The folder of a UNet's config and weights: ``path`` itself, or ``unet`` in it.

    Raises:
        ModelError: neither holds both.
    """
    found = path if (path / CONFIGS["unet"]).is_file() else path / "unet"
    if not (found / CONFIGS["unet"]).is_file() or not weight_files(found, "unet"):
        raise ModelError(
            f"The folder {path} holds no UNet: it needs {CONFIGS['unet']} and {WEIGHTS['unet']}, there or in unet/"
        )
    return found


def _decides(file: Path) -> bool:
    return file.is_file() and file.suffix in {".json", ".txt"} and not file.name.endswith(".index.json")
