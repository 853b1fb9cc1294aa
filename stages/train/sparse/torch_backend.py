"""Sparse convolution in plain PyTorch: gather, matrix multiplication per kernel cell, sum over sorted segments.

It is the reference and the default on the CPU. Sums are in the fixed order of the segments, so it is deterministic.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding_bag

from .maps import KernelMap, Segments
from .tensor import SparseTensor

__all__ = ["TorchBackend"]


class TorchBackend:
    """Backend for any device and floating dtype of PyTorch; see ``Backend``."""

    name = "torch"

    def submanifold(self, x: SparseTensor, weight: Float[Tensor, "out k k k in"]) -> SparseTensor:
        """See ``Backend.submanifold``."""
        pairs = x.maps.submanifold(x.level, weight.shape[1], x.indices, x.spatial_shape)
        return x.replace(_convolve(x, weight, pairs, inverse=False))

    def down(self, x: SparseTensor, weight: Float[Tensor, "out 2 2 2 in"]) -> SparseTensor:
        """See ``Backend.down``."""
        pairs = x.maps.strided(x.level, x.indices, x.spatial_shape)
        return SparseTensor(
            features=_convolve(x, weight, pairs, inverse=False),
            indices=pairs.target_indices,
            spatial_shape=pairs.target_shape,
            batch_size=x.batch_size,
            maps=x.maps,
            level=x.level + 1,
        )

    def inverse(self, x: SparseTensor, weight: Float[Tensor, "out 2 2 2 in"]) -> SparseTensor:
        """See ``Backend.inverse``."""
        pairs: KernelMap = x.maps.entry_of_down("strided", x.level)
        return SparseTensor(
            features=_convolve(x, weight, pairs, inverse=True),
            indices=pairs.source_indices,
            spatial_shape=pairs.source_shape,
            batch_size=x.batch_size,
            maps=x.maps,
            level=x.level - 1,
        )


def _convolve(x: SparseTensor, weight: Float[Tensor, "out k k k in"], pairs: KernelMap, *, inverse: bool) -> Tensor:
    by_cell = weight.flatten(1, 3).permute(1, 2, 0).contiguous()  # [cells, in, out] for the matrix products
    return _GatherMultiplyAdd.apply(x.features, by_cell, pairs, inverse)  # type: ignore[no-untyped-call]


class _GatherMultiplyAdd(torch.autograd.Function):
    """``y[target] += x[source] @ weight[cell]`` over the pairs of a map, or with source and target swapped."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "inputs c"], weight: Float[Tensor, "cells c d"], pairs: KernelMap, inverse: bool
    ) -> Float[Tensor, "outputs d"]:
        source, _, into_target = _sides(pairs, inverse)
        ctx.pairs, ctx.inverse = pairs, inverse
        ctx.save_for_backward(x, weight)
        products = x.new_empty(len(source), weight.shape[2])
        for cell, first, last in _spans(pairs):
            torch.mm(x.index_select(0, source[first:last]), weight[cell], out=products[first:last])
        return _add(products, into_target)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        source, target, _ = _sides(ctx.pairs, ctx.inverse)
        into_source = _sides(ctx.pairs, not ctx.inverse)[2]
        grad = grads[0].contiguous()
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        products = x.new_empty(len(source), weight.shape[1]) if wants_x else None
        weight_grad = torch.zeros_like(weight) if wants_weight else None
        for cell, first, last in _spans(ctx.pairs):
            gathered = grad.index_select(0, target[first:last])
            if products is not None:
                torch.mm(gathered, weight[cell].t(), out=products[first:last])
            if weight_grad is not None:
                torch.mm(x.index_select(0, source[first:last]).t(), gathered, out=weight_grad[cell])
        return (None if products is None else _add(products, into_source)), weight_grad, None, None


def _sides(pairs: KernelMap, inverse: bool) -> tuple[Tensor, Tensor, Segments]:
    """Returns the rows to read, the rows to write, and the segments to sum into the latter."""
    if inverse:
        return pairs.target, pairs.source, pairs.by_source
    return pairs.source, pairs.target, pairs.by_target


def _spans(pairs: KernelMap) -> list[tuple[int, int, int]]:
    """Returns (cell, first pair, end) of each kernel cell that has pairs."""
    spans, first = [], 0
    for cell, count in enumerate(pairs.counts):
        if count:
            spans.append((cell, first, first + count))
        first += count
    return spans


def _add(products: Float[Tensor, "pairs d"], segments: Segments) -> Float[Tensor, "rows d"]:
    """Sum each row's products; ``embedding_bag`` is a parallel segment sum on every device."""
    return embedding_bag(segments.order, products, segments.starts, mode="sum", include_last_offset=True)
