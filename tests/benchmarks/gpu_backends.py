"""The check of the sparse backends for ``gpu_check.py``: spconv against torch, forward and backward."""

import time
from typing import Any

import torch
from gpu_bench import PRECISIONS, Bench, CheckError, NotHereError, finished
from torch import Tensor, nn
from xd3d.errors import BackendError
from xd3d.pipeline.config import load_config
from xd3d.pipeline.domains import DomainOpener
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.train.network import Network
from xd3d.stages.train.sparse import (
    DownConv3d,
    InverseConv3d,
    KernelMaps,
    SparseTensor,
    SubMConv3d,
    choose_backend,
    make_backend,
)
from xd3d.stages.train.step_batch import StepMaker
from xd3d.stages.train.unet3d import SpUNet

BACKENDS = ("torch", "spconv")
CUBE = "model.full_scale=800"  #: spconv keys voxels in 32 bits on the CPU: a batch of four must stay below 2^31 cells
#: How far a layer's output and gradients may be from torch's in float32, as a part of the largest value.
LAYER = {"float32": 1e-3, "bfloat16": 1e-3, "float16": 2e-2}
#: The same of the whole network's output. Its gradients are only told: a ReLU that flips in rounding changes them, in
#: half precision by a third of the largest.
NETWORK = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}


def backends(bench: Bench) -> dict[str, Any]:
    """Layers of the 3D network and the whole of it by either backend on the same voxels: differences, milliseconds.

    What is compared with is torch in float32. Convolutions are in float32 where the precision is bfloat16.
    """
    try:
        reason = choose_backend("spconv", bench.device).reason
    except BackendError as error:
        raise NotHereError(str(error)) from error
    figures: dict[str, Any] = {"spconv": reason}
    voxels = city_voxels(bench)
    layers, whole = layer_results(bench, voxels, "torch", "float32"), passes(bench, voxels, "torch", "float32")[0]
    wrong = []
    for precision in PRECISIONS if bench.cuda else ("float32",):
        for backend in BACKENDS:
            facts = {
                name: max(map(largest_difference, found, layers[name]))
                for name, found in layer_results(bench, voxels, backend, precision).items()
            }
            found, milliseconds = passes(bench, voxels, backend, precision)
            forward, *backward = map(largest_difference, found, whole)
            figures[f"{backend} {precision}"] = {
                "layers": facts,
                "forward": forward,
                "backward": max(backward),
                "milliseconds": milliseconds,
            }
            wrong += [
                f"{name} by {backend} in {precision}" for name, off in facts.items() if not off <= LAYER[precision]
            ]
            if not forward <= NETWORK[precision]:
                wrong.append(f"the network by {backend} in {precision}")
    if wrong:
        raise CheckError(f"too far from torch in float32: {', '.join(wrong)}", figures)
    return figures


def city_voxels(bench: Bench) -> SparseTensor:
    """The voxels of a batch of the city, in a cube that spconv can number on a CPU too."""
    batch_size = f"train.batch_size={bench.scale.speed_batch}"
    settings = bench.settings("fusion.variant=3d-only", "model.backend=torch", CUBE, "train.workers=0", batch_size)
    config = load_config(overrides=settings).config
    source = DomainOpener(Workspace(home=bench.home), config, cached=False).source()
    assert source is not None
    device = torch.device("cpu")
    plan = Network(
        model=config.model, fusion=config.fusion, classes=source.merge.classes, taps={}, cameras=1, device=device
    ).plan
    make = StepMaker(
        source=source, target=None, plan=plan, augment=config.augment, settings=config.train, device=device
    )
    batch = make(0, 0).source
    assert batch is not None
    return batch.voxels


def layer_results(bench: Bench, voxels: SparseTensor, backend: str, precision: str) -> dict[str, list[Tensor]]:
    """Output and gradients of the stem, of two layers inside, and of a way down and up again."""
    made = make_backend(backend, bench.device)
    torch.manual_seed(0)
    layers = {
        "stem": [SubMConv3d(in_channels=1, out_channels=32, kernel=5, backend=made)],
        "submanifold": [SubMConv3d(in_channels=32, out_channels=32, backend=made)],
        "wide": [SubMConv3d(in_channels=128, out_channels=96, backend=made)],
        "down and up": [
            DownConv3d(in_channels=32, out_channels=64, backend=made),
            InverseConv3d(in_channels=64, out_channels=32, backend=made),
        ],
    }
    return {
        name: exact(results(bench, voxels, nn.Sequential(*parts), parts[0].weight.shape[-1], precision))
        for name, parts in layers.items()
    }


def results(bench: Bench, voxels: SparseTensor, module: nn.Module, channels: int, precision: str) -> list[Tensor]:
    """The output of ``module``, and the gradients of its input and parameters."""
    device, dtype = torch.device(bench.device), getattr(torch, precision)
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(len(voxels.indices), channels, generator=generator).to(device).requires_grad_()
    maps = KernelMaps(voxels.indices.to(device), voxels.spatial_shape, voxels.batch_size)
    x = SparseTensor.create(features=values, maps=maps)
    with torch.autocast(device.type, dtype, enabled=precision != "float32"):
        y = module.to(device)(x).features.float()
    pull = 0.01 * torch.randn(y.shape, generator=generator).to(device)
    return [y.detach(), *torch.autograd.grad((y * pull).sum(), [values, *module.parameters()])]


def exact(found: list[Tensor]) -> list[Tensor]:
    """The same in float64 on the CPU."""
    return [each.cpu().double() for each in found]


def passes(bench: Bench, voxels: SparseTensor, backend: str, precision: str) -> tuple[list[Tensor], float]:
    """``results`` of the whole network, and the milliseconds that they took, kernel maps included, the best of some."""
    torch.manual_seed(0)
    network = SpUNet(in_channels=1, preset=bench.scale.speed_preset, backend=make_backend(backend, bench.device))
    best, found = float("inf"), list[Tensor]()
    for _ in range(1 + min(5, bench.scale.timed_steps // 2)):
        finished(bench)
        begin = time.perf_counter()
        found = results(bench, voxels, network, 1, precision)
        finished(bench)
        best = min(best, 1e3 * (time.perf_counter() - begin))
    return exact(found), best


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a part of the largest value; NaN where a value is not finite."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
