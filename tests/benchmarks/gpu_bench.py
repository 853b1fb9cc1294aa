"""What the checks of ``gpu_check.py`` share: where they run and how large they are, their data, and how one fails."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PRECISIONS = ("float32", "bfloat16", "float16")
#: The published shape of Stable Diffusion 2.1; what it leaves out is diffusers' default.
UNET = {
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1024,
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 64,
    "use_linear_projection": True,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 768,
    "scaling_factor": 0.18215,
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done: frames and pictures of the city, steps of a run, and what is timed."""

    frames: int
    picture: tuple[int, int]  #: width, height
    image_size: tuple[int, int]  #: height, width that the small model sees
    steps: int  #: of runs that are compared
    long_steps: int  #: of the run that is killed
    checkpoint_every: int
    speed_size: tuple[int, int]  #: height, width that the model sees where its speed counts
    speed_images: int
    speed_batch: int  #: frames a step where its speed counts
    speed_preset: str
    timed_steps: int
    product: int  #: rows of the square product that the device's peak is measured with


FULL = Scale(
    frames=48,
    picture=(800, 450),
    image_size=(225, 400),
    steps=8,
    long_steps=60,
    checkpoint_every=10,
    speed_size=(448, 800),
    speed_images=192,
    speed_batch=4,
    speed_preset="full",
    timed_steps=20,
    product=8192,
)
REDUCED = Scale(
    frames=8,
    picture=(160, 90),
    image_size=(64, 96),
    steps=2,
    long_steps=6,
    checkpoint_every=2,
    speed_size=(64, 96),
    speed_images=2,
    speed_batch=1,
    speed_preset="slim",
    timed_steps=2,
    product=256,
)


class CheckError(Exception):
    """A check found something wrong; ``figures`` are those that it had by then."""

    def __init__(self, reason: str, figures: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.figures = figures or {}


class NotHereError(Exception):
    """What a check looks at is not on this machine."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where the checks run: a folder of their own, a device, and the model whose speed counts ("": as ``device``)."""

    folder: Path
    device: str
    model: str = ""
    scale: Scale = field(default=FULL)

    @classmethod
    def from_json(cls, text: str) -> "Bench":
        """The bench that ``to_json`` wrote."""
        facts = json.loads(text)
        scale = {name: tuple(value) if isinstance(value, list) else value for name, value in facts["scale"].items()}
        return cls(**{**facts, "folder": Path(facts["folder"]), "scale": Scale(**scale)})

    def to_json(self) -> str:
        """All of it, for another process."""
        return json.dumps({**asdict(self), "folder": str(self.folder)})

    @property
    def home(self) -> Path:
        """The workspace of xd3d."""
        return self.folder / "work"

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device == "cuda"

    def settings(self, *more: str) -> list[str]:
        """``--set`` values of small runs; later ones replace earlier ones."""
        return [
            f"extract.image_size={list(self.scale.image_size)}",
            f"extract.device={self.device}",
            "extract.dtype=float32",
            "extract.batch_size=1",  # an image's bits may depend on how many pass the model with it
            f"train.device={self.device}",
            "train.batch_size=2",
            "train.milestones=[1000]",
            "fusion.camera_dropout=0",  # drawn on the device, so a CPU draws other numbers
            *more,
        ]

    def speed_settings(self, *more: str) -> list[str]:
        """``--set`` values where speed counts: the full-size model with random weights in float16 on a GPU."""
        size = f"extract.image_size={list(self.scale.speed_size)}"
        if not self.cuda and not self.model:
            return self.settings(size, f"train.batch_size={self.scale.speed_batch}", *more)
        model = self.model or str(published_model(self.folder / "published-model"))
        return self.settings(
            size,
            f"extract.model={model}",
            "extract.weights=random",
            f"extract.dtype={'float16' if self.cuda else 'float32'}",
            "extract.batch_size=null",
            f"train.batch_size={self.scale.speed_batch}",
            *more,
        )

    def command(self, *words: str, settings: Iterable[str] = ()) -> list[str]:
        """A command of xd3d as a user gives it, with ``settings``."""
        options = [word for setting in settings for word in ("--set", setting)]
        return [sys.executable, "-m", "xd3d", *words, "--json", *options]

    def environment(self) -> dict[str, str]:
        """The environment of ``command``."""
        return {**os.environ, "XD3D_HOME": str(self.home)}

    def run(self, command: list[str]) -> dict[str, Any]:
        """Run a command to its end; its JSON result.

        Raises:
            CheckError: it ended otherwise than well.
        """
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=240)
        if done.returncode:
            raise CheckError(f"'{' '.join(command[2:6])} ...' ended with code {done.returncode}: {last(done.stderr)}")
        return json.loads(done.stdout.splitlines()[-1])


def data(bench: Bench) -> dict[str, Any]:
    """Write the synthetic city as a data root, and its index in the workspace; the other checks read them."""
    from xd3d.pipeline import jobs
    from xd3d.pipeline.workspace import Workspace
    from xd3d.stages.synthesize.synthesize import synthesize

    city = synthesize(bench.folder / "city", frames=bench.scale.frames, image_size=bench.scale.picture)
    done = jobs.prepare("nuscenes", city, version=None, cameras=None, workspace=Workspace(home=bench.home))
    return {name: done.result[name] for name in ("frames", "images")}


def published_model(folder: Path) -> Path:
    """A folder in diffusers' layout with the shape of Stable Diffusion 2.1, without weights.

    The tokenizer and a text encoder of one layer are those of the bundled model: the prompt is encoded once a run.
    """
    from xd3d.stages.extract.catalogue import PACKAGED

    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        bundled = PACKAGED / "tiny-street"
        for part in ("tokenizer", "scheduler"):
            shutil.copytree(bundled / part, partial / part)
        text = json.loads((bundled / "text_encoder" / "config.json").read_text())
        width = {"hidden_size": UNET["cross_attention_dim"], "num_attention_heads": 16, "num_hidden_layers": 1}
        for part, config in (("text_encoder", {**text, **width}), ("unet", UNET), ("vae", VAE)):
            (partial / part).mkdir()
            (partial / part / "config.json").write_text(json.dumps(config))
        partial.rename(folder)
    return folder


def last(text: str) -> str:
    """The end of what a command said, on one line."""
    return " ".join(text.split())[-400:]


def peak_bytes(bench: Bench) -> int:
    """The most memory that this process held: of the GPU, or on the CPU all of it."""
    if bench.cuda:
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def finished(bench: Bench) -> None:
    """Wait for what the device was given to do."""
    if bench.cuda:
        import torch

        torch.cuda.synchronize()
