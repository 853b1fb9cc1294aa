"""The 3D branch: a residual sparse U-Net over voxels, and the LiDAR-only branch of its decoder.

The structure is that of SpUNet-v1m1 (Pointcept, ``sparse_unet/spconv_unet_v1m1_base.py``), which XDiff3D uses: a stem
of kernel 5, four encoder stages that halve the resolution and then run residual blocks, and four decoder stages that
double it, concatenate the encoder's features at that resolution and run residual blocks. Here 1 x 1 x 1 convolutions
are Linear layers, and a caller may replace the features of a decoder stage (the query interface does).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from .norms import Norm, make_norm
from .settings import ModelSettings
from .sparse import Backend, DownConv3d, InverseConv3d, SparseTensor, SubMConv3d

__all__ = ["LEVELS", "LidarBranch", "Refine", "STEM_KERNEL", "SpUNet", "make_head"]

LEVELS = 4
STEM_KERNEL = 5

Refine = Callable[[int, SparseTensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class _Preset:
    stem: int
    encoder: tuple[int, int, int, int]
    encoder_blocks: tuple[int, int, int, int]
    decoder: tuple[int, int, int, int]
    decoder_blocks: tuple[int, int, int, int]


_PRESETS = {
    "full": _Preset(
        stem=32,
        encoder=(32, 64, 128, 256),
        encoder_blocks=(2, 3, 4, 6),
        decoder=(256, 128, 96, 64),
        decoder_blocks=(2, 2, 2, 2),
    ),
    "slim": _Preset(
        stem=16,
        encoder=(16, 32, 64, 128),
        encoder_blocks=(1, 1, 1, 1),
        decoder=(128, 64, 48, 32),
        decoder_blocks=(1, 1, 1, 1),
    ),
}


class ConvNormRelu(nn.Module):
    """A sparse convolution, a normalisation and ReLU."""

    def __init__(self, conv: SubMConv3d | DownConv3d | InverseConv3d, norm: Norm) -> None:
        super().__init__()
        self.conv = conv
        self.norm = make_norm(norm, conv.weight.shape[0])

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Maps [N, in] to [M, out]; the convolution determines the output voxels."""
        return self.conv(x).map(lambda features: relu(self.norm(features)))


class ResidualBlock(nn.Module):
    """Two submanifold convolutions and a shortcut, which is Linear and a normalisation if the width changes."""

    def __init__(self, *, in_channels: int, out_channels: int, backend: Backend, norm: Norm) -> None:
        super().__init__()
        self.first = ConvNormRelu(SubMConv3d(in_channels=in_channels, out_channels=out_channels, backend=backend), norm)
        self.second = SubMConv3d(in_channels=out_channels, out_channels=out_channels, backend=backend)
        self.norm = make_norm(norm, out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            linear = nn.Linear(in_channels, out_channels, bias=False)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            self.shortcut = nn.Sequential(linear, make_norm(norm, out_channels))

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Maps [N, in] to [N, out] on the same voxels."""
        branch = self.norm(self.second(self.first(x)).features)
        return x.map(lambda features: relu(branch + self.shortcut(features)))


class SpUNet(nn.Module):
    """Maps voxel features [N, in_channels] to [N, out_channels] on the same voxels, in the same order.

    ``encoder_channels`` are the widths of the four encoder stages, finest first; ``decoder_channels`` are those of the
    four decoder stages, coarsest first, of which ``out_channels`` is the last.
    """

    def __init__(
        self, *, in_channels: int, preset: Literal["full", "slim"], backend: Backend, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        plan = _PRESETS[preset]
        self.encoder_channels = plan.encoder
        self.decoder_channels = plan.decoder
        self.out_channels = plan.decoder[-1]
        self.stem = ConvNormRelu(
            SubMConv3d(in_channels=in_channels, out_channels=plan.stem, kernel=STEM_KERNEL, backend=backend), norm
        )
        self.down, self.encoder = nn.ModuleList(), nn.ModuleList()
        width = plan.stem
        for channels, blocks in zip(plan.encoder, plan.encoder_blocks, strict=True):
            self.down.append(ConvNormRelu(DownConv3d(in_channels=width, out_channels=channels, backend=backend), norm))
            self.encoder.append(_blocks(channels, channels, blocks, backend, norm))
            width = channels
        self.stem_channels = plan.stem
        self.up, self.decoder = decoder_stages(preset, backend, norm)

    def encode(self, x: SparseTensor) -> list[SparseTensor]:
        """Returns the stem's output (full resolution) and then the four encoder stages, finest first.

        Item 0 is used only as a skip connection; items 1 to 4 have ``encoder_channels``, and 3D queries attend to them.
        """
        stages = [self.stem(x)]
        for down, blocks in zip(self.down, self.encoder, strict=True):
            stages.append(blocks(down(stages[-1])))
        return stages

    def decode(
        self, stages: list[SparseTensor], refine: Refine | None = None, *, first: int = 0, last: int = LEVELS
    ) -> SparseTensor:
        """Runs decoder stages ``first`` to ``last - 1`` on the output of ``encode``.

        Stage ``first`` starts from ``stages[LEVELS - first]``: the coarsest encoder stage or, if ``first`` is not 0,
        the output of the stage before it, which the caller puts there. After the last stage the result has the stem's
        voxels and ``out_channels``. ``refine(stage, x)``, for stages 0 (coarsest) to 3, returns features
        [N, ``decoder_channels[stage]``] on the voxels of ``x`` that replace its own.
        """
        x = stages[LEVELS - first]
        for stage in range(first, last):
            x = decoder_stage(self.up[stage], self.decoder[stage], x, stages[LEVELS - 1 - stage])
            if refine is not None:
                x = x.replace(refine(stage, x))
        return x

    def forward(self, x: SparseTensor) -> SparseTensor:
        """``decode(encode(x))``."""
        return self.decode(self.encode(x))


def decoder_stages(
    preset: Literal["full", "slim"], backend: Backend, norm: Norm, first: int = 0
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Makes untrained decoder stages from ``first`` on: the inverse convolution and the residual blocks of each."""
    plan = _PRESETS[preset]
    up, decoder = nn.ModuleList(), nn.ModuleList()
    skips = (plan.stem, *plan.encoder[:-1])[::-1]
    widths = (plan.encoder[-1], *plan.decoder[:-1])
    for stage in range(first, LEVELS):
        channels = plan.decoder[stage]
        up.append(ConvNormRelu(InverseConv3d(in_channels=widths[stage], out_channels=channels, backend=backend), norm))
        decoder.append(_blocks(channels + skips[stage], channels, plan.decoder_blocks[stage], backend, norm))
    return up, decoder


def decoder_stage(up: nn.Module, blocks: nn.Module, x: SparseTensor, skip: SparseTensor) -> SparseTensor:
    """Runs a decoder stage: upsample ``x`` to the voxels of ``skip``, concatenate its features, apply ``blocks``."""
    found: SparseTensor = blocks(up(x).map(lambda features: torch.cat([features, skip.features], 1)))
    return found


def _blocks(in_channels: int, out_channels: int, count: int, backend: Backend, norm: Norm) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * (count - 1)
    return nn.Sequential(
        *(ResidualBlock(in_channels=width, out_channels=out_channels, backend=backend, norm=norm) for width in widths)
    )


def make_head(kind: Literal["linear", "mlp"], channels: int, classes: int) -> nn.Module:
    """Makes a head that maps voxel features [N, ``channels``] to logits; "mlp" has a hidden layer 4 times as wide."""
    if kind == "linear":
        return nn.Linear(channels, classes)
    return nn.Sequential(nn.Linear(channels, 4 * channels), nn.ReLU(), nn.Linear(4 * channels, classes))


class LidarBranch(nn.Module):
    """A second set of decoder stages from ``first`` on, and a head over ``classes``, without image features.

    It shares the encoder and the coarser decoder stages with the 3D branch that reads the image, so it costs little. It
    predicts the points that no camera sees, and is a separate expert in the fusion of predictions.
    """

    def __init__(self, *, unet: SpUNet, model: ModelSettings, backend: Backend, first: int, classes: int) -> None:
        super().__init__()
        self.first = first
        self.up, self.decoder = decoder_stages(model.preset, backend, model.norm, first)
        self.head = make_head(model.head, unet.out_channels, classes)

    def copy_decoder(self, unet: SpUNet) -> None:
        """Starts from the weights of the same decoder stages of ``unet``."""
        self.up.load_state_dict(unet.up[self.first :].state_dict())
        self.decoder.load_state_dict(unet.decoder[self.first :].state_dict())

    def forward(self, encoded: list[SparseTensor], x: SparseTensor) -> Float[Tensor, "voxels classes"]:
        """Returns the logits of the voxels; ``x`` is the output of decoder stage ``first - 1`` on ``encoded``."""
        for stage, (up, blocks) in enumerate(zip(self.up, self.decoder, strict=True), start=self.first):
            x = decoder_stage(up, blocks, x, encoded[LEVELS - 1 - stage])
        logits: Tensor = self.head(x.features)
        return logits
