"""The LiDAR-only branch: the finest decoder stages once more, with weights of their own and nothing from an image.

It shares the encoder and the coarser decoder stages with the 3D branch that reads the image, so it costs little; its
reading is what is left where no camera sees a point, and an expert of its own in the fusion of predictions.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from .sparse import Backend, SparseTensor
from .unet3d import LEVELS, SpUNet, decoder_stage, decoder_stages

__all__ = ["LidarBranch"]


class LidarBranch(nn.Module):
    """Decoder stages from ``first`` on and a linear head over ``classes``."""

    def __init__(
        self, *, unet: SpUNet, preset: Literal["full", "slim"], backend: Backend, first: int, classes: int
    ) -> None:
        super().__init__()
        self.first = first
        self.up, self.decoder = decoder_stages(preset, backend, first)
        self.head = nn.Linear(unet.out_channels, classes)

    def forward(self, encoded: list[SparseTensor], x: SparseTensor) -> Float[Tensor, "voxels classes"]:
        """Logits of the voxels; ``x`` is what decoder stage ``first - 1`` made of ``encoded``."""
        for stage, (up, blocks) in enumerate(zip(self.up, self.decoder, strict=True), start=self.first):
            x = decoder_stage(up, blocks, x, encoded[LEVELS - 1 - stage])
        logits: Tensor = self.head(x.features)
        return logits
