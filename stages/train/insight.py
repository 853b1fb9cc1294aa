"""A look inside the fusion module on one frame: what attends to what, and what its queries span."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from ...errors import ConfigError
from .batch import Batch
from .decoupling import low_rank
from .domain import Domain
from .images import ImageBatch
from .interface import StageRefiner
from .loader import evaluation_batch
from .network import Network
from .queries import QueryBlock
from .ragged import Ragged
from .sparse import SparseTensor

__all__ = ["Insight", "look_inside"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Insight:
    """Attention and queries of one frame, N queries of either kind; every row of attention sums to 1.

    ``agents`` is the attention of the semantic 2D queries to the agents of all views, mean over heads and taps; None
    where they attend to cells of the feature maps.
    """

    voxels: Float32[np.ndarray, "points tokens"]  #: of each point's voxel in the last decoder stage to the 3D queries
    queries: Float32[np.ndarray, "tokens tokens"]  #: of the 3D queries to the 2D queries; the first is the sink
    agents: Float32[np.ndarray, "tokens agents"] | None
    semantic: Float32[np.ndarray, "tokens channels"]  #: Q_a
    other: Float32[np.ndarray, "tokens channels"]  #: Q_b before its projection
    projected: Float32[np.ndarray, "tokens channels"]  #: Q_b on its strongest directions

    @property
    def voxels_to_agents(self) -> Float32[np.ndarray, "points agents"] | None:
        """How much each point's voxel looks at each agent, through 3D and 2D queries; sinks are left out."""
        if self.agents is None:
            return None
        chain = _without_sink(self.voxels) @ _without_sink(self.queries)[1:] @ self.agents[1:]
        return chain.astype(np.float32)

    @property
    def queries_to_agents(self) -> Float32[np.ndarray, "tokens agents"] | None:
        """How much each 3D query looks at each agent, through the 2D queries but the sink."""
        return None if self.agents is None else _without_sink(self.queries) @ self.agents[1:]


def look_inside(network: Network, domain: Domain, position: int) -> Insight | None:
    """Run ``network`` on the frame at ``position`` of ``domain``; None where no camera sees a point of it.

    Raises:
        ConfigError: the network has no interface between image and cloud.
    """
    if not network.fusion.interface:
        raise ConfigError(
            f"fusion.variant={network.fusion.variant} has no agents to look at; train fusion.variant=full"
        )
    made = evaluation_batch(domain, network.plan, position)
    if made is None:
        return None
    batch = made.to(network.device)
    if batch.images is None:
        return None
    images = batch.images.prepared(normalise=network.fusion.normalise)
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            return _look(network, batch, images)
    finally:
        network.train(was_training)


def _look(network: Network, batch: Batch, images: ImageBatch) -> Insight:
    encoded = network.unet.encode(batch.voxels)
    own = network.voxel_queries(encoded[1:])
    with _attention_of(network.image_queries.blocks) as seen:
        semantic, other = network.image_queries(images, 1)
    met = network.interface(own, semantic)
    last: list[Tensor] = []

    def refine(stage: int, x: SparseTensor) -> Tensor:
        refiner, layout = cast("StageRefiner", network.refiners[stage]), Ragged(x.sample, x.batch_size)
        last[:] = [layout.unpad(refiner.attention(layout.pad(x.features), met))]
        refined: Tensor = refiner(x.features, layout, met if network.needs_images else own)
        return refined

    network.unet.decode(encoded, refine)
    tokens = semantic.shape[1]
    return Insight(
        voxels=_array(last[0][batch.point_to_voxel]),
        queries=_array(network.interface.attention(own, semantic)[0]),
        agents=_array(torch.stack(seen).mean(0)[0, :tokens]) if network.fusion.keys == "agents" else None,
        semantic=_array(semantic[0]),
        other=_array(other[0]),
        projected=_array(low_rank(other, network.fusion.rank)[0]),
    )


@contextmanager
def _attention_of(blocks: torch.nn.ModuleList) -> Iterator[list[Tensor]]:
    """Collect what the tokens of ``blocks`` look at, in the order in which they run."""
    seen: list[Tensor] = []

    def watch(block: QueryBlock, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(block.attention(*inputs))

    handles = [block.register_forward_hook(watch) for block in blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _without_sink(attention: Float[np.ndarray, "rows tokens"]) -> Float[np.ndarray, "rows rest"]:
    """Attention to all but the first column, as shares of what is left."""
    rest = attention[:, 1:]
    return rest / np.maximum(rest.sum(1, keepdims=True), np.finfo(np.float32).tiny)


def _array(values: Tensor) -> Float32[np.ndarray, "rows columns"]:
    return values.float().cpu().numpy()
