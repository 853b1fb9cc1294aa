"""Noise for timesteps above 0: mixed in by the model's own scheduler table, drawn from each image's key."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import ModelError
from .models import ModelFolder

__all__ = ["add_noise", "scheduler_noise"]

#: what of a scheduler's config decides how much noise a timestep has
BETA_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)


def scheduler_noise(model: ModelFolder, timestep: int) -> tuple[float, float] | None:
    """Return the weights of latent and noise at ``timestep`` by the model's own scheduler; ``None`` at step 0.

    Raises:
        ModelError: the scheduler has no such step, or does not mix latents and noise by a table of betas.
    """
    from diffusers import DDPMScheduler

    if timestep == 0:
        return None
    config = model.config("scheduler")
    if "beta_schedule" not in config:
        raise ModelError(
            f"The scheduler of {model.path} ({config.get('_class_name')}) has no beta schedule, so noise at step "
            f"{timestep} is not defined; set extract.timestep to 0"
        )
    kept = DDPMScheduler.from_config({key: config[key] for key in BETA_KEYS if key in config}).alphas_cumprod
    if timestep >= len(kept):
        raise ModelError(f"extract.timestep is {timestep}, the scheduler of {model.path} ends at {len(kept) - 1}")
    return float(kept[timestep].sqrt()), float((1.0 - kept[timestep]).sqrt())


def add_noise(
    latents: Float[Tensor, "batch latent height width"],
    keys: Sequence[str],
    weights: tuple[float, float],
    seed: int,
    draw: int = 0,
) -> Float[Tensor, "batch latent height width"]:
    """Mix latents with standard normal noise that depends on ``seed``, each image's key and ``draw`` only.

    ``weights`` are those of latent and noise. The noise is drawn by numpy, so any machine and batch gets the same.
    """
    draws = []
    for key in keys:
        words = np.frombuffer(hashlib.sha256(key.encode()).digest(), np.uint32).tolist()
        generator = np.random.default_rng([seed, *words, *([draw] if draw else [])])
        draws.append(generator.standard_normal(latents.shape[1:], dtype=np.float32))
    return latents * weights[0] + torch.from_numpy(np.stack(draws)).to(latents) * weights[1]
