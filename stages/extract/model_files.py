"""Files of a model folder: its kind, a check that it is complete, and digests of its files.

A folder is a pipeline in diffusers' layout (``diffusers``), a network as transformers stores it (``transformers``), or
a network in an ONNX file with its description (``onnx``).

Hashing gigabytes takes seconds, so digests of large files are cached in the user's cache folder by path, size and
modification time. Without that cache only time is lost.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from ...errors import ModelError
from ...files import read_json, write_json

__all__ = [
    "CONFIGS",
    "DESCRIPTION",
    "Kind",
    "NETWORK",
    "PROCESSORS",
    "WEIGHTS",
    "check_files",
    "check_parts",
    "deciding_files",
    "file_digest",
    "folder_digest",
    "folder_kind",
    "processor_file",
    "recall",
    "remember",
    "unet_folder",
    "weight_files",
    "weight_patterns",
]

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


Kind = Literal["diffusers", "transformers", "onnx"]
CONFIG, VISION_WEIGHTS = "config.json", "model.safetensors"  #: of a network of transformers
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  #: its normalisation: either file
NETWORK, DESCRIPTION = "net.onnx", "net.yaml"  #: an ONNX network, and its inputs and outputs

MEMORY = "digests.json"
LARGE = 64_000_000  #: bytes from which a digest is cached


def folder_kind(path: Path) -> Kind:
    """Returns the kind of network in a folder; a folder of none of the kinds counts as one of diffusers."""
    if (path / NETWORK).is_file() or (path / DESCRIPTION).is_file():
        return "onnx"
    return "transformers" if (path / CONFIG).is_file() and not (path / "unet").is_dir() else "diffusers"


def deciding_files(path: Path, kind: Kind, weights: Literal["pretrained", "random"]) -> list[Path]:
    """Returns every file that affects the output of a network; weight files only if they are used."""
    if kind == "onnx":
        return [
            file for file in path.iterdir() if file.is_file() and not file.name.startswith((".", "README", "LICENSE"))
        ]
    if kind == "transformers":
        files = [path / CONFIG, *(file for name in PROCESSORS if (file := path / name).is_file())]
        return files + (_weight_files(path, VISION_WEIGHTS) if weights == "pretrained" else [])
    files = [file for part in CONFIGS for file in sorted((path / part).glob("*")) if _decides(file)]
    if weights == "pretrained":
        files += [file for part in WEIGHTS for file in weight_files(path / part, part)]
    return files


def processor_file(path: Path) -> Path:
    """Returns the file with a network's normalisation.

    Raises:
        ModelError: the folder has none.
    """
    for name in PROCESSORS:
        if (path / name).is_file():
            return path / name
    raise ModelError(
        f"The model folder {path} has no {PROCESSORS[0]}, which gives the mean and the deviation that the network was "
        "trained with; copy it from where the weights come from"
    )


def weight_files(folder: Path, part: str) -> list[Path]:
    """Returns the weight files of a part in ``folder``: one file, or an index and its shards; empty if none exist."""
    return _weight_files(folder, WEIGHTS[part])


def _weight_files(folder: Path, name: str) -> list[Path]:
    whole = folder / name
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
    """Returns patterns of the weight files of a part, without other formats and precisions."""
    stem = WEIGHTS[part].removesuffix(".safetensors")
    return [WEIGHTS[part], f"{WEIGHTS[part]}.index.json", f"{stem}-0*.safetensors"]


def check_files(path: Path, kind: Kind, weights: Literal["pretrained", "random"]) -> None:
    """Checks that a network of ``kind`` is complete.

    Raises:
        ModelError: a file is missing; the message names it.
    """
    if kind == "diffusers":
        check_parts(path, weights)
        return
    if kind == "onnx":
        for name in (NETWORK, DESCRIPTION):
            if not (path / name).is_file():
                raise ModelError(
                    f"The model folder {path} has no {name}: an ONNX network is {NETWORK}, and {DESCRIPTION} beside it "
                    "names its input, mean, std and taps (docs/backbones.md)"
                )
        return
    processor_file(path)
    if weights == "pretrained" and not _weight_files(path, VISION_WEIGHTS):
        others = ", ".join(sorted(file.name for file in path.glob("*.bin"))) or "no weights"
        raise ModelError(
            f"The model folder {path} has no {VISION_WEIGHTS} (found: {others}); convert the weights to safetensors, "
            "because other formats can run code, or set extract.weights to random to try it without"
        )


def check_parts(path: Path, weights: Literal["pretrained", "random"]) -> None:
    """Checks that a model is complete.

    Raises:
        ModelError: a part, its config or required weights are missing; the message names them.
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
    """Returns the folder of a UNet's config and weights: ``path`` itself or ``path/unet``.

    Raises:
        ModelError: neither contains both.
    """
    found = path if (path / CONFIGS["unet"]).is_file() else path / "unet"
    if not (found / CONFIGS["unet"]).is_file() or not weight_files(found, "unet"):
        raise ModelError(
            f"The folder {path} holds no UNet: it needs {CONFIGS['unet']} and {WEIGHTS['unet']}, there or in unet/"
        )
    return found


def _decides(file: Path) -> bool:
    return file.is_file() and file.suffix in {".json", ".txt"} and not file.name.endswith(".index.json")


def file_digest(path: Path) -> str:
    """Returns the sha256 of a file, hexadecimal; that of a large unchanged file comes from the cache."""
    facts = path.stat()
    if facts.st_size < LARGE:
        return _hash(path)
    known = recall(MEMORY)
    key = f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}"
    if not isinstance(known.get(key), str):
        known[key] = _hash(path)
        remember(MEMORY, known)
    return str(known[key])


def folder_digest(folder: Path, files: Iterable[Path]) -> str:
    """Returns the sha256 over the names (relative to ``folder``) and contents of files, sorted by name."""
    digests = {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def recall(name: str) -> dict[str, Any]:
    """Reads the JSON object ``name`` in the user's cache folder; empty if it is missing or damaged."""
    try:
        known = read_json(_folder() / name)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def remember(name: str, known: dict[str, Any]) -> None:
    """Writes the JSON object ``name`` to the user's cache folder; does nothing if that is read-only."""
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        write_json(_folder() / name, known)
    except OSError:
        return


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "xd3d"
