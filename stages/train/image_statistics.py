"""How far an image's features are from those that the network was trained on, and how far it may be trusted."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .parallel import total

__all__ = ["ImageStatistics"]

FAR = 2.0  #: a distance up to which an image has its full weight
FLOOR = 1e-4  #: of a deviation


class ImageStatistics(nn.Module):
    """Mean and deviation, over the images of the source seen in training, of each channel's mean and deviation.

    They are buffers of the checkpoint. ``update`` counts a batch in; with several processes that of all of them.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, measures: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(measures, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(measures, dtype=torch.float64))

    @torch.no_grad()
    def update(self, measures: Float[Tensor, "views measures"]) -> None:
        """Count the images of a batch in (Chan's update, in float64, around the batch's own mean)."""
        values = measures.detach().double()
        sums = total(torch.cat([values.sum(0), values.new_tensor([len(values)])]))
        added = sums[-1]
        mean = sums[:-1] / added.clamp(min=1)
        squares = total((values - mean).square().sum(0))
        count = self.count + added
        shift = mean - self.mean
        self.squares += squares + shift.square() * self.count * added / count.clamp(min=1)
        self.mean += shift * added / count.clamp(min=1)
        self.count.copy_(count)

    def distance(self, measures: Float[Tensor, "views measures"]) -> Float[Tensor, "views"]:
        """Root mean square over all measures of how many deviations an image is from the mean: about 1 on the source.

        1 for every image before any was counted.
        """
        deviation = (self.squares / self.count.clamp(min=1)).sqrt() + FLOOR
        scores = (measures.double() - self.mean) / deviation
        found = scores.square().mean(1).sqrt().to(measures.dtype)
        return torch.where(self.count < 2, torch.ones_like(found), found)  # no branch: it would wait for a GPU

    def weights(self, measures: Float[Tensor, "views measures"]) -> Float[Tensor, "views"]:
        """min(1, FAR / distance): how much the reading of an image counts in the fusion of predictions."""
        return (FAR / self.distance(measures).clamp(min=FAR)).to(measures.dtype)
