"""Settings of stage two; importing this module imports nothing heavy."""

from typing import Literal

from pydantic import Field

from ...settings import Settings

__all__ = ["ModelSettings"]


class ModelSettings(Settings):
    """The 3D network: its width, its sparse convolution backend and the voxels it reads."""

    preset: Literal["full", "slim"] = Field("full", description="Width of the 3D U-Net: 'full' (published) or 'slim'.")
    backend: Literal["auto", "torch", "spconv"] = Field(
        "auto", description="Sparse convolution: 'torch' runs everywhere, 'spconv' wants a CUDA GPU, 'auto' chooses."
    )
    voxel_size: float = Field(0.05, gt=0, description="Edge of a voxel in metres.")
    full_scale: int = Field(4096, ge=16, description="Edge of the cube that holds a cloud, in voxels.")
