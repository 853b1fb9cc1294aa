"""Distance of an image's features from those of the training images, and the confidence in the image."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .parallel import total

__all__ = ["ImageStatistics"]

FAR = 2.0  #: distance up to which an image has full weight
FLOOR = 1e-4  #: lower bound of a standard deviation


class ImageStatistics(nn.Module):
    """Mean and standard deviation, over the source images in training, of each channel's mean and deviation.

    They are buffers, stored in checkpoints. ``update`` adds a batch, that of all processes.
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
        """Adds the images of a batch (Chan's parallel update, in float64)."""
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
        """Returns the root mean square z-score of an image over all measures, about 1 for source images.

        It is 1 for all images until two were added.
        """
        deviation = (self.squares / self.count.clamp(min=1)).sqrt() + FLOOR
        scores = (measures.double() - self.mean) / deviation
        found = scores.square().mean(1).sqrt().to(measures.dtype)
        return found.where(self.count >= 2, 1.0)  # not an if: it would synchronise with the GPU

    def weights(self, measures: Float[Tensor, "views measures"]) -> Float[Tensor, "views"]:
        """Returns min(1, FAR / distance): the weight of an image in the fusion of predictions."""
        return (FAR / self.distance(measures).clamp(min=FAR)).to(measures.dtype)
