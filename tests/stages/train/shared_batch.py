"""One batch of two samples, of 4 and 7 voxels, through a norm and every loss: whole, or as one of two processes."""

import json
import sys

import torch
from torch import nn
from xd3d.stages.train.losses import agreement_loss, cross_modal_loss, weighted_cross_entropy
from xd3d.stages.train.norms import VoxelNorm
from xd3d.stages.train.parallel import distributed, number_of_processes, rank, sum_gradients, total
from xd3d.stages.train.queries import DropPath
from xd3d.stages.train.query_attention import decoupling_loss

LABELS = [0, 2, -100, 1, 2, 2, -100, -100, 1, 0, 0]
SPLIT = 4


def compute() -> dict[str, object]:
    """What the processes found together; ``gradient`` is that of this one's rows."""
    generator = torch.Generator().manual_seed(4)
    own = slice(0, 11) if number_of_processes() == 1 else [slice(0, SPLIT), slice(SPLIT, 11)][rank()]
    voxels = (50 + torch.randn(11, 3, generator=generator))[own].requires_grad_()
    other = torch.randn(11, 3, generator=generator)[own]
    queries = torch.randn(2, 5, 3, generator=generator).chunk(number_of_processes())[rank()]
    norm, unused = VoxelNorm(3), nn.Parameter(torch.ones(2))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
    torch.manual_seed(1)
    logits = norm(voxels)
    loss = (
        weighted_cross_entropy(logits, torch.tensor(LABELS)[own], torch.tensor([1.0, 3.0, 0.5]))
        + cross_modal_loss(logits, other)
        + agreement_loss([(logits, other), (2 * logits, other.flip(1))], detach_refined=True, standardise=True)
        + decoupling_loss(queries * norm.weight, queries.flip(1), standardise=True)
    )
    loss.backward()
    alone = nn.Parameter(torch.ones(3))
    if rank() == 0:
        alone.grad = torch.full((3,), 2.0)
    sum_gradients([*norm.parameters(), unused, alone])
    return {
        "loss": total(loss).item(),
        "gradient": voxels.grad.tolist(),
        "norm": [parameter.grad.tolist() for parameter in norm.parameters()],
        "unused": unused.grad,
        "alone": alone.grad.tolist(),
        "buffers": {name: buffer.tolist() for name, buffer in norm.named_buffers()},
        "kept": DropPath(0.5)(torch.ones(2 // number_of_processes(), 1, 1)).flatten().tolist(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed("cpu"):
        sys.stdout.write(json.dumps(compute()))
