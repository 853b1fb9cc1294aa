"""Taps: the addresses of feature maps in a UNet, a forward pass that ends at the last tap, and the shapes of the maps.

``upI`` is the output of the last ResNet of up block I, after its shortcut is added; ``upI.J`` that of ResNet J;
``mid`` and ``mid.J`` the same in the middle block. ``:residual`` reads the ResNet's branch before the shortcut is
added: its second convolution.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...cache.schema import TapSpec
from ...errors import ModelError, nearest
from .images import RGB_STRIDE
from .models import ModelFolder
from .settings import RGB, ExtractSettings

__all__ = ["Tap", "find_taps", "run_to_taps", "tap_addresses", "tap_specs", "vae_factor"]

ADDRESS = re.compile(r"(?P<block>mid|up\d+)(?:\.(?P<resnet>\d+))?(?P<residual>:residual)?")


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A tap of a UNet: the module whose output is read, and its stride in latent pixels."""

    name: str
    module: nn.Module
    stride: int


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


def run_to_taps(
    taps: Sequence[Tap], forward: Callable[[], object]
) -> dict[str, Float[Tensor, "batch _channels _height _width"]]:
    """Calls ``forward`` and returns the output of every tap; the pass ends as soon as the last one is computed.

    The maps are the module outputs themselves, in the model's dtype.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            found[name] = output
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
    raise ModelError(f"The forward pass never reached {', '.join(missed)}; this UNet does not run those blocks")


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
    from diffusers import UNet2DConditionModel

    height, width = settings.image_size
    factor = vae_factor(model.config("vae"))
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(model.config("unet")).eval()
    taps = find_taps(unet, settings.diffusion_taps)
    strides = {tap.name: tap.stride * factor for tap in taps}
    latents = torch.empty(1, unet.config.in_channels, -(-height // factor), -(-width // factor), device="meta")
    text = torch.empty(1, 1, unet.config.cross_attention_dim, device="meta")
    try:
        with torch.inference_mode():
            found = run_to_taps(taps, lambda: unet(latents, torch.tensor(0, device="meta"), text))
    except RuntimeError as error:
        raise ModelError(
            f"The UNet of {model.path} cannot take images of {height}x{width} pixels ({error}); "
            "choose a larger extract.image_size"
        ) from error
    specs = {}
    for name in settings.taps:
        channels, rows, columns = (3, math.inf, math.inf) if name == RGB else found[name].shape[1:]
        stride = RGB_STRIDE if name == RGB else strides[name]
        extent = (height / stride, width / stride)
        specs[name] = TapSpec(
            name=name,
            channels=channels,
            height=int(min(rows, math.ceil(extent[0]))),
            width=int(min(columns, math.ceil(extent[1]))),
            extent=extent,
            dtype="uint8" if name == RGB else "float16",
        )
    return specs
