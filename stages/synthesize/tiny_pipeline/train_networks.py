"""Trains the autoencoder, first for sharp small vehicles, then for regular latents; then the UNet on the latents.

The UNet predicts v, with plain mean squared error and the empty prompt.
"""

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
from .modules import LATENT_STRIDE, build_scheduler, build_unet, build_vae
from .pictures import Recipe
from .training import CurvePoint, TimedTraining

__all__ = [
    "encode",
    "encode_pictures",
    "reconstruct",
    "reconstruction_psnr",
    "scaling_factor",
    "standardise_latents",
    "train_unet",
    "train_vae",
]

BATCH = 4
CROP = (96, 128)
VAE_RATE = 0.02
KL_WEIGHT = 1e-5
GRADIENT_WEIGHT = 1.0
SAMPLE = 200
"""Pictures from which statistics are taken."""

HINT_WEIGHT = 0.3
"""Initial weight of the loss that makes three latents the downscaled picture; falls to zero over the first half."""

UNET_RATE = 0.01
WEIGHT_DECAY = 1e-2
SHAPES = ((56, 96, 4), (32, 48, 12))
"""Latent height, width and batch of the kinds of batches: almost whole pictures, and crops of 128 x 192 pixels."""


def as_tensor(pictures: UInt8[np.ndarray, "batch H W 3"]) -> Float[Tensor, "batch 3 h w"]:
    """Maps RGB bytes to [-1, 1]; sides are padded on the right and bottom to multiples of 4 by repeating the edge."""
    tensor = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
    height, width = tensor.shape[2:]
    return functional.pad(tensor, (0, -width % LATENT_STRIDE, 0, -height % LATENT_STRIDE), mode="replicate")


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: UInt8[np.ndarray, "batch H W 3"]) -> Float[Tensor, "batch channels h w"]:
    """Returns the posterior's mean, not scaled."""
    return vae.encode(as_tensor(pictures)).latent_dist.mean


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: UInt8[np.ndarray, "batch H W 3"]) -> UInt8[np.ndarray, "batch H W 3"]:
    """Encodes and decodes pictures, one at a time, and removes the padding."""
    height, width = pictures.shape[1:3]
    decoded = torch.cat([vae.decode(encode(vae, pictures[row : row + 1])).sample for row in range(len(pictures))])
    bytes_ = decoded.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return bytes_[:, :, :height, :width].permute(0, 2, 3, 1).numpy()


def reconstruction_psnr(vae: AutoencoderKL, pictures: UInt8[np.ndarray, "batch H W 3"]) -> Float[np.ndarray, " batch"]:
    """Peak signal-to-noise ratio of each picture's reconstruction, in dB over bytes."""
    errors = reconstruct(vae, pictures).astype(np.float64) - pictures
    return 10 * np.log10(255.0**2 / np.maximum((errors**2).mean(axis=(1, 2, 3)), 1e-3))


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, pictures: UInt8[np.ndarray, "batch H W 3"]) -> None:
    """Shifts and stretches each latent channel to mean 0 and deviation 1 over ``pictures``; reconstructions stay equal.

    The change is folded into the 1x1 convolutions around the latents, so the UNet sees all channels at one scale.
    """
    latents = torch.cat([encode(vae, pictures[row : row + 1]) for row in range(len(pictures))])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out_of, count = vae.quant_conv, vae.post_quant_conv, len(mean)
    out_of.bias += (out_of.weight * mean[:, None, None]).sum((1, 2, 3))
    out_of.weight *= deviation[:, None, None]
    into.bias[:count] -= mean
    into.bias[:count] /= deviation
    into.weight[:count] /= deviation[:, None, None, None]
    into.bias[count:] -= 2 * deviation.log()


def train_vae(
    recipe: Recipe, pictures: UInt8[np.ndarray, "pictures H W 3"], folder: Path
) -> tuple[AutoencoderKL, list[CurvePoint]]:
    """Trains for the recipe's minutes (or resumes the checkpoint in ``folder``); returns averaged weights, curve."""
    sample = pictures[:: max(1, len(pictures) // SAMPLE)]
    vae = build_vae(recipe.seed)
    training = TimedTraining(
        module=vae,
        average=copy.deepcopy(vae),
        path=folder / "vae.safetensors",
        minutes=recipe.vae_minutes,
        rate=VAE_RATE,
        seed=recipe.seed,
    )
    training.run(
        lambda rng, spent: _vae_loss(vae, as_tensor(_picture_crops(rng, pictures)), spent),
        title="training the autoencoder",
    )
    average = cast(AutoencoderKL, training.average)
    standardise_latents(average, sample)
    return average, training.curve


def _picture_crops(
    rng: np.random.Generator, pictures: UInt8[np.ndarray, "pictures H W 3"]
) -> UInt8[np.ndarray, "batch h w 3"]:
    """Draws a batch of crops, half of them mirrored."""
    height, width = CROP
    crops = []
    for row in rng.integers(len(pictures), size=BATCH):
        top = rng.integers(pictures.shape[1] - height + 1)
        left = rng.integers(pictures.shape[2] - width + 1)
        crop = pictures[row, top : top + height, left : left + width]
        crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return np.stack(crops)


def _vae_loss(vae: AutoencoderKL, pictures: Float[Tensor, "batch 3 h w"], spent: float) -> Float[Tensor, ""]:
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(pictures).latent_dist
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    sample = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    with torch.autocast("cpu", torch.bfloat16):
        decoded = vae.decode(sample).sample
    decoded = decoded.float()
    loss = (decoded - pictures).abs().mean()
    loss = loss + GRADIENT_WEIGHT * (_gradients(decoded) - _gradients(pictures)).abs().mean()
    loss = loss + KL_WEIGHT * 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    if spent < 0.5:
        shrunk = functional.avg_pool2d(pictures, LATENT_STRIDE)
        loss = loss + HINT_WEIGHT * (1 - 2 * spent) * (mean[:, :3] - 2 * shrunk).abs().mean()
    return loss


def _gradients(pictures: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 6 i j"]:
    """Sobel derivatives of each colour along x and y."""
    across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]) / 8
    kernels = torch.stack([across, across.T])[:, None].repeat(3, 1, 1, 1)
    return functional.conv2d(pictures, kernels, groups=3)


def encode_pictures(
    vae: AutoencoderKL, pictures: UInt8[np.ndarray, "pictures H W 3"], file: Path
) -> Float16[np.ndarray, "pictures channels h w"]:
    """Encodes every picture into ``file`` (.npy), once; returns the latents, memory-mapped."""
    if not file.is_file():
        rows = track(range(len(pictures)), "encoding pictures", len(pictures), "picture")
        with torch.autocast("cpu", torch.bfloat16):
            latents = np.concatenate([encode(vae, pictures[row : row + 1]).half().numpy() for row in rows])
        write_atomic(file, lambda stream: np.save(stream, latents))
    return np.load(file, mmap_mode="r")


def scaling_factor(latents: Float16[np.ndarray, "pictures channels h w"]) -> float:
    """Returns the factor that scales latents to unit deviation (over a sample of 500 pictures)."""
    step = max(1, len(latents) // 500)
    return float(1 / latents[::step].astype(np.float32).std())


def train_unet(
    recipe: Recipe,
    latents: Float16[np.ndarray, "pictures channels h w"],
    prompt: Float[Tensor, "1 tokens width"],
    folder: Path,
) -> tuple[UNet2DConditionModel, list[CurvePoint]]:
    """Trains for the recipe's minutes (or resumes the checkpoint in ``folder``); returns averaged weights, curve.

    ``latents`` are those of ``encode_pictures``, and are scaled here; ``prompt`` is the encoded empty prompt.
    """
    unet = build_unet(recipe.seed)
    scale = scaling_factor(latents)
    scheduler = build_scheduler()

    def loss(rng: np.random.Generator, _: float) -> Float[Tensor, ""]:
        clean = torch.from_numpy(_latent_crops(rng, latents)).float() * scale
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
        rate=UNET_RATE,
        seed=recipe.seed + 1,
        weight_decay=WEIGHT_DECAY,
    )
    training.run(loss, title="training the UNet")
    return cast(UNet2DConditionModel, training.average), training.curve


def _latent_crops(
    rng: np.random.Generator, latents: Float16[np.ndarray, "pictures channels h w"]
) -> Float16[np.ndarray, "batch channels i j"]:
    height, width, batch = SHAPES[rng.integers(len(SHAPES))]
    crops = []
    for row in rng.integers(len(latents), size=batch):
        top = rng.integers(latents.shape[2] - height + 1)
        left = rng.integers(latents.shape[3] - width + 1)
        crops.append(latents[row, :, top : top + height, left : left + width])
    return np.stack(crops)
