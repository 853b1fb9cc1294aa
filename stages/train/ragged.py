"""Rows that belong to samples of different length, laid out as a padded batch and back.

Voxels, agents and views all come as one long list with a sample number a row. Attention wants [samples, longest, C]
and a mask; the way back drops the padding. No row of one sample can meet a row of another.
"""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

__all__ = ["Ragged"]


class Ragged:
    """The layout of R rows over ``samples`` samples; rows need not be sorted.

    ``mask`` [samples, longest] tells rows from padding. A sample without rows keeps one padding slot open, so that
    attention over it is over a zero row and never over nothing (which would be NaN).
    """

    def __init__(self, sample: Integer[Tensor, "rows"], samples: int) -> None:
        sample = sample.long()
        counts = torch.bincount(sample, minlength=samples)
        self.samples = samples
        self.longest = max(int(counts.max()), 1)
        order = sample.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        place = torch.empty_like(order)
        place[order] = torch.arange(len(sample), device=sample.device) - starts[sample[order]]
        self._slot = sample * self.longest + place
        self._is_whole = samples == 1 and len(sample) > 0
        self.mask: Bool[Tensor, "samples longest"] = torch.arange(self.longest, device=sample.device) < counts.clamp(
            min=1
        ).unsqueeze(1)

    def pad(self, rows: Float[Tensor, "rows channels"]) -> Float[Tensor, "samples longest channels"]:
        """Lay rows out by sample, zeros behind them."""
        if self._is_whole:
            return rows.unsqueeze(0)
        padded = rows.new_zeros(self.samples * self.longest, rows.shape[1])
        return padded.index_copy(0, self._slot, rows).view(self.samples, self.longest, -1)

    def unpad(self, padded: Float[Tensor, "samples longest channels"]) -> Float[Tensor, "rows channels"]:
        """Bring padded values back to the rows, in their order."""
        if self._is_whole:
            return padded.squeeze(0)
        return padded.reshape(self.samples * self.longest, -1).index_select(0, self._slot)
