"""Image networks as transformers stores them: DINO, CLIP, SigLIP, MAE, ViT, Swin, ConvNeXt, SegFormer.

``blockI`` is the output of block I of a vision transformer, ``stageI`` that of stage I of a network that shrinks its
map from stage to stage (Swin, ConvNeXt, SegFormer), both counted from 0; ``last`` is the network's last hidden state.
These are the hidden states of the stock model, ``hidden_states[I + 1]`` where those start with the embeddings. Class
and register tokens are left out, and the others put back on their grid.
"""

import inspect
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...cache.schema import TapSpec
from ...errors import ModelError, nearest
from .images import FeatureMaps, Pictures, pad_to_multiple
from .model_files import processor_file, read_facts
from .models import ModelFolder
from .precision import resolve_dtype, warn_if_slow
from .settings import ExtractSettings
from .taps import Tap, crop_maps, map_specs, padded_size, run_to_taps
from .weights import as_model_error, quiet_transformers, random_state

__all__ = ["LAST", "VisionBackbone", "default_addresses", "vision_addresses", "vision_specs"]

LAST = "last"
UNUSED = re.compile(r"(^|\.)(pooler|head|mask_token)(\.|$)")  #: parts that no tap reads


class VisionBackbone:
    """A frozen network of transformers with taps, ready to run on ``device``; ``specs`` as in ``Backbone``.

    Sides are padded to ``multiple``, the patch or the stride of the last stage, by repeating the edge.

    Raises:
        ModelError: the model is damaged, is of an architecture that is not supported, lacks a tap, or its patch is
            larger than the image.
    """

    def __init__(self, *, model: ModelFolder, settings: ExtractSettings, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        name = resolve_dtype(settings, model)
        warn_if_slow(name, device)
        self.dtype = getattr(torch, name)
        self.specs = vision_specs(model, settings)
        mean, deviation, self._rescale = _normalisation(model)
        self._mean, self._deviation = (torch.tensor(part, device=device).view(3, 1, 1) for part in (mean, deviation))
        self.network = _load(model, self.dtype).to(device)
        self.multiple = _multiple(self.network.config)
        self._first = _first_stride(self.network.config)
        self.taps = _find_taps(self.network, settings.map_taps)

    @torch.inference_mode()
    def __call__(self, pictures: Pictures, keys: Sequence[str]) -> FeatureMaps:
        """Computes every tap of a batch of pictures; see ``Backbone``. ``keys`` have no effect."""
        pictures = pictures.to(self.device)
        images = (pictures.to(torch.float32) * self._rescale - self._mean) / self._deviation
        images = pad_to_multiple(images, self.multiple)
        found = run_to_taps(self.taps, lambda: _forward(self.network, images.to(self.dtype)))
        size = (images.shape[2], images.shape[3])
        maps = {name: _on_grid(values, size, self._first).to(torch.float32) for name, values in found.items()}
        return crop_maps(maps, pictures, self.specs)


def vision_addresses(network: Any) -> list[str]:
    """Returns the address of every tap of a network."""
    name = "stage" if hasattr(network.config, "depths") else "block"
    return [*(f"{name}{i}" for i in range(len(_blocks(network)))), LAST]


def vision_specs(model: ModelFolder, settings: ExtractSettings) -> dict[str, TapSpec]:
    """Returns tap -> shape and position on the image, in the order of ``settings.taps``; no weights are loaded.

    Raises:
        ModelError: as ``VisionBackbone``.
    """
    shapes, strides = _meta_maps(model, _config(model).to_json_string(), settings.map_taps, settings.image_size)
    return map_specs(settings, shapes, strides)


@lru_cache(maxsize=64)  # a pass without values takes as long as one with them through a small network
def _meta_maps(
    model: ModelFolder, config: str, addresses: tuple[str, ...], image_size: tuple[int, int]
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Returns the shapes of the maps of taps, and their pixels per cell; ``config`` is that of the model by now."""
    with torch.device("meta"):
        network = _build(model)
    size = padded_size(model, image_size, _multiple(network.config))
    taps = _find_taps(network, addresses)
    try:
        with torch.inference_mode():
            found = run_to_taps(taps, lambda: _forward(network, torch.empty(1, 3, *size, device="meta")))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            f"The network of {model.path} cannot take images of {size[0]}x{size[1]} pixels ({error}); choose another "
            "extract.image_size, or another network"
        ) from error
    stride = _first_stride(network.config)
    shapes = {name: tuple(_on_grid(values, size, stride).shape[1:]) for name, values in found.items()}
    return shapes, {name: size[0] // shape[1] for name, shape in shapes.items()}


def _find_taps(network: Any, addresses: Sequence[str]) -> list[Tap]:
    valid, blocks = vision_addresses(network), _blocks(network)
    for address in addresses:
        if address not in valid:
            raise ModelError(
                f"The network has no tap '{address}' ({nearest(address, valid)}); it has {valid[0]} to "
                f"{valid[-2]}, and {LAST}"
            )
    modules = dict(zip(valid, [*blocks, network], strict=True))
    return [Tap(name=address, module=modules[address]) for address in addresses]


def _blocks(network: nn.Module) -> list[nn.Module]:
    """Returns the blocks or stages of a network: its outermost list of modules."""
    lists = [(name.count("."), module) for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ModelError(f"{type(network).__name__} has no list of blocks to tap; use it as an ONNX file")
    return list(min(lists, key=lambda found: found[0])[1])


def _forward(network: Any, images: Tensor) -> Any:
    """Runs a network; position embeddings are resized by its own code, and MAE masks nothing."""
    options: dict[str, Any] = {}
    accepted = inspect.signature(network.forward).parameters
    if "interpolate_pos_encoding" in accepted:
        options["interpolate_pos_encoding"] = True
    if "noise" in accepted:  # MAE shuffles its patches by noise; rising numbers keep their order
        cells = images.shape[2] * images.shape[3] // _first_stride(network.config) ** 2
        options["noise"] = torch.arange(cells, device=images.device).expand(len(images), -1)
    return network(pixel_values=images, **options)


def _on_grid(
    values: Float[Tensor, "batch *_map"], size: tuple[int, int], stride: int
) -> Float[Tensor, "batch channels height width"]:
    """Returns a map as it is; puts tokens [batch, tokens, channels] of an image of ``size`` back on their grid.

    The grid is the finest with cells of ``stride`` times a power of two that does not have more cells than tokens; the
    tokens before those of the grid are class and register tokens.
    """
    if values.ndim == 4:
        return values
    while (cells := -(-size[0] // stride) * -(-size[1] // stride)) > values.shape[1]:
        stride *= 2
    rows, columns = -(-size[0] // stride), -(-size[1] // stride)
    return values[:, values.shape[1] - cells :].transpose(1, 2).reshape(len(values), -1, rows, columns)


def _first_stride(config: Any) -> int:
    """Pixels that a cell of the first map spans: the patch."""
    patch = getattr(config, "patch_size", None) or (getattr(config, "strides", None) or [4])[0]
    return int(patch[0] if isinstance(patch, list | tuple) else patch)


def _multiple(config: Any) -> int:
    """Pixels that a cell of the last map spans; every stage after the first halves its map."""
    return _first_stride(config) * 2 ** (len(getattr(config, "depths", [0])) - 1)


def _normalisation(model: ModelFolder) -> tuple[list[float], list[float], float]:
    """Returns mean and deviation of RGB, and the factor before them, from the processor's config."""
    file = processor_file(model.path)
    facts = read_facts(file)
    facts = facts.get("image_processor") or facts
    factor = facts.get("rescale_factor", 1 / 255) if facts.get("do_rescale", True) else 1.0
    mean: Any = [0.0] * 3
    deviation: Any = [1.0] * 3
    if facts.get("do_normalize", True):
        mean, deviation = facts.get("image_mean"), facts.get("image_std")
    fits = all(
        isinstance(part, list) and len(part) == 3 and all(isinstance(value, int | float) for value in part)
        for part in (mean, deviation)
    )
    if not fits or not isinstance(factor, int | float) or not all(value > 0 for value in (*deviation, factor)):
        raise ModelError(
            f"{file} gives image_mean {mean}, image_std {deviation} and rescale_factor {factor}; expected three"
            " numbers, three above 0, and one above 0"
        )
    return mean, deviation, factor


def _config(model: ModelFolder) -> Any:
    """Reads the config of a network, or of the image part of one of images and texts."""
    from transformers import AutoConfig

    with quiet_transformers(), as_model_error(model, "config"):
        config = AutoConfig.from_pretrained(model.path, local_files_only=True, trust_remote_code=False)
    config = getattr(config, "vision_config", config)
    config.output_hidden_states = config.output_attentions = False
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0
    return config


def _build(model: ModelFolder) -> Any:
    from transformers import AutoModel

    config = _config(model)
    with as_model_error(model, "network"):
        network = AutoModel.from_config(config, trust_remote_code=False).eval()
    inputs = inspect.signature(network.forward).parameters
    if "pixel_values" not in inputs:
        raise ModelError(
            f"The network of {model.path} ({config.model_type}) takes no pictures but {next(iter(inputs))}; choose a"
            " network of images"
        )
    needed = [
        name
        for name, value in inputs.items()
        if value.default is value.empty and value.kind is value.POSITIONAL_OR_KEYWORD and name != "pixel_values"
    ]
    if needed:
        raise ModelError(
            f"The network of {model.path} ({config.model_type}) needs more than pictures ({', '.join(needed)}); choose"
            " a network of images of any size, or export it to ONNX"
        )
    return network


def _load(model: ModelFolder, dtype: torch.dtype) -> Any:
    """Builds a network in evaluation mode, with its own or with random weights."""
    from transformers import AutoModel

    if model.weights == "random":
        network = _build(model)
        network.load_state_dict(random_state(network, "vision", model.seed), strict=False)
        return network.to(dtype)
    with quiet_transformers(), as_model_error(model, "network"):
        network, report = AutoModel.from_pretrained(
            model.path,
            config=_config(model),
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
        )
    missing = sorted(name for name in report["missing_keys"] if not UNUSED.search(name))
    if missing or report["mismatched_keys"]:
        other = sorted(
            f"'{name}' has shape {list(own)}, not {list(asked)}" for name, own, asked in report["mismatched_keys"]
        )
        example = f"'{missing[0]}' is missing" if missing else other[0]
        raise ModelError(
            f"The weights in {model.path} lack {len(missing) + len(other)} tensors that the config asks for, such as:"
            f" {example}; weights and config belong to different models"
        )
    return network.eval()


def default_addresses(model: ModelFolder) -> tuple[str, ...]:
    """Returns the taps of a network that are kept by default: every stage, or the last block."""
    with torch.device("meta"):
        *blocks, _ = vision_addresses(_build(model))
    return tuple(blocks) if blocks[0].startswith("stage") else (blocks[-1],)
