"""Taps: where a feature map is read in a UNet, by address, and a forward pass that ends at the last one asked for.

``upI`` is the output of the last ResNet of up block I, after its shortcut is added; ``upI.J`` that of ResNet J;
``mid`` and ``mid.J`` the same in the middle block. ``:residual`` reads the ResNet's branch before the shortcut is
added: its second convolution.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ...errors import ModelError, nearest

__all__ = ["Tap", "find_taps", "run_to_taps", "tap_addresses"]

ADDRESS = re.compile(r"(?P<block>mid|up\d+)(?:\.(?P<resnet>\d+))?(?P<residual>:residual)?")


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A place in a UNet: the module whose output is read, and its stride in latent pixels."""

    name: str
    module: nn.Module
    stride: int


class _LastTapReached(Exception):  # noqa: N818 - a signal that ends the forward pass, not an error
    pass


def tap_addresses(unet: Any) -> list[str]:
    """Return every address the UNet offers, the short form of a block first."""
    return [
        f"{name}{resnet}{residual}"
        for name, block, _ in _blocks(unet)
        for resnet in ("", *(f".{j}" for j in range(len(block.resnets))))
        for residual in ("", ":residual")
    ]


def find_taps(unet: Any, addresses: Sequence[str]) -> list[Tap]:
    """Resolve tap addresses in a ``UNet2DConditionModel``.

    Raises:
        ModelError: an address does not exist in this UNet; the message offers the nearest one that does.
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
    """Call ``forward`` and return the output of every tap; the pass ends as soon as the last of them is known.

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
    """Name, block and stride of every block that can be tapped, in the order of the forward pass."""
    doubles = [block.upsamplers is not None for block in unet.up_blocks]
    blocks = [("mid", unet.mid_block, 2 ** sum(doubles))] if unet.mid_block is not None else []
    blocks += [(f"up{i}", block, 2 ** sum(doubles[i:])) for i, block in enumerate(unet.up_blocks)]
    return [(name, block, stride) for name, block, stride in blocks if all(hasattr(r, "conv2") for r in block.resnets)]
