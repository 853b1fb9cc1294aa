"""The network of stage two: 2D branch, sparse U-Net, object agent queries and the interface between them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ...cache.schema import TapSpec
from ...errors import ConfigError, RunError, nearest
from .batch import Batch, BatchPlan
from .image_branch import ImageBranch
from .image_statistics import ImageStatistics
from .images import ImageBatch
from .injection import Injection, voxel_means
from .located_agents import AgentTokens, agents_at_points
from .queries import ImageQueries, VoxelQueries
from .query_attention import QueryInterface, StageRefiner, low_rank
from .settings import FusionSettings, ModelSettings
from .sparse import Backend, SparseTensor, make_backend
from .unet3d import LEVELS, LidarBranch, SpUNet, make_head

__all__ = ["Network", "NetworkOutput", "choose_taps"]

RGB = "rgb"
FLOOR = 0.01  #: of a query's attention to a voxel's agents, relative to uniform attention


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkOutput:
    """Logits of the points, and what the losses of the fusion compare; parts that a variant lacks are None or empty.

    ``refined`` has a pair for each decoder stage: the voxel features refined by the 3D queries Q3, and by the queries
    Q3', which have read the image queries. ``teacher`` are the 3D head's logits on the second features of the last
    stage; None if ``logits_3d`` are computed from these features (``fusion.head`` "refine"). ``queries`` are Q_a and
    the low-rank Q_b. ``refined``, ``teacher`` and ``queries`` are computed only in training or with ``complete``.
    ``logits_lidar`` are 3D logits that depend on no image. ``image_weight``, 0 to 1, is the confidence in the images
    that show a point, 0 if none does; ``statistics`` are those of ``ImageBatch``. Without images, only 3D logits are
    set.
    """

    logits_3d: Float[Tensor, "points classes"]
    auxiliary_3d: Float[Tensor, "points classes"] | None = None
    logits_2d: Float[Tensor, "points classes"] | None = None
    auxiliary_2d: Float[Tensor, "points classes"] | None = None
    refined: tuple[tuple[Tensor, Tensor], ...] = ()
    teacher: Float[Tensor, "points classes"] | None = None
    queries: tuple[Tensor, Tensor] | None = None
    logits_lidar: Float[Tensor, "points classes"] | None = None
    image_weight: Float[Tensor, "points"] | None = None
    statistics: Float[Tensor, "views measures"] | None = None

    def in_float32(self) -> "NetworkOutput":
        """Returns the output in float32, for losses and metrics."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return NetworkOutput(**tree_map_only(Tensor, Tensor.float, parts))


def choose_taps(fusion: FusionSettings, available: Mapping[str, TapSpec]) -> dict[str, TapSpec]:
    """Returns the taps that ``fusion`` selects, in its order.

    Raises:
        ConfigError: the features lack a selected tap, or no selected tap has agents although ``fusion`` reads them.
    """
    if not fusion.image:
        return {}
    names = fusion.taps if fusion.taps is not None else tuple(available)
    for name in names:
        if name not in available:
            raise ConfigError(f"fusion.taps names '{name}', which the features do not have; {nearest(name, available)}")
    if (fusion.interface or fusion.memberships) and not set(names) - {RGB}:
        raise ConfigError(
            f"fusion.taps {list(names)} holds no map of a network, so there are no agents; add one, or use no agents:"
            " fusion.context=none, fusion.inject=pixel and fusion.queries=none (or fusion.variant=image)"
        )
    return {name: available[name] for name in names}


class Network(nn.Module):
    """Maps points and images to class logits per point.

    ``taps`` are the selected taps with their channels (map sizes may differ between sources); ``cameras`` is the number
    of cameras of the index that it is trained on. ``precision`` is the autocast dtype in training and may be set;
    weights and outputs are float32, and so is everything in evaluation. ``prior`` is the class prior of the training
    labels, for the fusion of predictions, or None if unknown.
    """

    prior: Float64[np.ndarray, "classes"] | None = None
    frozen = False

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
        self.lidar_branch: LidarBranch | None = None
        self.unet = SpUNet(in_channels=1, preset=model.preset, backend=backend, norm=model.norm)
        self.head_3d = make_head(model.head, self.unet.out_channels, len(classes))
        if fusion.image:
            self.image_branch = ImageBranch(
                tap_channels=self.tap_channels,
                channels=fusion.image_channels,
                depth=fusion.reads_depth,
                depth_dropout=fusion.depth_dropout,
            )
            self.head_2d = nn.Linear(fusion.image_channels, len(classes))
            self.auxiliary_2d = nn.Linear(fusion.image_channels, len(classes))
            self.auxiliary_3d = nn.Linear(self.unet.out_channels, len(classes))
            self.image_statistics = ImageStatistics(2 * sum(self.tap_channels.values()))
        if fusion.variant == "full":
            self._add_context(fusion)
        if fusion.injects:
            self._add_injection(fusion, backend)
        if fusion.voxel_queries:
            self._add_queries(fusion)
        self.to(device)

    def _add_context(self, fusion: FusionSettings) -> None:
        """Adds what the 2D head reads besides the pixel's feature; it is initialised to zero."""
        width = fusion.image_channels
        taps = {tap: channels for tap, channels in self.tap_channels.items() if tap != RGB}
        if fusion.agent_tokens:
            self.agent_tokens = AgentTokens(tap_channels=taps, channels=width)
        if fusion.context != "none":
            self.read_context = nn.Linear(width, width)
            nn.init.zeros_(self.read_context.weight)
            nn.init.zeros_(self.read_context.bias)
        if fusion.context == "mlp":
            self.pixel_mlp = nn.Sequential(
                nn.Linear(width, 256),
                nn.GELU(),
                nn.Linear(256, 128),
                nn.GELU(),
                nn.Linear(128, width),
                nn.LayerNorm(width),
            )

    def _add_injection(self, fusion: FusionSettings, backend: Backend) -> None:
        width = fusion.image_channels
        read = {"pixel": width, "agents": width, "both": 2 * width, "softmax": len(self.classes), "xyz": 3}
        self.injection = Injection(
            in_channels=read[fusion.inject],
            out_channels=self.unet.stem_channels,
            camera_dropout=fusion.camera_dropout,
        )
        if fusion.lidar_branch:
            self.lidar_branch = LidarBranch(
                unet=self.unet,
                model=self.model,
                backend=backend,
                first=LEVELS - fusion.lidar_stages,
                classes=len(self.classes),
            )

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
        """What its batches must contain."""
        return BatchPlan(
            model=self.model,
            taps=tuple(self.tap_channels),
            memberships=self.fusion.memberships,
            depths=self.fusion.reads_depth,
            kernel_maps=self.backend == "torch",
            layouts=self.fusion.voxel_queries,
        )

    @property
    def needs_images(self) -> bool:
        """Whether the 3D prediction itself depends on images."""
        return self.fusion.needs_images

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def backbone(self) -> list[nn.Module]:
        """The parts of the 3D network below its heads."""
        branch = self.lidar_branch
        return [self.unet, *([branch.up, branch.decoder] if branch is not None else [])]

    def freeze_backbone(self) -> None:
        """Keeps the weights and the running statistics of the backbone as they are, in training too."""
        self.frozen = True
        for part in self.backbone:
            part.requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> "Network":
        """Sets training or evaluation mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        for part in self.backbone if self.frozen else []:
            part.eval()
        return self

    def truncated(self, matrices: Float[Tensor, "matrices rows channels"]) -> Float[Tensor, "matrices rows channels"]:
        """Returns agents or queries as the network reads them: of low rank if ``decoupling`` is "truncate"."""
        return low_rank(matrices, self.fusion.rank) if self.fusion.decoupling == "truncate" else matrices

    def forward(self, batch: Batch, *, complete: bool = False) -> NetworkOutput:
        """Runs a batch that is on the network's device; without images, only the 3D branch runs.

        ``complete`` also computes, in evaluation, the outputs that only losses use; nothing else changes.

        Raises:
            RunError: the batch has no images and the 3D head needs them.
        """
        images = batch.images.prepared(normalise=self.fusion.normalise) if batch.images is not None else None
        if images is None and self.needs_images:
            raise RunError(
                "This network's 3D head reads features refined by the image's agents (fusion.head=refine), and the"
                " batch has no images; pass their features, or train with fusion.head=distil"
            )
        if not self.training or self.precision == torch.float32:
            return self._run(batch, images, complete or self.training)
        with torch.autocast(self.device.type, self.precision):
            return self._run(batch, images, complete=True).in_float32()

    def _run(self, batch: Batch, images: ImageBatch | None, complete: bool) -> NetworkOutput:
        rows, fusion = batch.point_to_voxel, self.fusion
        read = self._read_images(images) if images is not None else None
        encoded = self.unet.encode(batch.voxels)
        decoder = _Decoder(self, batch, encoded, images, complete)
        refine = decoder.refine if fusion.voxel_queries else None
        first, x, lidar = 0, encoded[LEVELS], None
        if self.lidar_branch is not None:
            first = self.lidar_branch.first
            x = self.unet.decode(encoded, refine, last=first)
            lidar = self.lidar_branch(encoded, x)[rows]
        if read is None and lidar is not None:
            return NetworkOutput(logits_3d=lidar)
        if read is not None and fusion.injects:
            encoded = [self._inject(batch, encoded[0], read), *encoded[1:]]
        stages = [*encoded[: LEVELS - first], x, *encoded[LEVELS - first + 1 :]]
        voxels = self.unet.decode(stages, refine, first=first).features
        if read is None:
            return NetworkOutput(logits_3d=self.head_3d(voxels)[rows])
        return NetworkOutput(
            logits_3d=self.head_3d(voxels)[rows],
            auxiliary_3d=self.auxiliary_3d(voxels)[rows],
            logits_2d=read.logits,
            auxiliary_2d=self.auxiliary_2d(read.features),
            refined=tuple(decoder.refined),
            teacher=self.head_3d(decoder.refined[-1][1])[rows] if decoder.refined and not self.needs_images else None,
            queries=decoder.queries,
            logits_lidar=lidar,
            image_weight=read.weight,
            statistics=read.statistics,
        )

    def _read_images(self, images: ImageBatch) -> "_ImageReading":
        pixel = self.image_branch(images)
        agents = None
        if self.fusion.agent_tokens:
            agents = agents_at_points(self.truncated(self.agent_tokens(images)), images)
        features = pixel
        if self.fusion.variant == "full" and self.fusion.context != "none":
            features = pixel + self.read_context(agents if self.fusion.context == "agents" else self.pixel_mlp(pixel))
        if images.statistics is None:
            raise ValueError("These images are not prepared: they have no statistics")
        weights = self.image_statistics.weights(images.statistics)[images.projection_view]
        weight = images.mean_over_views(weights)
        return _ImageReading(
            pixel=pixel,
            agents=agents,
            features=features,
            logits=self.head_2d(features),
            seen=images.view_counts > 0,
            weight=weight,
            statistics=images.statistics,
        )

    def _inject(self, batch: Batch, stem: SparseTensor, read: "_ImageReading") -> SparseTensor:
        if self.fusion.inject == "softmax":
            values = read.logits.softmax(1)
        elif self.fusion.inject == "xyz":
            values = _relative_positions(batch.voxels)[batch.point_to_voxel]
        else:
            pixel = [read.pixel] if self.fusion.inject != "agents" else []
            agents = [read.agents] if self.fusion.inject != "pixel" and read.agents is not None else []
            values = torch.cat([*pixel, *agents], 1)
        return self.injection(stem, values, read.seen, batch.point_to_voxel)


@dataclass(frozen=True, kw_only=True, eq=False)
class _ImageReading:
    """Output of the image branch for the points; ``seen`` marks those an image shows, ``weight`` is its confidence."""

    pixel: Float[Tensor, "points channels"]
    agents: Float[Tensor, "points channels"] | None
    features: Float[Tensor, "points channels"]
    logits: Float[Tensor, "points classes"]
    seen: Bool[Tensor, "points"]
    weight: Float[Tensor, "points"]
    statistics: Tensor


def _relative_positions(voxels: SparseTensor) -> Float[Tensor, "voxels 3"]:
    """Returns the position of each voxel relative to the mean of its cloud, in units of 256 voxels."""
    position, sample = voxels.indices[:, 1:].float(), voxels.sample.long()
    count = position.new_zeros(voxels.batch_size).index_add(0, sample, torch.ones_like(position[:, 0])).clamp(min=1)
    mean = position.new_zeros(voxels.batch_size, 3).index_add(0, sample, position) / count.unsqueeze(1)
    return (position - mean[sample]) / 256


class _Decoder:
    """State that the decoder's stages share in one forward pass: the queries, and the pairs of refined features.

    ``plain_queries`` are the 3D queries Q3, ``refined_queries`` those refined by the image's queries, Q3'. If
    ``complete``, features are refined by both; otherwise only by those that the heads read.
    """

    def __init__(
        self,
        network: Network,
        batch: Batch,
        encoded: list[SparseTensor],
        images: ImageBatch | None,
        complete: bool,
    ) -> None:
        self.network, self.complete = network, complete
        self.bias: Tensor | None = None
        self.refined: list[tuple[Tensor, Tensor]] = []
        self.queries: tuple[Tensor, Tensor] | None = None
        self.plain_queries: Tensor | None = None
        self.refined_queries: Tensor | None = None
        fusion = network.fusion
        if not fusion.voxel_queries:
            return
        plain: Tensor = network.voxel_queries(encoded[1:])
        self.plain_queries = plain
        if fusion.interface and images is not None and (complete or network.needs_images):
            semantic, other = network.image_queries(images)
            semantic = network.truncated(semantic)
            self.refined_queries = network.interface(plain, semantic)
            if complete and fusion.decoupling == "loss":
                self.queries = semantic, low_rank(other, fusion.rank)
            if fusion.locate_queries:
                self.bias = self._attention_bias(batch, images, plain, semantic)

    def _attention_bias(self, batch: Batch, images: ImageBatch, plain: Tensor, semantic: Tensor) -> Tensor:
        """Returns log(N sum_i A_vi R_ji + FLOOR): how much query j attends to voxel v's agents; 0 without an image."""
        network = self.network
        to_queries = network.interface.attention(plain, semantic)
        to_agents = to_queries[images.sample] @ network.image_queries.attention(images)
        shares = agents_at_points(to_agents.transpose(1, 2).contiguous(), images) * to_agents.shape[2]
        means, shown = voxel_means(shares, images.view_counts > 0, batch.point_to_voxel, len(batch.voxels.features))
        return (means + FLOOR).log() * shown

    def refine(self, stage: int, x: SparseTensor) -> Tensor:
        """Returns the features that replace those of ``x`` at decoder ``stage``."""
        refiner, layout = self.network.refiners[stage], x.layout
        if self.refined_queries is None:
            return refiner(x.features, layout, self.plain_queries)
        refined: Tensor = refiner(x.features, layout, self.refined_queries, self.bias if stage == LEVELS - 1 else None)
        if not self.complete:
            return refined
        plain: Tensor = refiner(x.features, layout, self.plain_queries)
        self.refined.append((plain, refined))
        return refined if self.network.needs_images else plain
