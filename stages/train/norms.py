"""How fast BatchNorm's running statistics follow the batches, step by step.

SpUNet's momentum of 0.01 forgets the statistics it starts from (mean 0, variance 1) only after some thousand steps;
the features' true variance is far smaller, so a network of a few hundred steps would be evaluated with statistics that
are mostly the start's. Here the first batch sets them, and the window then widens with the training.
"""

from torch import nn

__all__ = ["norm_momentum", "set_norm_momentum"]

FINAL = 0.01  # Pointcept's SpUNet-v1m1
WINDOW = 0.1  # the statistics look back over this share of the steps so far, until FINAL is reached


def norm_momentum(step: int) -> float:
    """Momentum of the running statistics in ``step`` (from 0): 1 at first, 0.01 from step 990 on."""
    return max(FINAL, 1 / (1 + WINDOW * step))


def set_norm_momentum(network: nn.Module, momentum: float) -> None:
    """Give every BatchNorm of ``network`` this momentum."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = momentum
