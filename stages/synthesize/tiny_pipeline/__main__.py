"""Make the tiny pipeline: ``python -m xd3d.stages.synthesize.tiny_pipeline OUT --minutes 72``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from ....errors import ConfigError
from ....files import read_json, write_json
from ....fingerprint import differences
from ....processes import processors
from .modules import build_text_encoder, build_tokenizer, empty_prompt, export_pipeline
from .pictures import Recipe, render_pictures
from .train_networks import encode_pictures, reconstruction_psnr, scaling_factor, train_unet, train_vae

__all__ = ["main", "make_pipeline"]

VAE_SHARE = 1 / 3
"""Of the training minutes; the rest is the UNet's."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and makes the pipeline; resumes after an interruption."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(prog="python -m xd3d.stages.synthesize.tiny_pipeline", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the finished pipeline")
    parser.add_argument("--minutes", type=float, default=72.0, help="wall time for training, without rendering")
    parser.add_argument("--pictures", type=int, default=defaults.pictures, help="pictures to train on")
    parser.add_argument("--held-out", type=int, default=defaults.held_out, help="pictures for the closing check")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--day-only", action="store_true", help="clear daylight only: the control")
    parser.add_argument("--threads", type=int, default=processors(), help="threads that train, processes that render")
    parser.add_argument("--work", type=Path, help="folder for pictures and checkpoints (default: beside OUT)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    recipe = Recipe(
        seed=options.seed,
        day_only=options.day_only,
        pictures=options.pictures,
        held_out=options.held_out,
        vae_minutes=options.minutes * VAE_SHARE,
        unet_minutes=options.minutes * (1 - VAE_SHARE),
    )
    work = options.work or options.out.with_name(f"{options.out.name}.work")
    make_pipeline(recipe, options.out, work=work, workers=options.threads)


def make_pipeline(recipe: Recipe, folder: Path, *, work: Path, workers: int = 1) -> Path:
    """Renders, trains and exports to ``folder``; a call with the same ``work`` resumes after an interruption.

    ``folder`` also gets ``training.json`` with the recipe and the curves. ``work`` holds pictures, latents and
    checkpoints, and may be removed afterwards. ``workers``: processes that render.

    Raises:
        ConfigError: ``work`` was started with another recipe.
    """
    _claim(work, recipe)
    held_out = render_pictures(recipe, work, workers=workers, held_out=True)
    pictures = render_pictures(recipe, work, workers=workers)
    vae, vae_curve = train_vae(recipe, pictures, work)
    psnr = float(reconstruction_psnr(vae, held_out).mean())
    latents = encode_pictures(vae, pictures, work / "latents.npy")
    prompt = empty_prompt(build_text_encoder(recipe.seed), build_tokenizer(work / "tokenizer"))
    unet, unet_curve = train_unet(recipe, latents, prompt, work)
    scale = scaling_factor(latents)
    export_pipeline(vae=vae, unet=unet, scaling_factor=scale, seed=recipe.seed, folder=folder)
    record = {"recipe": recipe.model_dump(), "held_out_psnr": round(psnr, 2), "vae": vae_curve, "unet": unet_curve}
    write_json(folder / "training.json", record)
    return folder


def _claim(work: Path, recipe: Recipe) -> None:
    """Stores the recipe in ``work``, or checks that it is the stored one."""
    work.mkdir(parents=True, exist_ok=True)
    note = work / "recipe.json"
    if note.is_file() and (lines := differences(recipe.model_dump(), read_json(note))):
        raise ConfigError(
            f"{work} was started with another recipe: {'; '.join(lines)}. Give the old values, or another --work."
        )
    write_json(note, recipe.model_dump())


if __name__ == "__main__":
    main()
