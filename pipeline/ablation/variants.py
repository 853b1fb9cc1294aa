"""The variants that are compared, in the order and the groups of the tables; each is a preset ``ablation/<name>``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...errors import ConfigError, nearest

__all__ = ["BASELINE", "GROUPS", "PLACES", "REFERENCE", "SHORTER", "VARIANTS", "Group", "Variant", "choose_variants"]

BASELINE = "3d-only"  #: what the gains of every variant are counted from
REFERENCE = "full"  #: the method
SHORTER = "full-400"  #: the method in fewer steps: what a sweep changes one thing of


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One form of the method: its preset's name and what the tables say of it.

    ``trained`` says how often: "once" a seed for all shifts, "per shift" because training sees the target's unlabelled
    frames, or "on target", per shift too, with the target's labels. ``init``: the variant whose run of the same seed it
    begins with.
    """

    name: str
    says: str
    trained: Literal["once", "per shift", "on target"] = "once"
    init: str | None = None

    @property
    def preset(self) -> str:
        """The name that ``--config`` takes."""
        return f"ablation/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Variants that stand together: those of ``tabled`` groups shift by shift, the others as a sweep.

    A sweep's variants are compared with ``SHORTER``, which has as many steps.
    """

    title: str
    variants: tuple[Variant, ...]
    tabled: bool = False


def _sweep(title: str, *variants: tuple[str, str]) -> Group:
    return Group(title=title, variants=tuple(Variant(name=name, says=says) for name, says in variants))


GROUPS: tuple[Group, ...] = (
    Group(
        title="The parts, one added to the other",
        tabled=True,
        variants=(
            Variant(name="3d-only", says="no image at all"),
            Variant(name="image", says="+ image branch and cross-modal losses"),
            Variant(name="full", says="+ pixels injected into the 3D network, located agents, a LiDAR-only branch"),
            Variant(name="full-random-weights", says="full, features of random diffusion weights"),
            Variant(name="full-rgb-only", says="full, the image tap alone"),
            Variant(name="paper", says="the paper's form: global queries, `refine`, dense keys, raw features"),
        ),
    ),
    Group(
        title="With the target in training",
        tabled=True,
        variants=(
            Variant(
                name="uda",
                says="full, then steps with the target's unlabelled frames",
                trained="per shift",
                init="full",
            ),
            Variant(name="oracle", says="full, trained on the target's labels", trained="on target"),
        ),
    ),
    _sweep(
        "What the 3D network reads of the image",
        (SHORTER, "the method in a third of the steps: what the sweeps are compared with"),
        ("inject-none", "nothing"),
        ("inject-agents", "the located agents in place of the pixel"),
        ("inject-both", "the pixel and the agents"),
        ("inject-softmax", "control: the 2D head's softmax"),
        ("inject-xyz", "control: the voxel's place, nothing of the image"),
        ("no-camera-dropout", "no sample loses its camera in training"),
        ("no-lidar-branch", "one decoder reads with and without a camera"),
    ),
    _sweep(
        "What the 2D head reads beside the pixel",
        ("context-none", "nothing"),
        ("context-mlp", "control: an MLP of the agents' size"),
        ("no-truncation", "agents with their whole spectrum"),
        ("rank-4", "agents on 4 directions (full: 16)"),
    ),
    _sweep(
        "Which features (full: up0 to up3 and rgb, 225x400)",
        ("taps-up1-up2", "up1, up2 and rgb"),
        ("no-rgb", "no image tap"),
        ("day-only", "a diffusion model that saw clear days only"),
        ("image-338", "338x600 pixels"),
    ),
    _sweep(
        "The paper's queries beside the method",
        ("queries", "global queries, `distil`"),
        ("queries-located", "the same, biased to the agents of a voxel's pixels"),
    ),
)

VARIANTS: dict[str, Variant] = {variant.name: variant for group in GROUPS for variant in group.variants}

#: Place of each variant's group, by the variant's name.
PLACES: dict[str, int] = {variant.name: place for place, group in enumerate(GROUPS) for variant in group.variants}


def choose_variants(names: Sequence[str], *, short: bool) -> list[Variant]:
    """The variants called ``names``; with no name all of them, or those of the short form.

    Raises:
        ConfigError: a name is not known.
    """
    for name in names:
        if name not in VARIANTS:
            raise ConfigError(f"There is no variant '{name}' of the ablation; {nearest(name, VARIANTS)}")
    if names:
        return [variant for name, variant in VARIANTS.items() if name in names]
    return [variant for group in GROUPS for variant in group.variants if group.tabled or not short]
