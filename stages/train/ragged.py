"""Converts rows of samples of different length to a padded batch and back.

Voxels, agents and views are stored as one list with a sample index per row. Attention needs [samples, longest, C] and a
mask; unpadding drops the padding. Rows of different samples never attend to each other.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor

__all__ = ["Ragged"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ragged:
    """The layout of R rows over ``samples`` samples, of which the one with most rows has ``longest``.

    ``mask`` is True for rows and False for padding. A sample without rows has one padding slot unmasked, because
    attention over no keys would be NaN. ``slot`` is each row's index in the flattened padded batch; ``is_whole``: there
    is one sample, so nothing needs padding.
    """

    samples: int
    longest: int
    slot: Int64[Tensor, "rows"]
    mask: Bool[Tensor, "samples longest"]
    is_whole: bool

    @classmethod
    def of(cls, sample: Integer[Tensor, "rows"], samples: int) -> "Ragged":
        """Returns the layout of rows whose sample indices are ``sample``, in any order.

        It synchronises with a GPU, so it is best computed with the batch.
        """
        sample = sample.long()
        counts = sample.new_zeros(samples).index_add(0, sample, torch.ones_like(sample))
        longest = max(int(counts.max()), 1)
        order = sample.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        offset = torch.empty_like(order)
        offset[order] = torch.arange(len(sample), device=sample.device) - starts[sample[order]]
        return cls(
            samples=samples,
            longest=longest,
            slot=sample * longest + offset,
            mask=torch.arange(longest, device=sample.device) < counts.clamp(min=1).unsqueeze(1),
            is_whole=samples == 1 and len(sample) > 0,
        )

    def pad(self, rows: Float[Tensor, "rows channels"]) -> Float[Tensor, "samples longest channels"]:
        """Pads rows by sample with zeros."""
        if self.is_whole:
            return rows.unsqueeze(0)
        padded = rows.new_zeros(self.samples * self.longest, rows.shape[1])
        return padded.index_copy(0, self.slot, rows).view(self.samples, self.longest, -1)

    def unpad(self, padded: Float[Tensor, "samples longest channels"]) -> Float[Tensor, "rows channels"]:
        """Returns padded values as rows in their original order."""
        if self.is_whole:
            return padded.squeeze(0)
        return padded.reshape(self.samples * self.longest, -1).index_select(0, self.slot)
