"""Taps: the addresses of feature maps in a UNet, a forward pass that ends at the last tap, and the shapes of the maps.

``upI`` is the output of the last ResNet of up block I, after its shortcut is added; ``upI.J`` that of ResNet J;
``mid`` and ``mid.J`` the same in the middle block. ``:residual`` reads the ResNet's branch before the shortcut is
added: its second convolution.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...cache.schema import TapSpec
from ...errors import ModelError, nearest
from .images import RGB_STRIDE, Pictures, shrink_to_stride
from .models import ModelFolder
from .settings import RGB, ExtractSettings

__all__ = [
    "Tap",
    "crop_maps",
    "find_taps",
    "map_specs",
    "padded_size",
    "run_to_taps",
    "tap_addresses",
    "tap_specs",
    "vae_factor",
]

ADDRESS = re.compile(r"(?P<block>mid|up\d+)(?:\.(?P<resnet>\d+))?(?P<residual>:residual)?")


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A tap: the module whose output is read; for a UNet also its stride in latent pixels."""

    name: str
    module: nn.Module
    stride: int = 0


class _LastTapReached(Exception):  # noqa: N818 - a signal that ends the forward pass, not an error
    pass


def tap_addresses(unet: Any) -> list[str]:
    """Returns every address in the UNet, the short form of a block first."""
    return [
        f"{name}{resnet}{residual}"
        for name, block, _ in _blocks(unet)
        for resnet in ("", *(f".{j}" for j in range(len(block.resnets))))
        for residual in ("", ":residual")
    ]


def find_taps(unet: Any, addresses: Sequence[str]) -> list[Tap]:
    """Resolves tap addresses in a ``UNet2DConditionModel``.

    Raises:
        ModelError: an address does not exist in this UNet; the message names the nearest one.
    """
    blocks = {name: (block, stride) for name, block, stride in _blocks(unet)}
    valid = tap_addresses(unet)
    taps = []
    for address in addresses:
        parts = ADDRESS.fullmatch(address)
        if parts is None or address not in valid:
            raise ModelError(f"The UNet has no tap '{address}'; {nearest(address, valid)}")
        block, stride = blocks[parts["block"]]
        resnet = block.resnets[int(parts["resnet"] or len(block.resnets) - 1)]
        taps.append(Tap(name=address, module=resnet.conv2 if parts["residual"] else resnet, stride=stride))
    return taps


def run_to_taps(taps: Sequence[Tap], forward: Callable[[], object]) -> dict[str, Float[Tensor, "batch *_map"]]:
    """Calls ``forward`` and returns the output of every tap; the pass ends as soon as the last one is computed.

    The maps are the module outputs themselves, in the model's dtype; of several outputs it is the first.

    Raises:
        ModelError: the forward pass does not reach a tap.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Any], None]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            found[name] = output if isinstance(output, Tensor) else output[0]
            if len(found) == len(taps):
                raise _LastTapReached

        return hook

    handles = [tap.module.register_forward_hook(keep(tap.name)) for tap in taps]
    try:
        forward()
    except _LastTapReached:
        return {tap.name: found[tap.name] for tap in taps}
    finally:
        for handle in handles:
            handle.remove()
    missed = [tap.name for tap in taps if tap.name not in found]
    raise ModelError(f"The forward pass never reached {', '.join(missed)}; this network does not run those blocks")


def _blocks(unet: Any) -> list[tuple[str, Any, int]]:
    """Returns name, block and stride of every block with ResNets, in the order of the forward pass."""
    doubles = [block.upsamplers is not None for block in unet.up_blocks]
    blocks = [("mid", unet.mid_block, 2 ** sum(doubles))] if unet.mid_block is not None else []
    blocks += [(f"up{i}", block, 2 ** sum(doubles[i:])) for i, block in enumerate(unet.up_blocks)]
    return [(name, block, stride) for name, block, stride in blocks if all(hasattr(r, "conv2") for r in block.resnets)]


def vae_factor(config: Any) -> int:
    """Returns the downsampling factor of the autoencoder, from its config."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def tap_specs(model: ModelFolder, settings: ExtractSettings) -> dict[str, TapSpec]:
    """Returns tap -> shape and position on the image, in the order of ``settings.taps``; no weights are loaded.

    Raises:
        ModelError: the UNet lacks a tap, or cannot take images of this size.
    """
    height, width = settings.image_size
    factor = vae_factor(model.config("vae"))
    size = (-(-height // factor), -(-width // factor))
    try:
        maps = _unet_maps(json.dumps(model.config("unet")), settings.map_taps, size)
    except RuntimeError as error:
        raise ModelError(
            f"The UNet of {model.path} cannot take images of {height}x{width} pixels ({error}); "
            "choose a larger extract.image_size"
        ) from error
    shapes = {name: shape for name, (shape, _) in maps.items()}
    return map_specs(settings, shapes, {name: stride * factor for name, (_, stride) in maps.items()})


@lru_cache(maxsize=64)  # a pass without values takes as long as one with them through a small UNet
def _unet_maps(
    config: str, addresses: tuple[str, ...], size: tuple[int, int]
) -> dict[str, tuple[tuple[int, ...], int]]:
    """Returns shape and stride in latent pixels of the map of every tap, for latents of ``size``."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads(config)).eval()
    taps = find_taps(unet, addresses)
    latents = torch.empty(1, unet.config.in_channels, *size, device="meta")
    text = torch.empty(1, 1, unet.config.cross_attention_dim, device="meta")
    with torch.inference_mode():
        found = run_to_taps(taps, lambda: unet(latents, torch.tensor(0, device="meta"), text))
    return {tap.name: (tuple(found[tap.name].shape[1:]), tap.stride) for tap in taps}


def map_specs(
    settings: ExtractSettings, shapes: Mapping[str, Sequence[int]], strides: Mapping[str, int]
) -> dict[str, TapSpec]:
    """Returns tap -> shape and position on the image, in the order of ``settings.taps``, ``rgb`` among them.

    ``shapes``: tap -> channels, rows and columns of the map of the padded image; ``strides``: tap -> pixels per cell.
    Cells that lie wholly in the padding are left out.
    """
    specs = {}
    for name in settings.taps:
        channels, rows, columns = (3, math.inf, math.inf) if name == RGB else shapes[name]
        stride = RGB_STRIDE if name == RGB else strides[name]
        height, width = (side / stride for side in settings.image_size)
        specs[name] = TapSpec(
            name=name,
            channels=int(channels),
            height=int(min(rows, math.ceil(height))),
            width=int(min(columns, math.ceil(width))),
            extent=(height, width),
            dtype="uint8" if name == RGB else "float16",
        )
    return specs


def padded_size(model: ModelFolder, image_size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Returns height and width of an image after padding to multiples of ``multiple``.

    Raises:
        ModelError: a side is shorter than ``multiple``.
    """
    height, width = image_size
    if multiple > min(height, width):
        raise ModelError(
            f"The network of {model.path} takes sides of a multiple of {multiple} pixels, the image is"
            f" {height}x{width}; choose a larger extract.image_size"
        )
    return height + -height % multiple, width + -width % multiple


def crop_maps(found: Mapping[str, Tensor], pictures: Pictures, specs: Mapping[str, TapSpec]) -> dict[str, Tensor]:
    """Returns the map of every tap in ``specs``, cropped to the cells inside the image; ``rgb`` from the pictures."""
    maps: dict[str, Tensor] = {}
    for name, spec in specs.items():
        whole = shrink_to_stride(pictures) if name == RGB else found[name]
        maps[name] = whole[..., : spec.height, : spec.width].contiguous()
    return maps
