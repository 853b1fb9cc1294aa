"""Makes the pipeline folder from a recipe in resumable steps."""

from dataclasses import dataclass
from pathlib import Path

from ....errors import ConfigError
from ....files import read_json, write_json
from .export import export_pipeline
from .modules import build_text_encoder, build_tokenizer, empty_prompt
from .pictures import render_pictures
from .recipe import Recipe
from .training import CurvePoint
from .unet import encode_pictures, scaling_factor, train_unet
from .vae import reconstruction_psnr, train_vae

__all__ = ["MadePipeline", "make_pipeline"]


@dataclass(frozen=True)
class MadePipeline:
    """The result: folder, training curves, and the mean PSNR (dB) of held-out pictures' reconstructions."""

    folder: Path
    vae_curve: list[CurvePoint]
    unet_curve: list[CurvePoint]
    held_out_psnr: float


def make_pipeline(recipe: Recipe, folder: Path, *, work: Path, workers: int = 1) -> MadePipeline:
    """Render, train and export; a call with the same ``work`` resumes after an interruption.

    Args:
        recipe: the settings.
        folder: the finished pipeline; also gets ``training.json`` with the recipe and the curves.
        work: pictures, latents and checkpoints; may be removed afterwards.
        workers: processes that render.

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
    made = MadePipeline(folder, vae_curve, unet_curve, psnr)
    record = {"recipe": recipe.model_dump(), "held_out_psnr": round(psnr, 2), "vae": vae_curve, "unet": unet_curve}
    write_json(folder / "training.json", record)
    return made


def _claim(work: Path, recipe: Recipe) -> None:
    """Store the recipe in ``work``, or check that it is the stored one."""
    work.mkdir(parents=True, exist_ok=True)
    note = work / "recipe.json"
    if note.is_file() and (found := read_json(note)) != recipe.model_dump():
        expected = recipe.model_dump()
        keys = sorted(key for key in expected if found.get(key) != expected[key])
        raise ConfigError(
            f"{work} was started with another recipe: "
            + "; ".join(f"{key} was {found.get(key)}, is {expected[key]}" for key in keys)
            + ". Give the old values, or another --work."
        )
    write_json(note, recipe.model_dump())
