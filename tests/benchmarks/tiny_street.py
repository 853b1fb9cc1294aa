"""What the features of the tiny pipeline are worth: linear probes on pixels, from one domain to shifted ones.

``python tests/benchmarks/tiny_street.py OUT`` renders pictures of the two synthetic cities, reads the taps of the
trained pipeline, of the day-only control and of random weights, fits a linear classifier to pixels of Boston by day,
and scores it on other streets of Boston and under shift. It prints the table of ``docs/tiny-street.md`` and writes
``probe.json`` and the pictures of that page to OUT.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from matplotlib import pyplot
from PIL import Image
from streets import DOMAINS, MODELS, TAPS, backbone, city_picture, fit, miou
from torch import Tensor
from torch.nn import functional
from xd3d.files import read_json, write_json
from xd3d.stages.datasets.labels import IGNORE, get_merge
from xd3d.stages.extract.models import resolve_model
from xd3d.stages.synthesize.tiny_pipeline.train_networks import reconstruct, reconstruction_psnr

PICTURES = {"train": 60, "test": 30}
PIXELS = 400
SEEDS = (0, 1, 2)
QUALITY = 85  # of JPEG


class Scenes:
    """Pictures of one domain with the pixels that are probed."""

    def __init__(self, domain: str, numbers: Sequence[int]) -> None:
        pictures = [city_picture(domain, number) for number in numbers]
        self.images = np.stack([picture.image for picture in pictures])
        labels = np.stack([get_merge("nuscenes-6").apply(picture.labels.ravel()) for picture in pictures])
        rng = np.random.default_rng(numbers[0])
        self.pixels = np.stack([rng.choice(np.flatnonzero(row != IGNORE), PIXELS) for row in labels])
        self.labels = torch.from_numpy(np.take_along_axis(labels, self.pixels, axis=1)).flatten()

    def rgb(self) -> Tensor:
        """The 7 x 7 patch around each pixel, every second pixel of it, and the pixel's position."""
        images = torch.from_numpy(self.images).permute(0, 3, 1, 2).float() / 255
        patches = functional.unfold(functional.pad(images, (3, 3, 3, 3), mode="replicate"), 4, dilation=2)
        colours = torch.stack([patch[:, row] for patch, row in zip(patches, self.pixels, strict=True)])
        rows, columns = np.divmod(self.pixels, 400)
        place = torch.from_numpy(np.stack([rows / 112 - 1, columns / 200 - 1], 1)).float()
        return torch.cat([colours, place, place**2], 1)


def per_image(features: Tensor) -> Tensor:
    """Normalise each channel over the probed pixels of each image; features [images, C, pixels]."""
    return (features - features.mean(2, keepdim=True)) / (features.std(2, keepdim=True) + 1e-4)


def tap_features(model: str, scenes: Scenes) -> Tensor:
    """Features of all taps at the probed pixels: [images, C, pixels]."""
    found: list[Tensor] = []
    for row in range(len(scenes.images)):
        image = torch.from_numpy(scenes.images[row : row + 1]).permute(0, 3, 1, 2)
        maps, specs = backbone(model)(image, [str(row)]), backbone(model).specs
        found.append(torch.cat([at_pixels(maps[tap], specs[tap].extent, scenes.pixels[row]) for tap in TAPS]))
    return torch.stack(found)


def at_pixels(maps: Tensor, extent: tuple[float, float], pixels: np.ndarray) -> Tensor:
    """Read maps [1, C, h, w] bilinearly at pixels: [C, pixels]; ``extent`` is the image's size in cells."""
    rows, columns = np.divmod(pixels, 400)
    places = np.stack(
        [(columns + 0.5) / 400 * extent[1] / maps.shape[3], (rows + 0.5) / 225 * extent[0] / maps.shape[2]], -1
    )
    grid = torch.from_numpy(places * 2 - 1).float()[None, :, None]
    return functional.grid_sample(maps, grid, padding_mode="border", align_corners=False)[0, :, :, 0]


def probe_table() -> dict[str, dict[str, list[float]]]:
    """Score every kind of features on every domain: mean and deviation over seeds of the probe."""
    train = Scenes("boston day", range(PICTURES["train"]))
    tests = {domain: Scenes(domain, range(1000, 1000 + PICTURES["test"])) for domain in DOMAINS}
    everything = [train, *tests.values()]
    rgb = [scenes.rgb() for scenes in everything]
    kinds: dict[str, list[Tensor]] = {"RGB": rgb, "RGB, normalised": [per_image(part) for part in rgb]}
    for name in MODELS:
        found = [tap_features(name, scenes) for scenes in everything]
        normal = [per_image(part) for part in found]
        kinds[f"{name} taps"] = found
        kinds[f"{name} taps, normalised"] = normal
        pairs = zip(normal, kinds["RGB, normalised"], strict=True)
        kinds[f"{name} taps + RGB, normalised"] = [torch.cat(pair, 1) for pair in pairs]
    table: dict[str, dict[str, list[float]]] = {}
    for kind, parts in kinds.items():
        flat = [part.permute(0, 2, 1).flatten(0, 1) for part in parts]
        probes = [fit(flat[0], train.labels, seed) for seed in SEEDS]
        table[kind] = {}
        for (domain, scenes), features in zip(tests.items(), flat[1:], strict=True):
            scores = [miou(probe.classes(features), scenes.labels) for probe in probes]
            table[kind][domain] = [round(float(np.mean(scores)), 1), round(float(np.std(scores)), 1)]
    return table


def psnr_table(vae: AutoencoderKL) -> dict[str, list[float]]:
    """Mean, smallest and largest PSNR of the reconstructions of 12 streets of each domain."""
    table = {}
    for domain in DOMAINS:
        images = np.stack([city_picture(domain, number).image for number in range(2000, 2012)])
        values = reconstruction_psnr(vae, images)
        table[domain] = [round(float(value), 1) for value in (values.mean(), values.min(), values.max())]
    return table


def draw_reconstructions(vae: AutoencoderKL, path: Path) -> None:
    """Pictures and, below, their reconstructions; then the middle of each, twice as large."""
    images = np.stack([city_picture(domain, 2000).image for domain in list(DOMAINS)[:4]])
    rows = [images, reconstruct(vae, images)]
    rows += [np.repeat(np.repeat(row[:, 80:192, 100:300], 2, axis=1), 2, axis=2) for row in rows]
    Image.fromarray(np.vstack([np.hstack(row) for row in rows])).save(path, quality=QUALITY)


def draw_samples(folder: Path, path: Path) -> None:
    """Six pictures drawn from noise with the empty prompt."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    pictures = pipeline([""] * 6, num_inference_steps=40, generator=generator, output_type="np").images
    pictures = (pictures * 255).round().astype(np.uint8)
    Image.fromarray(np.vstack([np.hstack(pictures[:3]), np.hstack(pictures[3:])])).save(path, quality=QUALITY)


def draw_curves(folders: dict[str, Path], path: Path) -> None:
    """Losses over minutes, autoencoder left and UNet right."""
    mpl.use("Agg")
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3))
    for name, folder in folders.items():
        record = read_json(folder / "training.json")
        for axis, part in zip(axes, ("vae", "unet"), strict=True):
            seconds, _, losses = zip(*record[part], strict=True)
            axis.plot(np.array(seconds) / 60, losses, label=name, linewidth=1)
            axis.set(title={"vae": "autoencoder", "unet": "UNet"}[part], xlabel="minutes", ylabel="loss", yscale="log")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Write pictures and figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    folders = {name: resolve_model(name).path for name in ("tiny-street", "tiny-street-day")}
    vaes = {name: AutoencoderKL.from_pretrained(folder / "vae").eval() for name, folder in folders.items()}
    draw_reconstructions(vaes["tiny-street"], options.out / "tiny-street-reconstructions.jpg")
    draw_samples(folders["tiny-street"], options.out / "tiny-street-samples.jpg")
    draw_curves(folders, options.out / "tiny-street-curves.png")
    table = {"psnr": {name: psnr_table(vae) for name, vae in vaes.items()}, "miou": probe_table()}
    write_json(options.out / "probe.json", table)
    for kind, scores in table["miou"].items():
        shifted = np.mean([values[0] for domain, values in scores.items() if domain != "boston day"])
        print(kind, "|", " | ".join(f"{mean} ± {spread}" for mean, spread in scores.values()), f"| {shifted:.1f}")
    print(table["psnr"])


if __name__ == "__main__":
    main()
