"""A training loop with a budget of wall time: cosine rate, moving average of the weights, checkpoints, a curve.

Matrices and convolutions are trained by Muon (K. Jordan et al., "Muon", 2024), biases and scales by AdamW. Measured on
the autoencoder at equal steps, Muon reaches the loss of AdamW in about a third of them. The state on disk is one
safetensors file (module, moving average, state of the optimisers) that appears atomically; a step's random numbers come
from the seed and the step alone, so an interrupted run resumes with equal results.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ....files import write_bytes
from ....progress import progress

__all__ = ["CurvePoint", "Loss", "TimedTraining"]

Loss = Callable[[np.random.Generator, float], Tensor]
"""Maps the step's random generator and the spent share of the budget to the loss."""

CurvePoint = tuple[float, int, float]
"""Seconds spent, steps done, mean loss of the steps since the last point."""

WARM_UP_STEPS = 50
CURVE_STEPS = 25
CHECKPOINT_SECONDS = 60.0
AVERAGE_DECAY = 0.999
VECTOR_RATE = 1e-3


@dataclass
class TimedTraining:
    """Trains ``module`` for ``minutes`` and keeps the moving average of its weights.

    Attributes:
        module: what is trained.
        average: a twin of ``module`` (with weights of its own) that ends up with the averaged weights.
        path: the checkpoint, ``*.safetensors``.
        minutes: budget of wall time, summed over restarts.
        rate: the highest rate of Muon; it rises over 50 steps and falls along a cosine to 2 %.
        seed: of the batches.
        curve: what went on so far.
    """

    module: nn.Module
    average: nn.Module
    path: Path
    minutes: float
    rate: float
    seed: int
    weight_decay: float = 1e-3
    curve: list[CurvePoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.average.load_state_dict(self.module.state_dict())
        self.average.eval().requires_grad_(False)
        weights = dict(self.module.named_parameters())
        vectors = [weight for weight in weights.values() if weight.ndim <= 1]
        self._names: dict[Tensor, str] = {weight: name for name, weight in weights.items()}
        self._matrices = {  # Muon takes matrices only: convolutions are flattened to [out, rest], in the same memory
            nn.Parameter(weight.detach().view(len(weight), -1)): weight
            for weight in weights.values()
            if weight.ndim > 1
        }
        self._names |= {matrix: self._names[weight] for matrix, weight in self._matrices.items()}
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.Muon(self._matrices, lr=self.rate, weight_decay=self.weight_decay), self.rate),
            (torch.optim.AdamW(vectors, lr=VECTOR_RATE, betas=(0.9, 0.99), weight_decay=0.0), VECTOR_RATE),
        ]
        self._step = 0
        self._seconds = 0.0
        if self.path.is_file():
            self._load()

    def run(self, loss: Loss, *, title: str) -> None:
        """Trains until the budget is spent (at least one step); returns at once if it was spent before."""
        budget = self.minutes * 60
        saved, shown, recent = self._seconds, int(self._seconds), list[float]()
        self.module.train()
        with progress(title, math.ceil(budget), "s", int(self._seconds)) as bar:
            while self._seconds < budget:
                started = time.monotonic()
                recent.append(self._advance(loss, self._seconds / budget))
                self._seconds += time.monotonic() - started
                if len(recent) == CURVE_STEPS or self._seconds >= budget:
                    self.curve.append((round(self._seconds, 1), self._step, float(np.mean(recent))))
                    bar.set_postfix(step=self._step, loss=self.curve[-1][2])
                    recent.clear()
                bar.update(min(int(self._seconds), math.ceil(budget)) - shown)
                shown = min(int(self._seconds), math.ceil(budget))
                if self._seconds - saved > CHECKPOINT_SECONDS or self._seconds >= budget:
                    self._save()
                    saved = self._seconds

    def _advance(self, loss: Loss, spent: float) -> float:
        """Takes one step at the share ``spent`` of the budget; returns the loss."""
        rise = min(1.0, (self._step + 1) / WARM_UP_STEPS)
        share = rise * (0.02 + 0.49 * (1 + math.cos(math.pi * spent)))
        torch.manual_seed(self.seed * 1_000_000 + self._step)
        value = loss(np.random.default_rng((self.seed, self._step)), spent)
        self.module.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for matrix, weight in self._matrices.items():
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for optimizer, rate in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()
        self._step += 1
        decay = min(AVERAGE_DECAY, (1 + self._step) / (10 + self._step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.module.parameters()), 1 - decay)
        return float(value.detach())

    def _save(self) -> None:
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for optimizer, _ in self._optimizers:
            for weight, values in optimizer.state.items():
                tensors |= {f"{key}.{self._names[weight]}": value for key, value in values.items()}
        state = {"step": self._step, "seconds": self._seconds, "curve": self.curve}
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"state": json.dumps(state)})
        write_bytes(self.path, content)

    def _load(self) -> None:
        with safe_open(self.path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        for prefix, module in (("module.", self.module), ("average.", self.average)):
            module.load_state_dict(
                {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            )
        self._step, self._seconds = state["step"], state["seconds"]
        self.curve = [(seconds, step, loss) for seconds, step, loss in state["curve"]]
        for optimizer, _ in self._optimizers:
            muon = isinstance(optimizer, torch.optim.Muon)
            keys = ("momentum_buffer",) if muon else ("step", "exp_avg", "exp_avg_sq")
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    optimizer.state[weight] = {key: tensors[f"{key}.{self._names[weight]}"] for key in keys}
