"""The settings of the script: data, training times and seed; with the machine's speed they determine the result."""

from pydantic import Field

from ....settings import Settings

__all__ = ["Recipe"]


class Recipe(Settings):
    """Settings of the tiny pipeline, stored in the work folder, so that a restart resumes only an equal run."""

    seed: int = Field(default=7, ge=0, description="decides worlds, views, initial weights and batches")
    day_only: bool = Field(default=False, description="clear daylight only: the control for exposure to night and fog")
    pictures: int = Field(default=2400, ge=2, description="pictures to train on")
    held_out: int = Field(default=48, ge=1, description="pictures of other worlds, for the closing check")
    vae_minutes: float = Field(default=24.0, gt=0, description="wall time for the autoencoder")
    unet_minutes: float = Field(default=48.0, gt=0, description="wall time for the UNet")
