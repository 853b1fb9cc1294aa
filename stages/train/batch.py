"""Collates frames into a batch: voxels with their kernel maps, and images with their features."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from ...cache.schema import TapSpec
from ...errors import DataError
from ..datasets.frames import Frame, join_classless
from ..datasets.index import FrameIndex
from ..datasets.labels import IGNORE
from .domain import Domain
from .features import ReadFeatures
from .images import ImageBatch
from .ragged import Ragged
from .settings import MAX_SCALE, ModelSettings
from .sparse import KernelMaps, SparseTensor, build_kernel_maps
from .unet3d import LEVELS, STEM_KERNEL
from .voxels import voxelise

__all__ = ["Batch", "BatchPlan", "PlacedFrame", "cloud_batch", "collate", "to_corner"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """What a batch contains: the voxel grid, and the taps to read (empty: no images).

    ``memberships``: read which agents each pixel belongs to. ``depths``: compute the depth of each projection.
    ``kernel_maps``: build the kernel maps with the batch (for a backend that does not build its own). ``layouts``:
    build the padded layouts of the voxels with them.
    """

    model: ModelSettings
    taps: tuple[str, ...]
    memberships: bool = False
    depths: bool = False
    kernel_maps: bool = True
    layouts: bool = False

    @property
    def cube(self) -> float:
        """Edge of the voxel cube in metres."""
        return self.model.voxel_size * self.model.full_scale


@dataclass(frozen=True, kw_only=True)
class PlacedFrame:
    """A frame in the voxel cube: ``points`` [P, 3] are the rows of ``frame.points``, moved, in metres (float32).

    ``cameras`` and ``views`` give the camera of each image in the index, and its view in the feature source.
    ``outside`` counts the points that ``inside`` has dropped.
    """

    key: str
    frame: Frame
    points: Float32[np.ndarray, "points 3"]
    cameras: Int64[np.ndarray, "views"]
    views: Int64[np.ndarray, "views"]
    outside: int = 0

    def inside(self, cube: float) -> "PlacedFrame":
        """Returns the frame without the points outside the cube, their labels and their projections.

        ``cube`` is its edge in metres; it begins at 0.
        """
        kept = ((self.points >= 0) & (self.points < cube)).all(1)
        if kept.all():
            return self
        return replace(self, frame=self.frame.choose(kept), points=self.points[kept], outside=int((~kept).sum()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B samples with P points in total. Point ``p`` lies in voxel ``point_to_voxel[p]`` of ``voxels``.

    ``labels`` are class ids or -100; ``pseudo_labels`` the same for the 2D and the 3D head, or None; ``sample`` is the
    index of each point's sample; ``images`` is None if no images are used. ``shown`` marks the points that are visible
    in an image; it is None if all are, or if no images are used. ``outside`` counts the points of the frames that lay
    outside the voxel cube and were dropped. ``classless`` marks points of no class, which get no pseudo label from a
    teacher either; None if there are none. ``whole``: the batch is a whole cloud (``cloud_batch``).
    """

    keys: tuple[str, ...]
    voxels: SparseTensor
    point_to_voxel: Int64[Tensor, "points"]
    sample: Int64[Tensor, "points"]
    labels: Int64[Tensor, "points"]
    images: ImageBatch | None
    pseudo_labels: Int64[Tensor, "points 2"] | None = None
    shown: Bool[Tensor, "points"] | None = None
    outside: int = 0
    classless: Bool[Tensor, "points"] | None = None
    whole: bool = False


def collate(placed: Sequence[PlacedFrame], domain: Domain, plan: BatchPlan, read: ReadFeatures | None = None) -> Batch:
    """Voxelises the samples together, builds the kernel maps, and reads the images' features in one call.

    ``read`` reads the features instead of ``domain.features.read``, into a reused buffer for example. A frame without
    points is left out, with a warning.

    Raises:
        DataError: no frame has any points, or a cloud is too large to be in metres (the message names the frames); or
            ``plan`` has taps and the domain no features.
        CacheError: an image's features are missing.
    """
    keys, outside = tuple(each.key for each in placed), sum(each.outside for each in placed)
    placed = [each for each in placed if len(each.points)]
    if not placed:
        raise DataError(
            f"No point of frame {', '.join(keys)} is seen by a camera and inside the voxel cube of {plan.cube:g} m;"
            " check its calibration, or raise model.full_scale"
        )
    kept = tuple(each.key for each in placed)
    if len(kept) < len(keys):
        left_out = ", ".join(key for key in keys if key not in kept)
        log.warning("No point of frame %s is seen by a camera and inside the cube: left out of the batch", left_out)
    sample = torch.cat([torch.full((len(each.points),), index) for index, each in enumerate(placed)])
    points = torch.from_numpy(np.concatenate([each.points for each in placed]))
    voxels, point_to_voxel = _voxels(points, sample, plan, kept)
    pseudo = [each.frame.pseudo for each in placed if each.frame.pseudo is not None]
    classless = join_classless([each.frame for each in placed])
    images = _images(placed, domain, plan, read) if plan.taps else None
    return Batch(
        keys=kept,
        voxels=voxels,
        point_to_voxel=point_to_voxel,
        sample=sample,
        labels=torch.from_numpy(np.concatenate([each.frame.labels for each in placed])),
        images=images,
        pseudo_labels=torch.from_numpy(np.concatenate(pseudo)) if pseudo else None,
        shown=_shown(images) if images is not None else None,
        outside=outside,
        classless=None if classless is None else torch.from_numpy(classless),
    )


def cloud_batch(points: Float[np.ndarray, "points 3"], key: str, plan: BatchPlan) -> Batch:
    """Makes a batch of one cloud without labels and images; ``points`` are in metres, relative to any origin.

    Points far from the origin should be float64: they are rounded to float32 after they are moved to the corner.

    Raises:
        DataError: there are no points, some are NaN, or the cloud is too large to be in metres.
    """
    sample = torch.zeros(len(points), dtype=torch.int64)
    voxels, point_to_voxel = _voxels(torch.from_numpy(to_corner(points).astype(np.float32)), sample, plan, (key,))
    return Batch(
        keys=(key,),
        voxels=voxels,
        point_to_voxel=point_to_voxel,
        sample=sample,
        labels=torch.full_like(sample, IGNORE),
        images=None,
        whole=True,
    )


def to_corner(points: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "points 3"]:
    """Returns ``points`` moved so that their smallest x, y and z are 0, as in the voxel grid without augmentation."""
    with np.errstate(over="ignore"):  # a cloud too wide for float32 is rejected later, by name
        return points - points.min(0) if len(points) else points


def _voxels(
    points: Float32[Tensor, "points 3"], sample: Int64[Tensor, "points"], plan: BatchPlan, keys: tuple[str, ...]
) -> tuple[SparseTensor, Int64[Tensor, "points"]]:
    """Returns the voxels of the clouds, with kernel maps if the plan asks for them, and the voxel of each point.

    The grid is as wide as the cube, or wider if the clouds are. The network's output does not depend on its width.
    """
    size, cells = plan.model.voxel_size, plan.model.full_scale
    last = torch.floor(points.max() / size) if len(points) else torch.zeros(())
    if last.isfinite():  # otherwise voxelise reports the points
        if last >= MAX_SCALE:
            raise DataError(
                f"The cloud of {', '.join(keys)} is {float(points.max()):.4g} m wide, more than {MAX_SCALE} voxels of"
                f" {size} m; look for points that are far off, or for coordinates that are not in metres"
            )
        cells = max(cells, int(last) + 1)
    indices, point_to_voxel = voxelise(points, sample, voxel_size=size, full_scale=cells, batch_size=len(keys))
    shape = (cells, cells, cells)
    if plan.kernel_maps:
        maps = build_kernel_maps(
            indices, shape, batch_size=len(keys), levels=LEVELS, stem_kernel=STEM_KERNEL, layouts=plan.layouts
        )
    else:
        maps = KernelMaps(indices, shape, len(keys))
    return SparseTensor.create(features=torch.ones(len(indices), 1), maps=maps), point_to_voxel


def _images(placed: Sequence[PlacedFrame], domain: Domain, plan: BatchPlan, read: ReadFeatures | None) -> ImageBatch:
    source, taps = domain.features, plan.taps
    if source is None:
        raise DataError("The batch needs image features, but the domain has none; pass a feature source")
    rows = [each.frame.image_rows * len(source.views) + each.views for each in placed]
    features = (read or source.read)([int(row) for row in np.concatenate(rows)])
    first_point = _offsets([len(each.points) for each in placed])
    first_view = _offsets([len(each.frame.image_rows) for each in placed])
    specs: dict[str, TapSpec] = {tap: source.taps[tap] for tap in taps}
    sample = torch.cat([torch.full((len(each.frame.image_rows),), index) for index, each in enumerate(placed)])
    point = _tensor(_joined([each.frame.projection_point for each in placed], first_point))
    return ImageBatch(
        specs=specs,
        maps={tap: _tensor(features.maps[tap]) for tap in taps},
        agents={tap: _tensor(features.agents[tap]) for tap in taps if tap in features.agents},
        geometry=_tensor(features.geometry),
        scales={name: _tensor(values) for name, values in features.scales.items() if name.partition("/")[2] in taps},
        sample=sample,
        camera=_tensor(np.concatenate([each.cameras for each in placed])),
        projection_point=point,
        projection_view=_tensor(_joined([each.frame.projection_view for each in placed], first_view)),
        projection_uv=_tensor(np.concatenate([each.frame.projection_uv for each in placed])),
        view_counts=torch.bincount(point, minlength=sum(len(each.points) for each in placed)),
        layout=Ragged.of(sample, len(placed)),
        grid=source.grid,
        assignment=None if features.assignment is None else _tensor(features.assignment),
        membership=None if features.membership is None else _tensor(features.membership),
        projection_depth=_depths([each.frame for each in placed], domain.index) if plan.depths else None,
    )


def _depths(frames: Sequence[Frame], index: FrameIndex) -> Float32[Tensor, "projections"]:
    """Returns the depth of each projection, in metres along its camera's optical axis."""
    depths = []
    for frame in frames:
        axis = index.images.camera_from_lidar[frame.image_rows][frame.projection_view, 2]
        depths.append((frame.points[frame.projection_point] * axis[:, :3]).sum(1) + axis[:, 3])
    return _tensor(np.concatenate(depths).astype(np.float32))


def _shown(images: ImageBatch) -> Bool[Tensor, "points"] | None:
    shown = images.view_counts > 0
    return None if shown.all() else shown


def _offsets(lengths: Sequence[int]) -> list[int]:
    return [sum(lengths[:index]) for index in range(len(lengths))]


def _joined(rows: Sequence[np.ndarray], offsets: Sequence[int]) -> Int64[np.ndarray, "rows"]:
    return np.concatenate([part + offset for part, offset in zip(rows, offsets, strict=True)])


def _tensor(values: np.ndarray) -> Tensor:
    """Returns a tensor that shares the array's memory, or a copy of a read-only array."""
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))
