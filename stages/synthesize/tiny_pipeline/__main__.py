"""Make the tiny pipeline: ``python -m xd3d.stages.synthesize.tiny_pipeline OUT --minutes 72``."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from .make import make_pipeline
from .recipe import Recipe

__all__ = ["main"]

VAE_SHARE = 1 / 3
"""Of the training minutes; the rest is the UNet's."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and make the pipeline; resumes after an interruption."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(prog="python -m xd3d.stages.synthesize.tiny_pipeline", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the finished pipeline")
    parser.add_argument("--minutes", type=float, default=72.0, help="wall time for training, without rendering")
    parser.add_argument("--pictures", type=int, default=defaults.pictures, help="pictures to train on")
    parser.add_argument("--held-out", type=int, default=defaults.held_out, help="pictures for the closing check")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--day-only", action="store_true", help="clear daylight only: the control")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads that train, processes that render")
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


if __name__ == "__main__":
    main()
