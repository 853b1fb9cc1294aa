"""One contestant of ``extract.py`` in a process of its own: reads a line, does an image, answers with a line of JSON.

``ours`` is stage one in memory, agents and all; ``hooks`` is a plain loop over stock modules in float32 with forward
hooks, each pass run to its end (over a network of transformers in our precision, with its hidden states); ``dift`` is
the UNet of github.com/Tsingularity/dift, its code untouched, in float32 and with an ensemble of one. The peers run on
what their users get: no setting of ours is in force in their processes.
"""

import importlib.util
import json
import resource
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from xd3d.stages.extract.extractor import FeatureExtractor
from xd3d.stages.extract.models import ModelFolder, settings_model
from xd3d.stages.extract.precision import has_native_support
from xd3d.stages.extract.settings import ExtractSettings
from xd3d.stages.extract.taps import find_taps
from xd3d.stages.extract.vision_backbone import VisionBackbone
from xd3d.stages.extract.weights import load_unet, load_vae_encoder

GEMM = {True: 4096, False: 256}  #: rows of the square product that the peak is measured with, by whether it is fast

Image = Callable[[np.ndarray], object]


def main() -> None:
    name, settings, extra = sys.argv[1], ExtractSettings.model_validate_json(sys.argv[2]), sys.argv[3]
    torch.manual_seed(0)
    run = {"ours": ours, "hooks": hooks, "dift": dift}[name](settings, extra)
    picture = np.random.default_rng(0).integers(0, 256, (1, 3, *settings.image_size), dtype=np.uint8)
    answer({"ready": name})
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        run(picture)
        took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        answer(took | {"rss": peak_bytes(), "peaks": gemm_peaks(settings) if name == "ours" else {}})


def answer(facts: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def peak_bytes() -> int:
    """The most memory this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ours(settings: ExtractSettings, _extra: str) -> Image:
    extractor = FeatureExtractor(settings=settings)
    return lambda picture: extractor(picture, ["image"])


def hooks(settings: ExtractSettings, _extra: str) -> Image:
    model = settings_model(settings)
    if model.kind == "transformers":
        return hidden_states(model, settings)
    vae, unet, text = parts(model, load_unet(model, torch.float32))
    found: dict[str, torch.Tensor] = {}
    for tap in find_taps(unet, settings.map_taps):
        tap.module.register_forward_hook(lambda _m, _i, output, name=tap.name: found.__setitem__(name, output))

    @torch.no_grad()
    def run(picture: np.ndarray) -> object:
        latents = vae.encode(scaled(picture)).latent_dist.mean * vae.config.scaling_factor
        unet(latents, torch.tensor(0), text)
        return [values.numpy() for values in found.values()]

    return run


def hidden_states(model: ModelFolder, settings: ExtractSettings) -> Image:
    backbone = VisionBackbone(model=model, settings=settings, device=torch.device("cpu"))
    network, multiple = backbone.network, backbone.multiple

    @torch.no_grad()
    def run(picture: np.ndarray) -> object:
        images = scaled(picture, multiple).to(backbone.dtype)
        return [values.float().numpy() for values in network(images, output_hidden_states=True).hidden_states[-1:]]

    return run


def dift(settings: ExtractSettings, folder: str) -> Image:
    model = settings_model(settings)
    kind = dift_module(Path(folder)).MyUNet2DConditionModel
    with torch.device("meta"):
        peer = kind.from_config(model.config("unet"))
    peer.load_state_dict(load_unet(model, torch.float32).state_dict(), assign=True)
    vae, unet, text = parts(model, peer.eval())
    blocks = sorted({int(tap[2]) for tap in settings.map_taps if tap.startswith("up")})

    @torch.no_grad()
    def run(picture: np.ndarray) -> object:
        latents = vae.encode(scaled(picture)).latent_dist.sample() * vae.config.scaling_factor
        maps = unet(latents, torch.tensor(0), blocks, encoder_hidden_states=text)["up_ft"]
        return [values.numpy() for values in maps.values()]

    return run


def dift_module(folder: Path) -> types.ModuleType:
    """Import the peer's file on today's diffusers: one alias, and a stub for a transform that only its tests use."""
    import diffusers.models.unets.unet_2d_condition as today
    import matplotlib.pyplot  # noqa: F401 - looks at torchvision's presence, so it goes before the stub

    vision, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    transforms.PILToTensor = None  # type: ignore[attr-defined]
    sys.modules |= {
        "diffusers.models.unet_2d_condition": today,
        "torchvision": vision,
        "torchvision.transforms": transforms,
    }
    spec = importlib.util.spec_from_file_location("dift_sd", folder / "src" / "models" / "dift_sd.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parts(model: ModelFolder, unet: Any) -> tuple[Any, Any, torch.Tensor]:
    """The stock encoder, a UNet, and something in place of the encoded prompt: its values cost no time."""
    return load_vae_encoder(model, torch.float32), unet, torch.randn(1, 77, unet.config.cross_attention_dim)


def scaled(picture: np.ndarray, multiple: int = 8) -> torch.Tensor:
    """The picture in [-1, 1], its sides padded to ``multiple``, as any loop must do it."""
    images = torch.from_numpy(picture).float() / 127.5 - 1
    height, width = picture.shape[-2:]
    return torch.nn.functional.pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def gemm_peaks(settings: ExtractSettings) -> dict[str, float]:
    """GFLOP/s of a large square matrix product on the CPU, the best of five, in float32 and in bfloat16.

    Measured after every image, because a shared machine has faster and slower minutes.
    """
    peaks = {}
    for dtype in ("float32", "bfloat16"):
        size = GEMM[has_native_support(dtype, torch.device("cpu")) and settings.image_size[0] > 200]
        values = torch.randn(size, size).to(getattr(torch, dtype))
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            values @ values
            seconds.append(time.perf_counter() - start)
        peaks[dtype] = 2 * size**3 / min(seconds[1:]) / 1e9
    return peaks


if __name__ == "__main__":
    main()
