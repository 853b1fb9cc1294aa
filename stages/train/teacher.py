"""The teacher in training: a moving average of the network that labels each batch of the target as it is trained on.

Pseudo labels from files are as good as the network that made them. Those of a teacher improve with the network, and
change slowly enough that errors of one step do not confirm themselves.
"""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from ..datasets.labels import IGNORE
from .batch import Batch
from .network import Network
from .parallel import total
from .pseudo_label_choice import CODES, HEADS, UNSURE, Candidates, thresholds

__all__ = ["Label", "Teacher"]


Label = Callable[[Network, Batch], Candidates]  #: predicts a batch that is on the network's device


class Teacher(nn.Module):
    """A copy of ``network`` whose weights are an exponential moving average (EMA) over the training steps.

    ``decay``, at least 0 and below 1, is the weight of the previous average in each step, and of the previous histogram
    in each batch.

    ``confidences`` is a histogram of the confidences of each head and class that decays with every batch; the
    thresholds of ``pseudo_label_choice`` are computed from it. Weights and histogram are part of a checkpoint.
    """

    confidences: Float64[Tensor, "heads classes codes"]

    def __init__(self, network: Network, label: Label, decay: float) -> None:
        super().__init__()
        self.network = deepcopy(network).eval().requires_grad_(requires_grad=False)
        self._label, self._decay = label, decay
        counts = torch.zeros(len(HEADS), len(network.classes), CODES, dtype=torch.float64, device=network.device)
        self.register_buffer("confidences", counts)

    @torch.no_grad()
    def label(self, batch: Batch) -> Int64[Tensor, "points 2"]:
        """Returns pseudo labels of a batch for the 2D and the 3D head, -100 where the teacher is not confident."""
        candidates = self._label(self.network, batch)
        counts = torch.from_numpy(candidates.histogram(len(self.network.classes)))
        self.confidences.mul_(self._decay).add_(total(counts.to(self.confidences)))
        labels = candidates.confident(thresholds(self.confidences.cpu().numpy())).astype(np.int64)
        return torch.from_numpy(np.where(labels == UNSURE, IGNORE, labels)).to(self.confidences.device)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Adds the weights of ``network`` after a step; its running statistics replace those of the teacher."""
        for ours, theirs in zip(self.network.parameters(), network.parameters(), strict=True):
            ours.lerp_(theirs, 1 - self._decay)
        for buffer, latest in zip(self.network.buffers(), network.buffers(), strict=True):
            buffer.copy_(latest)
