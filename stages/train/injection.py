"""Injection: adds the image features at a point's pixel to the 3D network's features of its voxel.

For voxel v of sample s: skip_v += k_s (W mean_p f_p + b), the mean over the voxel's points that a view shows; 0 if no
view shows one. W and b are initialised to 0, so an untrained network is the LiDAR-only one. In training, k_s is 0 with
probability ``camera_dropout``: a whole sample is trained without its camera, so the network works with and without one.
"""

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from .parallel import rand_per_sample
from .sparse import SparseTensor

__all__ = ["Injection", "voxel_means"]


class Injection(nn.Module):
    """Adds point features [P, ``in_channels``] to voxel features of ``out_channels``."""

    def __init__(self, *, in_channels: int, out_channels: int, camera_dropout: float) -> None:
        super().__init__()
        self.camera_dropout = camera_dropout
        self.project = nn.Linear(in_channels, out_channels)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(
        self,
        x: SparseTensor,
        values: Float[Tensor, "points channels"],
        seen: Bool[Tensor, "points"],
        point_to_voxel: Int64[Tensor, "points"],
    ) -> SparseTensor:
        """Returns ``x`` with the projected ``values`` of the ``seen`` points added to their voxels."""
        means, shown = voxel_means(values, seen, point_to_voxel, len(x.features))
        if self.training and self.camera_dropout:
            kept = rand_per_sample(x.batch_size, shown.device) >= self.camera_dropout
            shown = shown * kept[x.sample.long()].unsqueeze(1)
        added = self.project(means) * shown
        return x.replace(x.features + added.to(x.features.dtype))


def voxel_means(
    values: Float[Tensor, "points channels"],
    seen: Bool[Tensor, "points"],
    point_to_voxel: Int64[Tensor, "points"],
    voxels: int,
) -> tuple[Float[Tensor, "voxels channels"], Float[Tensor, "voxels 1"]]:
    """Returns the mean of ``values`` over the ``seen`` points of each voxel, and 1 if there are any, else 0."""
    weight = seen.to(values.dtype).unsqueeze(1)
    count = weight.new_zeros(voxels, 1).index_add(0, point_to_voxel, weight)
    total = values.new_zeros(voxels, values.shape[1]).index_add(0, point_to_voxel, values * weight)
    return total / count.clamp(min=1), (count > 0).to(values.dtype)
