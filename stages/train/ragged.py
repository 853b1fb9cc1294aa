"""Rows that belong to samples of different length, laid out as a padded batch and back.

Voxels, agents and views all come as one long list with a sample number a row. Attention wants [samples, longest, C]
and a mask; the way back drops the padding. No row of one sample can meet a row of another.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor

__all__ = ["Ragged"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ragged:
    """The layout of R rows over ``samples`` samples, of which the one with most rows has ``longest``.

    ``mask`` tells rows from padding. A sample without rows keeps one padding slot open, so that attention over it is
    over a zero row and never over nothing (which would be NaN). ``slot`` is each row's place in the flattened padded
    batch; ``is_whole`` says that there is one sample and so nothing to pad.
    """

    samples: int
    longest: int
    slot: Int64[Tensor, "rows"]
    mask: Bool[Tensor, "samples longest"]
    is_whole: bool

    @classmethod
    def of(cls, sample: Integer[Tensor, "rows"], samples: int) -> "Ragged":
        """The layout of rows that belong to ``sample`` each, in any order.

        On a GPU it waits for the device, so make it with the batch.
        """
        sample = sample.long()
        counts = sample.new_zeros(samples).index_add(0, sample, torch.ones_like(sample))
        longest = max(int(counts.max()), 1)
        order = sample.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        place = torch.empty_like(order)
        place[order] = torch.arange(len(sample), device=sample.device) - starts[sample[order]]
        return cls(
            samples=samples,
            longest=longest,
            slot=sample * longest + place,
            mask=torch.arange(longest, device=sample.device) < counts.clamp(min=1).unsqueeze(1),
            is_whole=samples == 1 and len(sample) > 0,
        )

    def pad(self, rows: Float[Tensor, "rows channels"]) -> Float[Tensor, "samples longest channels"]:
        """Lay rows out by sample, zeros behind them."""
        if self.is_whole:
            return rows.unsqueeze(0)
        padded = rows.new_zeros(self.samples * self.longest, rows.shape[1])
        return padded.index_copy(0, self.slot, rows).view(self.samples, self.longest, -1)

    def unpad(self, padded: Float[Tensor, "samples longest channels"]) -> Float[Tensor, "rows channels"]:
        """Bring padded values back to the rows, in their order."""
        if self.is_whole:
            return padded.squeeze(0)
        return padded.reshape(self.samples * self.longest, -1).index_select(0, self.slot)
