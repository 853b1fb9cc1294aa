"""The whole network of stage two: 2D branch, sparse U-Net, object agent queries and the interface between them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ...cache.schema import TapSpec
from ...errors import ConfigError, RunError, nearest
from .batch import Batch, BatchPlan
from .decoupling import low_rank
from .image_branch import ImageBranch
from .images import ImageBatch
from .interface import QueryInterface, StageRefiner
from .queries import ImageQueries, VoxelQueries
from .ragged import Ragged
from .settings import FusionSettings, ModelSettings
from .sparse import SparseTensor, make_backend
from .unet3d import SpUNet

__all__ = ["Network", "NetworkOutput", "choose_taps"]

RGB = "rgb"


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkOutput:
    """Logits a point, and what the losses of the fusion compare; parts that a variant lacks are None or empty.

    ``refined`` pairs, for each decoder stage, the voxel features refined by Q3 with those refined by Q3'; ``teacher``
    are the 3D head's logits on the last of the latter, where the head itself reads the former. ``queries`` pairs Q_a
    with the low-rank Q_b. All but the 3D logits exist only with images, and these three only in training.
    ``logits_lidar`` are 3D logits that no image has touched; ``image_weight``, 0 to 1, is how far the images that show a
    point may be trusted, and 0 where none does.
    """

    logits_3d: Float[Tensor, "points classes"]
    auxiliary_3d: Float[Tensor, "points classes"] | None
    logits_2d: Float[Tensor, "points classes"] | None
    auxiliary_2d: Float[Tensor, "points classes"] | None
    refined: tuple[tuple[Tensor, Tensor], ...]
    teacher: Float[Tensor, "points classes"] | None
    queries: tuple[Tensor, Tensor] | None
    logits_lidar: Float[Tensor, "points classes"] | None = None
    image_weight: Float[Tensor, "points"] | None = None

    def in_float32(self) -> "NetworkOutput":
        """The same in float32, as losses and scores want it."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return NetworkOutput(**tree_map_only(Tensor, Tensor.float, parts))


def choose_taps(fusion: FusionSettings, available: Mapping[str, TapSpec]) -> dict[str, TapSpec]:
    """The taps that ``fusion`` asks for, in its order.

    Raises:
        ConfigError: a tap is not among those the features were extracted with, or none is left to attend to.
    """
    if not fusion.image:
        return {}
    names = fusion.taps if fusion.taps is not None else tuple(available)
    for name in names:
        if name not in available:
            raise ConfigError(f"fusion.taps names '{name}', which the features do not have; {nearest(name, available)}")
    if fusion.interface and not set(names) - {RGB}:
        raise ConfigError(
            f"fusion.taps {list(names)} holds no tap of the diffusion model, so there are no agents; add one, or set"
            " fusion.variant=image"
        )
    return {name: available[name] for name in names}


class Network(nn.Module):
    """Points and images to class logits a point, as the settings say.

    ``taps`` are the chosen ones with their channels (map sizes may differ from source to source), ``cameras`` the
    number of cameras of the index it is trained on. ``precision`` is that of products in training, and may be set;
    weights and outputs are in float32, and so is everything in evaluation. ``prior`` is that of the classes in
    training, for the fusion of its predictions, where it is known.
    """

    prior: Float64[np.ndarray, "classes"] | None = None

    def __init__(
        self,
        *,
        model: ModelSettings,
        fusion: FusionSettings,
        classes: tuple[str, ...],
        taps: Mapping[str, TapSpec],
        cameras: int,
        device: torch.device,
    ) -> None:
        super().__init__()
        if fusion.image != bool(taps):
            raise ConfigError(f"fusion.variant={fusion.variant} does not fit {len(taps)} taps of image features")
        self.precision = torch.float32
        self.model, self.fusion, self.classes, self.cameras = model, fusion, classes, cameras
        self.tap_channels = {name: spec.channels for name, spec in taps.items()}
        backend = make_backend(model.backend, device)
        self.backend = backend.name
        self.unet = SpUNet(in_channels=1, preset=model.preset, backend=backend)
        self.head_3d = nn.Linear(self.unet.out_channels, len(classes))
        if fusion.image:
            self.image_branch = ImageBranch(tap_channels=self.tap_channels, channels=fusion.image_channels)
            self.head_2d = nn.Linear(fusion.image_channels, len(classes))
            self.auxiliary_2d = nn.Linear(fusion.image_channels, len(classes))
            self.auxiliary_3d = nn.Linear(self.unet.out_channels, len(classes))
        if fusion.queries:
            self._add_queries(fusion)
        self.to(device)

    def _add_queries(self, fusion: FusionSettings) -> None:
        width = fusion.query_channels
        self.voxel_queries = VoxelQueries(
            stage_channels=self.unet.encoder_channels, tokens=fusion.tokens, channels=width, drop_path=fusion.drop_path
        )
        self.refiners = nn.ModuleList(
            StageRefiner(query_channels=width, voxel_channels=channels) for channels in self.unet.decoder_channels
        )
        if fusion.interface:
            self.image_queries = ImageQueries(
                tap_channels={tap: channels for tap, channels in self.tap_channels.items() if tap != RGB},
                tokens=fusion.tokens,
                channels=width,
                cameras=self.cameras,
                from_agents=fusion.keys == "agents",
                drop_path=fusion.drop_path,
            )
            self.interface = QueryInterface(channels=width, scale=fusion.interface_scale)

    @property
    def plan(self) -> BatchPlan:
        """What its batches must hold."""
        return BatchPlan(model=self.model, taps=tuple(self.tap_channels), kernel_maps=self.backend == "torch")

    @property
    def needs_images(self) -> bool:
        """Whether the 3D prediction itself depends on images."""
        return self.fusion.needs_images

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return self.head_3d.weight.device

    def forward(self, batch: Batch) -> NetworkOutput:
        """Run a batch that lies on the network's device; without images, the 3D branch alone.

        Raises:
            RunError: the batch has no images and the 3D head needs them.
        """
        images = batch.images.prepared(normalise=self.fusion.normalise) if batch.images is not None else None
        if images is None and self.needs_images:
            raise RunError(
                "This network's 3D head reads features refined by the image's agents (fusion.head=refine), and the"
                " batch has no images; hand in their features, or train with fusion.head=distil"
            )
        if not self.training or self.precision == torch.float32:
            return self._run(batch, images)
        with torch.autocast(self.device.type, self.precision):
            return self._run(batch, images).in_float32()

    def _run(self, batch: Batch, images: ImageBatch | None) -> NetworkOutput:
        encoded = self.unet.encode(batch.voxels)
        decoder = _Decoder(self, encoded, images)
        voxels = self.unet.decode(encoded, decoder.refine if self.fusion.queries else None).features
        points = self.image_branch(images, len(batch.labels)) if images is not None else None
        rows = batch.point_to_voxel
        return NetworkOutput(
            logits_3d=self.head_3d(voxels)[rows],
            auxiliary_3d=self.auxiliary_3d(voxels)[rows] if points is not None else None,
            logits_2d=self.head_2d(points) if points is not None else None,
            auxiliary_2d=self.auxiliary_2d(points) if points is not None else None,
            refined=tuple(decoder.refined),
            teacher=self.head_3d(decoder.refined[-1][1])[rows] if decoder.refined and not self.needs_images else None,
            queries=decoder.queries,
        )


class _Decoder:
    """What the decoder's stages share in one forward pass: the queries, and the pairs of refined features.

    Each refinement is computed only where someone reads it: both in training, else the one that the heads read.
    """

    def __init__(self, network: Network, encoded: list[SparseTensor], images: ImageBatch | None) -> None:
        self.network = network
        self.refined: list[tuple[Tensor, Tensor]] = []
        self.queries: tuple[Tensor, Tensor] | None = None
        self.own: Tensor | None = None
        self.met: Tensor | None = None
        fusion = network.fusion
        if not fusion.queries:
            return
        self.own = network.voxel_queries(encoded[1:])
        if fusion.interface and images is not None and (network.training or network.needs_images):
            semantic, other = network.image_queries(images, encoded[0].batch_size)
            self.met = network.interface(self.own, semantic)
            if network.training:
                self.queries = semantic, low_rank(other, fusion.rank)

    def refine(self, stage: int, x: SparseTensor) -> Tensor:
        """The features that decoder ``stage`` goes on with."""
        refiner, layout = self.network.refiners[stage], Ragged(x.sample, x.batch_size)
        if self.met is None:
            return refiner(x.features, layout, self.own)
        met: Tensor = refiner(x.features, layout, self.met)
        if not self.network.training:
            return met
        own: Tensor = refiner(x.features, layout, self.own)
        self.refined.append((own, met))
        return met if self.network.needs_images else own
