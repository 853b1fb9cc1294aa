"""Modules of a model folder with their weights: read from safetensors, or drawn from a seed.

Modules are laid out without memory first and given their tensors in the wanted dtype, so a full-size UNet never stands
in memory twice. Random weights depend on the seed and the tensor's name alone: the same on every machine, for
any number of threads, whatever else is loaded.
"""

import hashlib
import math
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import ModelError
from .models import ModelFolder

__all__ = [
    "as_model_error",
    "load_text_encoder",
    "load_tokenizer",
    "load_unet",
    "load_vae_encoder",
    "quiet_transformers",
    "random_state",
]

#: names that early releases of the autoencoder's file give to its attention layers, and today's
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

#: what torch.compile puts into names, and what DistributedDataParallel and whole checkpoints put before them
COMPILED, WRAPPED = "_orig_mod.", re.compile(r"^(?:module\.|model\.diffusion_model\.|unet\.)+")


def load_unet(model: ModelFolder, dtype: torch.dtype) -> Any:
    """Builds the ``UNet2DConditionModel`` of a folder, in evaluation mode, on the CPU."""
    from diffusers import UNet2DConditionModel

    return _with_weights(_on_meta_device(UNet2DConditionModel, model, "unet"), model, "unet", dtype)


def load_vae_encoder(model: ModelFolder, dtype: torch.dtype) -> Any:
    """Builds the ``AutoencoderKL`` of a folder without its decoder, which stage one never runs."""
    from diffusers import AutoencoderKL

    vae = _on_meta_device(AutoencoderKL, model, "vae")
    for unused in ("decoder", "post_quant_conv"):
        delattr(vae, unused)
    return _with_weights(vae, model, "vae", dtype)


def load_tokenizer(model: ModelFolder) -> Any:
    """Loads the ``CLIPTokenizer`` of a folder; it pads with the id that its own files name."""
    from transformers import CLIPTokenizer

    with as_model_error(model, "tokenizer"):
        return CLIPTokenizer.from_pretrained(model.path / "tokenizer", local_files_only=True)


def load_text_encoder(model: ModelFolder) -> Any:
    """Builds the ``CLIPTextModel`` of a folder in float32, in evaluation mode."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = model.path / "text_encoder"
    with quiet_transformers(), as_model_error(model, "text_encoder"):
        if model.weights == "random":
            encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder, local_files_only=True))
            encoder.load_state_dict(random_state(encoder, "text_encoder", model.seed))
        else:
            stored = model.weight_files("text_encoder")[0].name
            encoder, found = CLIPTextModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                variant="fp16" if ".fp16" in stored else None,
                output_loading_info=True,
            )
            if found["missing_keys"]:  # transformers draws them at random
                raise ModelError(
                    f"{folder / stored} lacks {len(found['missing_keys'])} tensors of the text encoder, such as"
                    f" '{min(found['missing_keys'])}'; {_explained(sorted(found['unexpected_keys']))}"
                )
    return encoder.eval()


def random_state(
    module: nn.Module, name: str, seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, Float[Tensor, "..."]]:
    """Draws a value for every parameter of ``module``: uniform with variance 1 / fan-in, norms at one, biases at zero.

    With that variance signals keep their size from layer to layer. ``name`` sets a module's draws apart from another's.
    """
    state = {}
    for path, part in module.named_modules():
        for key, parameter in part.named_parameters(recurse=False):
            full = f"{path}.{key}" if path else key
            if key == "bias" or parameter.ndim < 2:
                state[full] = torch.full(parameter.shape, 0.0 if key == "bias" else 1.0, dtype=dtype)
            else:
                state[full] = _draw(parameter, f"{name}.{full}", seed, isinstance(part, nn.Embedding)).to(dtype)
    return state


def _draw(parameter: Tensor, name: str, seed: int, embedding: bool) -> Tensor:
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint32)
    generator = np.random.Generator(np.random.SFC64([seed, *words.tolist()]))
    deviation = 0.02 if embedding else 1.0 / math.sqrt(parameter[0].numel())
    values = generator.random(parameter.shape, dtype=np.float32)
    values -= 0.5
    values *= deviation * math.sqrt(12.0)
    return torch.from_numpy(values)


class _Uninitialised(TorchFunctionMode):
    """Skip the functions of ``torch.nn.init`` in this thread; on the meta device too they take most of the time."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        values = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else values["tensor"]
        return func(*args, **values)


def _on_meta_device(kind: Any, model: ModelFolder, part: str) -> nn.Module:
    """Builds a module of diffusers from its config without any memory behind its parameters."""
    with as_model_error(model, part), torch.device("meta"), _Uninitialised():
        return kind.from_config(kind.load_config(model.folder(part), local_files_only=True))


def _with_weights(module: nn.Module, model: ModelFolder, part: str, dtype: torch.dtype) -> nn.Module:
    if model.weights == "random":
        state = random_state(module, part, model.seed, dtype)
    else:
        with as_model_error(model, part):
            state = _stored_state(module, model, part, dtype)
    # Parameters keep requires_grad, as in stock diffusers: without it torch picks other kernels for linear layers, and
    # they round differently. The backbone runs in inference mode, so no graph is ever built.
    module.load_state_dict(state, assign=True)
    return module.eval()


def _stored_state(
    module: nn.Module, model: ModelFolder, part: str, dtype: torch.dtype
) -> dict[str, Float[Tensor, "..."]]:
    from safetensors import safe_open

    wanted = {name: values.shape for name, values in module.state_dict().items()}
    state: dict[str, Tensor] = {}
    strangers: list[str] = []
    for file in model.weight_files(part):
        if file.suffix != ".safetensors":
            continue
        with safe_open(file, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118 - not a mapping
                name = _current_name(key, wanted)
                if name not in wanted:
                    strangers.append(key)
                    continue
                if name in state and name != key:
                    continue  # the tensor without a prefix counts
                values = stored.get_tensor(key)
                if [side for side in values.shape if side != 1] != [side for side in wanted[name] if side != 1]:
                    raise ModelError(
                        f"{file}: '{key}' has shape {list(values.shape)}, the config of '{part}' asks for "
                        f"{list(wanted[name])}; weights and config belong to different models"
                    )
                state[name] = values.reshape(wanted[name]).to(dtype)
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise ModelError(
            f"The weights of '{part}' in {model.weight_files(part)[0].parent} lack {len(missing)} tensors that its "
            f"config asks for, such as '{missing[0]}'; {_explained(strangers)}"
        )
    return state


def _explained(strangers: list[str]) -> str:
    """Says what weights are, by the names that a module of diffusers does not have."""
    if any(".input_blocks." in f".{key}" or key.startswith("first_stage_model.") for key in strangers):
        return (
            "they have the names of the original Stable Diffusion code: convert the whole checkpoint to a folder with"
            " diffusers' StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIR)"
        )
    if any("lora" in key.lower() for key in strangers):
        return "they are a LoRA: fuse it into its model with diffusers, and save that"
    also = f" (they have '{strangers[0]}')" if strangers else ""
    return f"weights and config belong to different models{also}"


def _current_name(key: str, known: Container[str]) -> str:
    """Name a stored tensor as today's modules do, without the prefixes of wrappers."""
    if key in known:
        return key
    plain = WRAPPED.sub("", key.replace(COMPILED, ""))
    renamed = re.sub(r"\.(query|key|value|proj_attn)\.", lambda match: f".{OLD_ATTENTION[match[1]]}.", plain)
    return plain if plain in known else renamed


@contextmanager
def as_model_error(model: ModelFolder, part: str) -> Iterator[None]:
    """Turns whatever a model library raises on bad files into a ``ModelError`` that names the part."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # diffusers, transformers and safetensors raise errors of many kinds
        raise ModelError(
            f"The part '{part}' of the model folder {model.path} cannot be loaded "
            f"({type(error).__name__}: {error}); copy the model again, or check that it is of a supported kind"
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences the progress bars and the warnings of transformers while a model is loaded."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
