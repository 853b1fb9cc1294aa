"""What is trained and for how long: all that decides what the script makes, beside the machine's speed."""

from pydantic import Field

from ....settings import Settings

__all__ = ["Recipe"]


class Recipe(Settings):
    """One way of making the tiny pipeline; noted beside the work in progress, so that a restart goes on with it."""

    seed: int = Field(default=7, ge=0, description="decides worlds, views, initial weights and batches")
    day_only: bool = Field(default=False, description="clear daylight only: the control for exposure to night and fog")
    pictures: int = Field(default=2400, ge=2, description="pictures to train on")
    held_out: int = Field(default=48, ge=1, description="pictures of other worlds, for the closing check")
    vae_minutes: float = Field(default=24.0, gt=0, description="wall time for the autoencoder")
    unet_minutes: float = Field(default=48.0, gt=0, description="wall time for the UNet")
