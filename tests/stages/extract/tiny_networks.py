"""Tiny networks with random weights in every layout that stage one reads, built from the configs of transformers."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

#: architecture -> class of its config, settings of a tiny one
VITS = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 48}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2": ("Dinov2Config", {**VITS, "patch_size": 14, "image_size": 56}),
    "dinov2-registers": ("Dinov2WithRegistersConfig", {**VITS, "patch_size": 14, "image_size": 56}),
    "dinov3": ("DINOv3ViTConfig", {**VITS, "patch_size": 16, "num_register_tokens": 4}),
    "dinov3-convnext": ("DINOv3ConvNextConfig", STAGES),
    "clip": ("CLIPConfig", {"vision_config": {**VITS, "patch_size": 14, "image_size": 56}, "text_config": TEXT}),
    "siglip": ("SiglipConfig", {"vision_config": {**VITS, "patch_size": 16, "image_size": 64}, "text_config": TEXT}),
    "vit": ("ViTConfig", {**VITS, "image_size": 64}),
    "mae": (
        "ViTMAEConfig",
        {**VITS, "image_size": 64, **{f"decoder_{name}": value for name, value in TEXT.items()}},
    ),
    "swin": ("SwinConfig", {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 2}),
    "convnext": ("ConvNextConfig", STAGES),
    "segformer": ("SegformerConfig", {**STAGES, "num_attention_heads": [1, 2, 2, 4]}),
}
MEAN, STD = [0.48, 0.46, 0.4], [0.23, 0.22, 0.25]


def write_network(folder: Path, name: str) -> Path:
    """Write a network as ``save_pretrained`` does, whole models of images and texts among them."""
    import transformers

    kind, facts = CONFIGS[name]
    torch.manual_seed(3)
    network = transformers.AutoModel.from_config(getattr(transformers, kind)(**facts))
    with torch.no_grad():  # fresh networks have zeros and ones in places, which would hide faults
        for values in network.parameters():
            values.add_(0.05 * torch.randn_like(values))
    network.save_pretrained(folder)
    write_processor(folder)
    return folder


def write_processor(folder: Path) -> None:
    """Write the processor's config of a network."""
    facts = {"do_normalize": True, "do_rescale": True, "image_mean": MEAN, "image_std": STD, "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))


class ConvNet(torch.nn.Module):
    """A network of two maps and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 6, 3, stride=4, padding=1)
        self.second = torch.nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shallow = self.first(images).relu()
        deep = self.second(shallow).relu()
        return shallow, deep, self.head(deep.mean((2, 3)))


DESCRIPTION = """
input: images
mean: [0.48, 0.46, 0.4]
std: [0.23, 0.22, 0.25]
taps:
  shallow: {stride: 4}
  deep: {stride: 8}
"""


def write_onnx(folder: Path, network: torch.nn.Module | None = None, *, batch: bool = True, **options: Any) -> Path:
    """Export a network to ``net.onnx`` for images of any size, and describe it; ``batch``: for any number of them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(5)
    images = torch.export.Dim.DYNAMIC
    shape = {**({0: images} if batch else {}), 2: images, 3: images}
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            (network or ConvNet()).eval(),
            (torch.rand(2 if batch else 1, 3, 64, 96),),
            str(folder / "net.onnx"),
            input_names=["images"],
            output_names=["shallow", "deep", "vector"],
            **{"dynamic_shapes": (shape,), "external_data": False, "verbose": False, **options},
        )
    (folder / "net.yaml").write_text(DESCRIPTION)
    return folder
