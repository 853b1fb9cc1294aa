"""Object agent queries: learned tokens that aggregate an image or a point cloud by cross attention.

The tokens are parameters: each forward pass computes new queries from them per sample, without changing them. (The
released XDiff3D code overwrites its parameters in ``forward``, which leaks one sample into the next.)
"""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil, inf, sqrt
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .images import ImageBatch
from .parallel import rand_per_sample
from .sparse import SparseTensor

__all__ = ["HEADS", "ImageQueries", "QueryBlock", "StageMerge", "VoxelQueries"]

HEADS = 8
MLP_RATIO = 4
TOKEN_STD = 1.0  # distinct tokens, as in DETR; small ones have similar attention and collapse to one query
CAMERA_STD = 0.02
#: Initial gain: logits start with a standard deviation of about 2. Near 0, each token would get the keys' mean, which
#: is 0 after normalisation.
ATTENTION_GAIN = 1.5


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sample with probability ``rate`` and rescales the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Float[Tensor, "samples tokens channels"]) -> Float[Tensor, "samples tokens channels"]:
        """Returns the rescaled branch, or zeros for dropped samples."""
        if not self.training or not self.rate:
            return branch
        kept = rand_per_sample(len(branch), branch.device) >= self.rate
        return branch * kept[:, None, None] / (1 - self.rate)


class QueryBlock(nn.Module):
    """Pre-norm cross attention from tokens to keys and an MLP, both residual."""

    def __init__(self, *, channels: int, drop_path: float) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)  # a bias would shift a row's logits equally
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, MLP_RATIO * channels), nn.GELU(), nn.Linear(MLP_RATIO * channels, channels)
        )
        self.drop_path = DropPath(drop_path)
        for layer, gain in (
            (self.query, ATTENTION_GAIN),
            (self.key, ATTENTION_GAIN),
            (self.value, 1.0),
            (self.out, 1.0),
        ):
            nn.init.orthogonal_(layer.weight, gain)

    def forward(
        self,
        tokens: Float[Tensor, "tokens channels"],
        keys: Float[Tensor, "samples keys channels"],
        mask: Bool[Tensor, "samples keys"],
    ) -> Float[Tensor, "samples tokens channels"]:
        """Returns the queries of each sample from the same ``tokens``; keys where ``mask`` is False are ignored."""
        samples, _, channels = keys.shape
        query = _heads(self.query(self.norm_tokens(tokens)).unsqueeze(0)).expand(samples, -1, -1, -1)
        key, value = _heads(self.key(keys)), _heads(self.value(keys))
        gathered = scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        x = tokens + self.drop_path(self.out(gathered.transpose(1, 2).reshape(samples, -1, channels)))
        return x + self.drop_path(self.mlp(self.norm_mlp(x)))

    def attention(
        self,
        tokens: Float[Tensor, "tokens channels"],
        keys: Float[Tensor, "samples keys channels"],
        mask: Bool[Tensor, "samples keys"],
    ) -> Float[Tensor, "samples tokens keys"]:
        """Returns the attention of each token to each key in ``forward``, mean over the heads; rows sum to 1."""
        query, key = _heads(self.query(self.norm_tokens(tokens)).unsqueeze(0)), _heads(self.key(keys))
        logits = query / sqrt(key.shape[3]) @ key.transpose(2, 3)
        return logits.masked_fill(~mask[:, None, None, :], -inf).softmax(-1).mean(1)


class StageMerge(nn.Module):
    """Merges tokens of several taps or stages into one set: t_l = W_t T_l, Q = W_m [max t ; mean t ; t_last].

    T_l is normalised first, as is usual after pre-norm blocks.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.transform = nn.Linear(channels, channels)
        self.merge = nn.Linear(3 * channels, channels)

    def forward(
        self, stages: Sequence[Float[Tensor, "samples tokens channels"]]
    ) -> Float[Tensor, "samples tokens channels"]:
        """Merges ``stages`` in their order."""
        tokens = self.transform(self.norm(torch.stack(list(stages))))
        return self.merge(torch.cat([tokens.amax(0), tokens.mean(0), tokens[-1]], -1))


class ImageQueries(nn.Module):
    """2D object agent queries: two token sets per tap, a (semantic) and b (low-rank), and one block per tap.

    ``from_agents`` attends to the cached agents with an embedding of their geometry, otherwise to every cell of the
    feature maps that lies on the image. With several ``cameras``, the keys of a sample's views are concatenated, each
    with its camera's embedding.
    """

    def __init__(
        self,
        *,
        tap_channels: Mapping[str, int],
        tokens: int,
        channels: int,
        cameras: int,
        from_agents: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.taps = tuple(tap_channels)
        self.from_agents = from_agents
        self.tokens = nn.Parameter(torch.empty(len(self.taps), 2 * tokens, channels))
        nn.init.normal_(self.tokens, std=TOKEN_STD)
        self.lift = nn.ModuleList(nn.Linear(width, channels) for width in tap_channels.values())
        self.norm_keys = nn.ModuleList(nn.LayerNorm(channels) for _ in self.taps)
        self.blocks = nn.ModuleList(QueryBlock(channels=channels, drop_path=drop_path) for _ in self.taps)
        self.merge = StageMerge(channels=channels)
        self.geometry = (
            nn.Sequential(nn.Linear(5, channels), nn.GELU(), nn.Linear(channels, channels)) if from_agents else None
        )
        self.camera = nn.Embedding(cameras, channels) if cameras > 1 else None
        if self.camera is not None:
            nn.init.trunc_normal_(self.camera.weight, std=CAMERA_STD)

    def forward(
        self, images: ImageBatch
    ) -> tuple[Float[Tensor, "samples tokens channels"], Float[Tensor, "samples tokens channels"]]:
        """Returns the queries Q_a and Q_b of each sample."""
        merged = [
            block(tokens, keys, mask)
            for block, tokens, (keys, mask) in zip(self.blocks, self.tokens, self._keys(images), strict=True)
        ]
        semantic, low_rank = self.merge(merged).chunk(2, dim=1)
        return semantic, low_rank

    def attention(self, images: ImageBatch) -> Float[Tensor, "views tokens agents"]:
        """Returns the attention of the semantic queries to the agents of each view, mean over taps and heads.

        The attention of a query sums to 1 over all agents of its sample's views. Only for ``from_agents``.
        """
        attentions = []
        for block, tokens, (keys, mask) in zip(self.blocks, self.tokens, self._keys(images), strict=True):
            seen = cast("QueryBlock", block).attention(tokens[: len(tokens) // 2], keys, mask)
            attentions.append(seen.transpose(1, 2))
        mean = torch.stack(attentions).mean(0)
        agents, tokens = images.geometry.shape[1], mean.shape[2]
        of_views = images.layout.unpad(mean.reshape(*images.layout.mask.shape, agents * tokens))
        return of_views.view(len(of_views), agents, tokens).transpose(1, 2)

    def _keys(
        self, images: ImageBatch
    ) -> Iterator[tuple[Float[Tensor, "samples keys channels"], Bool[Tensor, "samples keys"]]]:
        """Yields the keys and values of each tap's block, and the mask of those that are no padding."""
        context, layout = self._context(images), images.layout
        for index, tap in enumerate(self.taps):
            keys = self.lift[index](self._cells(images, tap))
            if context is not None:
                keys = keys + context
            rows = self.norm_keys[index](keys)
            padded = layout.pad(rows.flatten(1)).view(layout.samples, -1, rows.shape[2])
            yield padded, layout.mask.repeat_interleave(rows.shape[1], 1)

    def _context(self, images: ImageBatch) -> Float[Tensor, "views #keys channels"] | None:
        """Returns the embedding that is added to each key: geometry and camera."""
        camera = self.camera(images.camera).unsqueeze(1) if self.camera is not None else None
        if self.geometry is None:
            return camera
        shape: Tensor = self.geometry(images.geometry)
        return shape if camera is None else shape + camera

    def _cells(self, images: ImageBatch, tap: str) -> Float[Tensor, "views keys width"]:
        """Returns the agents of each view, or the cells of its map that lie on the image."""
        if self.from_agents:
            return images.agents[tap]
        height, width = (ceil(extent) for extent in images.specs[tap].extent)
        return images.maps[tap][:, :, :height, :width].flatten(2).transpose(1, 2)


class VoxelQueries(nn.Module):
    """3D object agent queries: one token set per encoder stage, which attends to the voxels of the same sample."""

    def __init__(self, *, stage_channels: Sequence[int], tokens: int, channels: int, drop_path: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(len(stage_channels), tokens, channels))
        nn.init.normal_(self.tokens, std=TOKEN_STD)
        self.lift = nn.ModuleList(nn.Linear(width, channels) for width in stage_channels)
        self.norm_keys = nn.ModuleList(nn.LayerNorm(channels) for _ in stage_channels)
        self.blocks = nn.ModuleList(QueryBlock(channels=channels, drop_path=drop_path) for _ in stage_channels)
        self.merge = StageMerge(channels=channels)

    def forward(self, stages: Sequence[SparseTensor]) -> Float[Tensor, "samples tokens channels"]:
        """Returns the queries Q3 of each sample from the encoder's ``stages``, finest first."""
        merged = []
        for index, stage in enumerate(stages):
            keys = stage.layout.pad(self.norm_keys[index](self.lift[index](stage.features)))
            merged.append(self.blocks[index](self.tokens[index], keys, stage.layout.mask))
        return self.merge(merged)


def _heads(x: Float[Tensor, "samples rows channels"]) -> Float[Tensor, "samples heads rows per_head"]:
    return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)
