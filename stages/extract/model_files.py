"""Files of a model folder: its kind, a check that it is complete, and the files that decide its features.

A folder is a pipeline in diffusers' layout (``diffusers``), a network as transformers stores it (``transformers``), or
a network in an ONNX file with its description (``onnx``).
"""

import shlex
from pathlib import Path
from typing import Any, Literal

from ...errors import ModelError
from ...files import read_json
from ..datasets.foreign_files import foreign_kind

__all__ = [
    "CONFIGS",
    "DESCRIPTION",
    "Kind",
    "NETWORK",
    "PROCESSORS",
    "WEIGHTS",
    "check_files",
    "PICKLES",
    "conversion",
    "deciding_files",
    "folder_kind",
    "processor_file",
    "read_facts",
    "refuse_foreign",
    "snapshot_folder",
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

_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}  #: in the config of a part
_VOCABULARIES = (("vocab.json", "merges.txt"), ("tokenizer.json",))  #: files of a tokenizer
PICKLES = (".bin", ".ckpt", ".pt", ".pth")  #: suffixes of weights that are not read

Kind = Literal["diffusers", "transformers", "onnx"]
CONFIG, VISION_WEIGHTS = "config.json", "model.safetensors"  #: of a network of transformers
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  #: its normalisation: either file
NETWORK, DESCRIPTION = "net.onnx", "net.yaml"  #: an ONNX network, and its inputs and outputs


def read_facts(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ModelError: the file holds none.
    """
    try:
        facts = read_json(file)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is no JSON file ({error}); copy it again from where the model comes from") from error
    if not isinstance(facts, dict):
        raise ModelError(f"{file} holds a JSON {type(facts).__name__}, expected an object; copy the file again")
    return facts


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
        return files + (weight_files(path, VISION_WEIGHTS) if weights == "pretrained" else [])
    files = [file for part in CONFIGS for file in sorted((path / part).glob("*")) if _decides(file)]
    if weights == "pretrained":
        files += [file for part, name in WEIGHTS.items() for file in weight_files(path / part, name)]
    return files


def processor_file(path: Path) -> Path:
    """Returns the file with a network's normalisation.

    Raises:
        ModelError: the folder has none.
    """
    if there := [path / name for name in PROCESSORS if (path / name).is_file()]:
        return there[0]
    if part := read_facts(path / CONFIG).get("_class_name"):
        raise ModelError(
            f"The model folder {path} holds one part of a diffusion model, a {part}; give the whole model as"
            " extract.model, and another UNet for it as extract.unet"
        )
    raise ModelError(
        f"The model folder {path} has no {PROCESSORS[0]}, which gives the mean and the deviation that the network was "
        "trained with; copy it from where the weights come from"
    )


def weight_files(folder: Path, name: str) -> list[Path]:
    """Returns the weight files ``name`` in ``folder``: one file, or an index and its shards; empty if none exist.

    Files of the variant ``fp16`` count if there are no others.
    """
    stem, suffix = name.rsplit(".", 1)
    for variant in ("", ".fp16"):
        whole = folder / f"{stem}{variant}.{suffix}"
        if whole.is_file():
            return [whole]
        index = folder / f"{stem}.{suffix}.index{variant}.json"
        if index.is_file():
            found = read_facts(index).get("weight_map")
            if not isinstance(found, dict) or not found:
                raise ModelError(f"{index} has no weight_map, which names the files of weights; copy it again")
            shards = sorted(set(map(str, found.values())))
            missing = [shard for shard in shards if not (folder / Path(shard).name).is_file()]
            if missing:
                raise ModelError(f"{folder} lacks {', '.join(missing)}, which {index.name} names; copy the model again")
            return [index, *(folder / Path(shard).name for shard in shards)]
    return []


def _weights_instead(folder: Path, name: str) -> str:
    """Returns a clause on what ``folder`` holds instead of weights ``name``, and how to convert it; "" if nothing."""
    stem = name.removesuffix(".safetensors")
    if (link := folder / name).is_symlink():
        return f"; it has a link there to {link.readlink()}, which is missing: copy that file too"
    if shards := sorted(folder.glob(f"{stem}*-of-*.safetensors")):
        return f"; it has {shards[0].name} but not the index {name}.index.json: copy the whole folder"
    if others := sorted(folder.glob("*.safetensors")):
        return f"; it has {others[0].name}: if these are the weights, rename it"
    pickles = sorted(file for file in folder.glob("*") if file.suffix in PICKLES)
    if pickles:
        return f"; it has {pickles[0].name}, {conversion(pickles[0], folder / name)}"
    halves = sorted(folder.glob(f"{name}.*"))
    return f"; it has {halves[0].name}, a download that did not end: finish it" if halves else ""


def conversion(pickle: Path, target: Path) -> str:
    """Returns a clause on a pickle of tensors: why it is not read, and the command that converts it to ``target``."""
    return (
        "a pickle, which is not read since it can run code; convert it with: python -c 'import sys, torch; from"
        ' safetensors.torch import save_file; s = torch.load(sys.argv[1], "cpu", weights_only=True); s ='
        ' s.get("state_dict", s); save_file({k: v.clone().contiguous() for k, v in s.items() if torch.is_tensor(v)},'
        f" sys.argv[2])' {shlex.quote(str(pickle))} {shlex.quote(str(target))}"
    )


def refuse_foreign(file: Path) -> None:
    """Checks that ``file`` is not a pointer of Git LFS, a web page or packed.

    Raises:
        ModelError: it is.
    """
    if foreign := foreign_kind(file):
        raise ModelError(f"{file} {foreign}")


def snapshot_folder(folder: Path) -> Path:
    """Returns the snapshot in a folder of the hub's cache (``models--owner--name``); other folders as they are.

    Raises:
        ModelError: it has several snapshots, and none is called main.
    """
    snapshots, main = folder / "snapshots", folder / "refs" / "main"
    if not snapshots.is_dir() or (folder / "unet").is_dir():
        return folder
    known = sorted(entry for entry in snapshots.iterdir() if entry.is_dir())
    current = snapshots / main.read_text(encoding="utf-8").strip() if main.is_file() else None
    if current in known or len(known) == 1:
        return current if current in known and current else known[0]
    names = ", ".join(str(entry) for entry in known) or "none"
    raise ModelError(f"{folder} is a folder of the hub's cache; give one of its snapshots (found: {names})")


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
        _check_parts(path, weights)
        return
    if kind == "onnx":
        for name in (NETWORK, DESCRIPTION):
            if not (path / name).is_file():
                raise ModelError(
                    f"The model folder {path} has no {name}: an ONNX network is {NETWORK}, and {DESCRIPTION} beside it "
                    "names its input, mean, std and taps (docs/backbones.md)"
                )
        for file in deciding_files(path, kind, weights):
            refuse_foreign(file)
        return
    processor_file(path)
    if weights == "pretrained":
        for file in _check_weights(path, VISION_WEIGHTS, f"The model folder {path}"):
            if file.suffix == ".safetensors":
                _check_header(file)


def _check_weights(folder: Path, name: str, what: str) -> list[Path]:
    """Checks that there are weights ``name`` in ``folder``; returns their files. ``what``: words for the folder."""
    files = weight_files(folder, name)
    if not files:
        instead = _weights_instead(folder, name) or "; fetch the weights"
        raise ModelError(f"{what} lacks {name}{instead}, or set extract.weights to random to try it without")
    for file in files:
        refuse_foreign(file)
    return files


def _check_header(file: Path) -> None:
    from safetensors import safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except Exception as error:  # safetensors' own error has no better base class
        raise ModelError(f"{file} is no complete file of safetensors ({error}); copy it again") from error


def _check_parts(path: Path, weights: Literal["pretrained", "random"]) -> None:
    for part, config in CONFIGS.items():
        if not (path / part).is_dir():
            found = ", ".join(sorted(entry.name for entry in path.glob("*") if entry.is_dir())) or "no folders"
            inner = next((each.parent for each in sorted(path.glob(f"*/{part}"))), None)
            needs = f"a model needs {', '.join(CONFIGS)}" if inner is None else f"one with it is below: give {inner}"
            raise ModelError(f"The model folder {path} has no part '{part}' (found: {found}); {needs}")
        if not (path / part / config).is_file():
            raise ModelError(f"The part '{part}' of the model folder {path} lacks {config}; copy the model again")
        _check_config(path / part / config, part)
        if weights == "pretrained" and part in WEIGHTS:
            _check_weights(path / part, WEIGHTS[part], f"The part '{part}' of the model folder {path}")


def _check_config(config: Path, part: str) -> None:
    """Checks that the config of a part is its own, and that a tokenizer has its words."""
    refuse_foreign(config)
    folder, wanted = config.parent, _CLASSES.get(part)
    if wanted and (found := read_facts(config).get("_class_name", wanted)) != wanted:
        raise ModelError(f"{config} describes a {found}, and the part '{part}' is a {wanted}; copy the model again")
    if part == "tokenizer" and not any(all((folder / name).is_file() for name in names) for names in _VOCABULARIES):
        choices = " or ".join(" and ".join(names) for names in _VOCABULARIES)
        raise ModelError(f"The tokenizer {folder} has no vocabulary: it needs {choices}; copy the model again")


def unet_folder(path: Path) -> Path:
    """Returns the folder of a UNet's config and weights: ``path`` itself or ``path/unet``.

    Raises:
        ModelError: neither contains both.
    """
    found = path if (path / CONFIGS["unet"]).is_file() else path / "unet"
    if not (found / CONFIGS["unet"]).is_file() or not weight_files(found, WEIGHTS["unet"]):
        raise ModelError(
            f"The folder {path} holds no UNet: it needs {CONFIGS['unet']} and {WEIGHTS['unet']}, there or in unet/"
            f"{_weights_instead(found, WEIGHTS['unet'])}"
        )
    for file in weight_files(found, WEIGHTS["unet"]):
        refuse_foreign(file)
    return found


def _decides(file: Path) -> bool:
    return file.is_file() and file.suffix in {".json", ".txt"} and not file.name.endswith(".index.json")
