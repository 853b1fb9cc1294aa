"""Singular values of the matrices of agents and queries, and the energy beyond a rank."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from .figures import new_figure, png_bytes

if TYPE_CHECKING:
    from ...stages.predict.attention import AttentionMaps

__all__ = ["dropped_energy", "spectra_of", "spectrum_picture", "spectrum_rows"]


def singular_values(matrices: Sequence[Float[np.ndarray, "rows columns"]]) -> Float[np.ndarray, "values"]:
    """Returns the root mean square of the singular values of equal-shaped matrices, scaled to unit energy."""
    values = np.array([np.linalg.svd(each.astype(np.float64), compute_uv=False) for each in matrices])
    energy = (values**2).mean(0)
    return np.sqrt(energy / max(float(energy.sum()), np.finfo(np.float64).tiny))


def dropped_energy(values: Float[np.ndarray, "values"], rank: int) -> float:
    """Returns the share of the energy (squared singular values) beyond the first ``rank``."""
    return float((values[rank:] ** 2).sum() / max(float((values**2).sum()), np.finfo(np.float64).tiny))


def spectra_of(insights: Sequence["AttentionMaps"]) -> dict[str, Float[np.ndarray, "values"]]:
    """Returns the spectra of the matrices of ``insights``, all of one network, by matrix name."""
    names = insights[0].matrices if insights else ()
    return {
        name: singular_values([matrix for insight in insights for matrix in insight.matrices[name]]) for name in names
    }


def spectrum_rows(spectra: Mapping[str, Float[np.ndarray, "values"]], rank: int) -> list[list[str]]:
    """Returns a table row per spectrum: name, energy beyond ``rank``, and number of directions with 99 %."""
    return [
        [name, f"{100 * dropped_energy(values, rank):.2f} %", str(_directions(values, 0.99))]
        for name, values in spectra.items()
    ]


def spectrum_picture(spectra: Mapping[str, Float[np.ndarray, "values"]], rank: int) -> bytes:
    """Returns a PNG of the singular values on a log scale, with a line after the first ``rank`` directions."""
    figure = new_figure(9.0, 3.6)
    axes = figure.add_subplot(1, 1, 1)
    for name, values in spectra.items():
        axes.plot(np.arange(1, len(values) + 1), np.maximum(values, 1e-6), marker=".", label=name)
    axes.axvline(rank + 0.5, color="black", linewidth=0.8, linestyle="--", label=f"the first {rank}")
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 2)
    axes.set_xlabel("direction")
    axes.set_ylabel("singular value / root of all energy")
    axes.legend(fontsize=8)
    return png_bytes(figure)


def _directions(values: Float[np.ndarray, "values"], share: float) -> int:
    """Returns how many of the strongest directions hold ``share`` of the energy."""
    return int(np.searchsorted(np.cumsum(values**2) / (values**2).sum(), share)) + 1
