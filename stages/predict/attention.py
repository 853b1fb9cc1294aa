"""Attention maps of a trained network on one frame: the agents that points and queries read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from ...errors import ConfigError
from ..train.batch import Batch
from ..train.device_transfer import to_device
from ..train.domain import Domain
from ..train.images import ImageBatch
from ..train.loader import evaluation_batch
from ..train.located_agents import agents_at_points
from ..train.network import Network
from ..train.query_attention import StageRefiner

__all__ = ["AttentionMaps", "QueryAttention", "attention_maps"]


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryAttention:
    """Attention of one frame with N 2D and N 3D queries; every row sums to 1.

    ``voxels``: from each point's voxel in the last decoder stage to the 3D queries. ``queries``: from the 3D queries to
    the 2D queries; the first is the sink. ``agents``: from the semantic 2D queries to the agents of all views, mean
    over heads and taps; None if they attend to cells of the feature maps.
    """

    voxels: Float32[np.ndarray, "points tokens"]
    queries: Float32[np.ndarray, "tokens tokens"]
    agents: Float32[np.ndarray, "tokens agents"] | None

    @property
    def voxels_to_agents(self) -> Float32[np.ndarray, "points agents"] | None:
        """Attention of each point's voxel to each agent through 3D and 2D queries, without sinks."""
        if self.agents is None:
            return None
        chain = _without_sink(self.voxels) @ _without_sink(self.queries)[1:] @ self.agents[1:]
        return chain.astype(np.float32)

    @property
    def queries_to_agents(self) -> Float32[np.ndarray, "tokens agents"] | None:
        """Attention of each 3D query to each agent through the 2D queries, without the sink."""
        return None if self.agents is None else _without_sink(self.queries) @ self.agents[1:]


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionMaps:
    """Attention maps of one frame, for a network with located agents, with refined queries, or with both.

    ``memberships``: weight of each agent for each point, with the agents of all views concatenated; a row sums to 1, or
    is 0 if no view shows the point; None without located agents. ``queries`` is None without refined queries.
    """

    memberships: Float32[np.ndarray, "points agents"] | None
    queries: QueryAttention | None


def attention_maps(network: Network, domain: Domain, position: int) -> AttentionMaps | None:
    """Runs ``network`` on the frame at ``position`` of ``domain``; None if no camera sees any of its points.

    Raises:
        ConfigError: the network reads no agents, neither located ones nor through queries.
    """
    fusion = network.fusion
    if not (fusion.agent_tokens or fusion.interface):
        raise ConfigError(
            f"This network reads no agents (fusion.variant={fusion.variant}, context={fusion.context},"
            f" inject={fusion.inject}, queries={fusion.queries}); train one with fusion.variant=full and"
            " fusion.context=agents or fusion.queries=agents"
        )
    made = evaluation_batch(domain, network.plan, position)
    if made is None:
        return None
    batch = to_device(made, network.device)
    if batch.images is None:
        return None
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            return _attention_maps(network, batch, batch.images.prepared(normalise=fusion.normalise))
    finally:
        network.train(was_training)


def _attention_maps(network: Network, batch: Batch, images: ImageBatch) -> AttentionMaps:
    memberships, queries = None, None
    if network.fusion.agent_tokens:
        views, agents = images.geometry.shape[:2]
        each = torch.eye(views * agents, device=network.device).view(views, agents, views * agents)
        memberships = _array(agents_at_points(each, images))
    if network.fusion.interface:
        queries = _query_attention(network, batch, images)
    return AttentionMaps(memberships=memberships, queries=queries)


def _query_attention(network: Network, batch: Batch, images: ImageBatch) -> QueryAttention:
    """Returns the attention of the queries in a complete forward pass."""
    refiner = cast("StageRefiner", network.refiners[-1])
    with _calls_of(network.interface, refiner) as (interface_calls, refiner_calls):
        network(batch, complete=True)
    (plain, read), queries = interface_calls[0].inputs, interface_calls[0].output
    voxels, layout, _, bias = next(call.inputs for call in refiner_calls if call.inputs[2] is queries)
    attention = layout.unpad(refiner.attention(layout.pad(voxels), queries, None if bias is None else layout.pad(bias)))
    agents = network.image_queries.attention(images) if network.fusion.keys == "agents" else None
    return QueryAttention(
        voxels=_array(attention[batch.point_to_voxel]),
        queries=_array(network.interface.attention(plain, read)[0]),
        agents=None if agents is None else _array(agents.transpose(0, 1).flatten(1)),
    )


@dataclass(frozen=True)
class _Call:
    """Arguments and output of one call of a module."""

    inputs: tuple[Any, ...]
    output: Any


@contextmanager
def _calls_of(*modules: nn.Module) -> Iterator[list[list[_Call]]]:
    """Records the calls of each of ``modules``, in order."""
    calls: list[list[_Call]] = [[] for _ in modules]
    handles = [
        module.register_forward_hook(lambda _, inputs, output, seen=seen: seen.append(_Call(inputs, output)))
        for module, seen in zip(modules, calls, strict=True)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _without_sink(attention: Float[np.ndarray, "rows tokens"]) -> Float[np.ndarray, "rows rest"]:
    """Drops the first column and normalises the rows again."""
    rest = attention[:, 1:]
    return rest / np.maximum(rest.sum(1, keepdims=True), np.finfo(np.float32).tiny)


def _array(values: Tensor) -> Float32[np.ndarray, "*shape"]:
    return values.float().cpu().numpy()
