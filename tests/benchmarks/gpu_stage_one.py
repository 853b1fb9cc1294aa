"""Checks of the machine and of stage one for ``gpu_check.py``: what is here, precision, speed and memory."""

import os
import platform
import shutil
import subprocess
import time
from typing import Any

import numpy as np
import torch
from gpu_bench import PRECISIONS, Bench, CheckError, finished, peak_bytes
from made_index import pictures_index
from planning import image_tflop
from xd3d.pipeline.config import load_config
from xd3d.pipeline.domains import open_index
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.extract.extractor import FeatureExtractor
from xd3d.stages.extract.job import extract_features
from xd3d.stages.extract.models import settings_model
from xd3d.stages.extract.online import OnlineExtractor
from xd3d.stages.extract.settings import RGB, ExtractSettings
from xd3d.stages.train.sparse.spconv_build import compiled_capabilities, installed_build, listed
from xd3d.version import code_version

IMAGES = 4  #: of the city, that are looked at in each precision
#: Least mean cosine of a cell's features with those that the CPU computes in float32.
COSINES = {"float32": 0.99999, "bfloat16": 0.995, "float16": 0.9995}


def environment(bench: Bench) -> dict[str, Any]:
    """Versions, and what the devices say of themselves."""
    build, fault = installed_build()
    facts: dict[str, Any] = {
        "xd3d": code_version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "spconv": build or fault,
        "spconv_gpus": listed(compiled_capabilities()) if build else "",
    }
    if bench.cuda:
        gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        facts |= {
            "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {gpu.major}.{gpu.minor}" for gpu in gpus],
            "driver": driver(),
            "cudnn": torch.backends.cudnn.version(),
            "nccl": torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else None,
            "architectures": torch.cuda.get_arch_list(),
            "tf32": {"products": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
        }
    return facts


def driver() -> str:
    """The version of the GPU's driver, or why it is not known."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return f"not known: {error}"


def stage_one(bench: Bench) -> dict[str, Any]:
    """The bundled model's maps in each precision against the CPU's in float32: cosines over the channels of a cell."""
    expected = features(bench, "extract.device=cpu")
    figures: dict[str, Any] = {}
    wrong = []
    for precision in PRECISIONS:
        found = features(bench, f"extract.dtype={precision}")
        cosines = {name: cosine(found[name], expected[name]) for name in expected}
        figures[precision] = {name: {"mean": mean, "least": least} for name, (mean, least) in cosines.items()}
        wrong += [
            f"{name} in {precision}: {mean:.6f}"
            for name, (mean, _) in cosines.items()
            if not mean >= COSINES[precision]
        ]
    if wrong:
        raise CheckError(f"maps differ from the CPU's (mean cosine): {', '.join(wrong)}", figures)
    return figures


def features(bench: Bench, setting: str) -> dict[str, np.ndarray]:
    """The maps of a few images of the city, ``rgb`` left out."""
    settings = extract_settings(bench.settings(setting))
    index = open_index(Workspace(home=bench.home), "nuscenes")
    maps = OnlineExtractor(index=index, settings=settings).read(range(IMAGES)).maps
    return {name: values.astype(np.float64) for name, values in maps.items() if name != RGB}


def cosine(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Mean and least cosine of the cells' vectors [images, channels, height, width]; NaN where one is not finite."""
    length = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (found * expected).sum(1) / np.maximum(length, 1e-12)
    return float(cosines.mean()), float(cosines.min())


def extract_settings(overrides: list[str]) -> ExtractSettings:
    """Settings of stage one of the default preset with ``overrides``."""
    return load_config(overrides=overrides).config.extract


def stage_one_speed(bench: Bench) -> dict[str, Any]:
    """Images a second through the full-size model alone, and its share of the device's best large product."""
    settings = extract_settings(bench.speed_settings())
    extractor = FeatureExtractor(settings=settings)
    size = (extractor.batch_size, 3, *settings.image_size)
    drawn = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    extractor(drawn, [str(number) for number in range(len(drawn))])  # takes smaller batches if these do not fit
    batch = min(len(drawn), extractor.batch_size)
    pictures, keys = torch.from_numpy(drawn[:batch]).to(bench.device), [str(number) for number in range(batch)]
    seconds = []
    for _ in range(1 + max(1, bench.scale.speed_images // batch)):
        finished(bench)
        begin = time.perf_counter()
        extractor.backbone(pictures, keys)
        finished(bench)
        seconds.append(time.perf_counter() - begin)
    tflop = image_tflop(settings_model(settings), settings)["tflop"]
    rate = batch / float(np.median(seconds[1:]))  # the first warms up
    peak = product_rate(bench, settings.dtype)
    return {
        "model": "Stable Diffusion 2.1, random weights" if bench.cuda and not bench.model else settings.model,
        "image_size": list(settings.image_size),
        "dtype": settings.dtype,
        "batch": batch,
        "images_per_second": rate,
        "tflop_an_image": tflop,
        "tflops": tflop * rate,
        "peak_tflops": peak,
        "share_of_peak": tflop * rate / peak,
        "peak_bytes": peak_bytes(bench),
    }


def product_rate(bench: Bench, dtype: str) -> float:
    """TFLOP/s of a large square product on the device, the best of six after one to warm up."""
    size = bench.scale.product
    values = torch.randn(size, size, device=bench.device).to(getattr(torch, dtype))
    seconds = []
    for _ in range(7):
        finished(bench)
        begin = time.perf_counter()
        values @ values
        finished(bench)
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds[1:]) / 1e12


def stage_one_job(bench: Bench) -> dict[str, Any]:
    """The job with that model over pictures of twice the size: images a second, and where the time goes."""
    folder, settings = bench.folder / "pictures", extract_settings(bench.speed_settings())
    folder.mkdir()
    height, width = settings.image_size
    index = pictures_index(folder, bench.scale.speed_images, (2 * height, 2 * width))
    done = extract_features(index, settings, folder / "cache")
    shutil.rmtree(folder)
    figures = {
        "images": done.images,
        "images_per_second": done.images_per_second,
        "shares": dict(done.shares),
        "peak_bytes": peak_bytes(bench),
    }
    if done.done != done.images:
        raise CheckError(f"{done.images - done.done} of {done.images} images have no features", figures)
    return figures
