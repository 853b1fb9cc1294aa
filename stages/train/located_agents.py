"""Located agents: each point reads the cached agents its pixel belongs to (docs/fusion.md)."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from .image_branch import sample_points
from .images import ImageBatch

__all__ = ["AgentTokens", "agents_at_points", "strongest_agents"]

HIDDEN = 128


class AgentTokens(nn.Module):
    """t_i = MLP(LayerNorm(q_i) of all taps, concatenated) + MLP(geometry_i), normalised: one token per agent."""

    def __init__(self, *, tap_channels: Mapping[str, int], channels: int) -> None:
        super().__init__()
        self.taps = tuple(tap_channels)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in tap_channels.values())
        self.lift = nn.Sequential(nn.Linear(sum(tap_channels.values()), HIDDEN), nn.GELU(), nn.Linear(HIDDEN, channels))
        self.place = nn.Sequential(nn.Linear(5, channels), nn.GELU(), nn.Linear(channels, channels))
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: ImageBatch) -> Float[Tensor, "views agents channels"]:
        """Returns the tokens of prepared ``images``."""
        vectors = [norm(images.agents[tap]) for tap, norm in zip(self.taps, self.norms, strict=True)]
        tokens: Tensor = self.norm(self.lift(torch.cat(vectors, -1)) + self.place(images.geometry))
        return tokens


def agents_at_points(
    tokens: Float[Tensor, "views agents channels"], images: ImageBatch
) -> Float[Tensor, "points channels"]:
    """Returns o_p = sum_i A_pi t_i, the mean over the views that show point p; 0 if none does.

    A_pi is interpolated bilinearly between the cells of the grouping grid, where the memberships of a cell sum to 1.

    Raises:
        ValueError: the images have no memberships.
    """
    if images.grid is None or images.assignment is None or images.membership is None:
        raise ValueError("These images have no memberships; the features were read without them")
    views, agents, channels = tokens.shape
    height, width = images.assignment.shape[2:]
    first = torch.arange(views, device=tokens.device).view(-1, 1, 1) * agents
    rows = images.assignment.flatten(2).transpose(1, 2).long() + first
    weights = images.membership.flatten(2).transpose(1, 2).float()
    weights = weights / weights.sum(2, keepdim=True).clamp(min=1)
    cells = embedding_bag(
        rows.flatten(0, 1), tokens.float().flatten(0, 1), per_sample_weights=weights.flatten(0, 1), mode="sum"
    )
    maps = cells.view(views, height, width, channels).permute(0, 3, 1, 2)
    return sample_points(maps, images, images.grid.extent)


def strongest_agents(images: ImageBatch, *, most: float) -> Int64[Tensor, "points"] | None:
    """Returns the agent with the largest membership at each point's pixel, numbered over all views; -1 if none.

    Agents that cover more than the fraction ``most`` of the image are ignored. If several views show a point, the last
    one with an agent is used. None if the images have no memberships.
    """
    if images.grid is None or images.assignment is None or images.membership is None:
        return None
    height, width = images.assignment.shape[2:]
    cells = images.projection_uv.new_tensor([images.grid.extent[1], images.grid.extent[0]])
    column, row = (images.projection_uv * cells).long().unbind(1)
    view, row, column = images.projection_view, row.clamp(max=height - 1), column.clamp(max=width - 1)
    first = images.membership[view, :, row, column].argmax(1, keepdim=True)
    agent = images.assignment[view, :, row, column].long().gather(1, first).squeeze(1)
    number = view * images.geometry.shape[1] + agent
    number = number.where(images.geometry[view, agent, 0] <= most, -1)
    found = number.new_full((len(images.view_counts),), -1)
    return found.scatter_reduce(0, images.projection_point, number, "amax")
