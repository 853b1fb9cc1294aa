"""Train the UNet on the latents of the pictures: v-prediction, plain mean squared error, empty prompt."""

import copy
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float, Float16, UInt8
from torch import Tensor
from torch.nn import functional

from ....files import write_atomic
from ....progress import track
from .modules import build_scheduler, build_unet
from .recipe import Recipe
from .training import CurvePoint, TimedTraining
from .vae import encode

__all__ = ["encode_pictures", "scaling_factor", "train_unet"]

RATE = 0.01
WEIGHT_DECAY = 1e-2
SHAPES = ((56, 96, 4), (32, 48, 12))
"""Latent height, width and batch of the kinds of batches: almost whole pictures, and crops of 128 x 192 pixels."""


def encode_pictures(
    vae: AutoencoderKL, pictures: UInt8[np.ndarray, "pictures H W 3"], file: Path
) -> Float16[np.ndarray, "pictures channels h w"]:
    """Encode every picture into ``file`` (.npy), once; returns the latents, memory-mapped."""
    if not file.is_file():
        rows = track(range(len(pictures)), "encoding pictures", len(pictures), "picture")
        with torch.autocast("cpu", torch.bfloat16):
            latents = np.concatenate([encode(vae, pictures[row : row + 1]).half().numpy() for row in rows])
        write_atomic(file, lambda stream: np.save(stream, latents))
    return np.load(file, mmap_mode="r")


def scaling_factor(latents: Float16[np.ndarray, "pictures channels h w"]) -> float:
    """Return the factor that scales latents to unit deviation (over a sample of 500 pictures)."""
    step = max(1, len(latents) // 500)
    return float(1 / latents[::step].astype(np.float32).std())


def train_unet(
    recipe: Recipe,
    latents: Float16[np.ndarray, "pictures channels h w"],
    prompt: Float[Tensor, "1 tokens width"],
    folder: Path,
) -> tuple[UNet2DConditionModel, list[CurvePoint]]:
    """Train for the recipe's minutes (or resume the checkpoint in ``folder``); returns averaged weights, curve.

    Args:
        recipe: seed and minutes.
        latents: as ``encode_pictures`` returns them; they are scaled here.
        prompt: the encoded empty prompt.
        folder: where the checkpoint lies.
    """
    unet = build_unet(recipe.seed)
    scale = scaling_factor(latents)
    scheduler = build_scheduler()

    def loss(rng: np.random.Generator, _: float) -> Float[Tensor, ""]:
        clean = torch.from_numpy(_crops(rng, latents)).float() * scale
        noise = torch.randn_like(clean)
        times = torch.from_numpy(rng.integers(1000, size=len(clean)))
        noisy, target = scheduler.add_noise(clean, noise, times), scheduler.get_velocity(clean, noise, times)
        with torch.autocast("cpu", torch.bfloat16):
            guess = unet(noisy, times, encoder_hidden_states=prompt.expand(len(clean), -1, -1)).sample
        return functional.mse_loss(guess.float(), target)

    training = TimedTraining(
        module=unet,
        average=copy.deepcopy(unet),
        path=folder / "unet.safetensors",
        minutes=recipe.unet_minutes,
        rate=RATE,
        seed=recipe.seed + 1,
        weight_decay=WEIGHT_DECAY,
    )
    training.run(loss, title="training the UNet")
    return cast(UNet2DConditionModel, training.average), training.curve


def _crops(
    rng: np.random.Generator, latents: Float16[np.ndarray, "pictures channels h w"]
) -> Float16[np.ndarray, "batch channels i j"]:
    height, width, batch = SHAPES[rng.integers(len(SHAPES))]
    crops = []
    for row in rng.integers(len(latents), size=batch):
        top = rng.integers(latents.shape[2] - height + 1)
        left = rng.integers(latents.shape[3] - width + 1)
        crops.append(latents[row, :, top : top + height, left : left + width])
    return np.stack(crops)
