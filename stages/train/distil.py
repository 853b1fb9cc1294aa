"""Distillation of image features into the 3D network, without labels: the recipe of ScaLR (Puy et al., CVPR 2024).

A linear head on the 3D network predicts the image's features at the pixels of each point. Both are normalised to unit
length, and the loss is their mean distance: no negatives, no superpixels. Afterwards the head is thrown away.
"""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...cache.schema import TapSpec
from .batch import Batch, BatchPlan
from .image_branch import sample_points
from .images import ImageBatch
from .losses import Losses, Terms, mean_over_processes
from .norms import frozen_statistics
from .settings import FusionSettings, ModelSettings, TrainSettings
from .sparse import make_backend
from .step_batch import StepBatch
from .unet3d import SpUNet

__all__ = ["PretrainingNetwork", "feature_distance", "pretraining_losses"]


class PretrainingNetwork(nn.Module):
    """The 3D network under a linear head that predicts the features of ``taps``, concatenated, at the points.

    ``precision`` is the autocast dtype in training and may be set; the features and their distance stay in float32.
    """

    def __init__(
        self, *, model: ModelSettings, fusion: FusionSettings, taps: Mapping[str, TapSpec], device: torch.device
    ) -> None:
        super().__init__()
        self.precision = torch.float32
        self.model, self.fusion, self.taps = model, fusion, tuple(taps)
        backend = make_backend(model.backend, device)
        self.backend = backend.name
        self.unet = SpUNet(in_channels=1, preset=model.preset, backend=backend, norm=model.norm)
        self.project = nn.Linear(self.unet.out_channels, sum(spec.channels for spec in taps.values()))
        self.to(device)

    @property
    def plan(self) -> BatchPlan:
        """What its batches must contain."""
        return BatchPlan(model=self.model, taps=self.taps, kernel_maps=self.backend == "torch")

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.project.weight.device

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "shown channels"], Float[Tensor, "shown channels"]]:
        """Returns predicted and actual features of the points that an image shows, float32.

        The actual ones are normalised per image and channel (``fusion.normalise``), sampled at the pixel, and averaged
        over the images that show the point.

        Raises:
            ValueError: the batch has no images.
        """
        if batch.images is None:
            raise ValueError("Pretraining needs the images of its batches")
        shown = (batch.images.view_counts > 0).nonzero().squeeze(1)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            voxels = self.unet(batch.voxels).features
            predicted = self.project(voxels[batch.point_to_voxel[shown]])
        with torch.no_grad():
            actual = self._image_features(batch.images.prepared(normalise=self.fusion.normalise))[shown]
        return predicted.float(), actual

    def _image_features(self, images: ImageBatch) -> Float[Tensor, "points channels"]:
        sampled = [sample_points(images.maps[tap], images, images.specs[tap].extent) for tap in self.taps]
        return torch.cat(sampled, 1)


def feature_distance(
    predicted: Float[Tensor, "points channels"], actual: Float[Tensor, "points channels"]
) -> Float[Tensor, ""]:
    """Returns the mean distance of both sides, each of unit length per point; 0 without points."""
    distances = (normalize(predicted, dim=1) - normalize(actual, dim=1)).norm(dim=1)
    return mean_over_processes(distances.sum(), len(distances))


def pretraining_losses(network: PretrainingNetwork, batch: StepBatch, settings: TrainSettings) -> Losses:
    """Runs the network on each side of ``batch``, which is on its device; the losses of both sides are added.

    With a source, ``settings.target_norms`` says which statistics normalise the target; the target alone has its own.
    """
    sides: Terms = {}
    if batch.source is not None:
        sides["distance"] = (1.0, feature_distance(*network(batch.source)))
    if batch.target is not None:
        frozen = settings.target_norms == "source" and batch.source is not None
        with frozen_statistics(network) if frozen else nullcontext():
            sides["distance_target"] = (1.0, feature_distance(*network(batch.target)))
    return Losses.weighted(sides)
