"""The variants that are compared, in the order and the groups of the tables; each is a preset ``ablation/<name>``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...errors import ConfigError, nearest

__all__ = ["BASELINE", "GROUPS", "PLACES", "REFERENCE", "VARIANTS", "Group", "Variant", "choose_variants"]

BASELINE = "3d-only"  #: what the gains of every variant are counted from
REFERENCE = "full"  #: what a sweep changes one thing of


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One form of the method: its preset's name and what the tables say of it.

    ``trained`` says how often: "once" a seed for all shifts, "per shift" because training sees the target's unlabelled
    frames, or "on target", per shift too, with the target's labels. ``teacher``: the variant whose run gives the pseudo
    labels that this one learns from. ``short``: whether the short form has it, where its group is ``tabled``.
    """

    name: str
    says: str
    trained: Literal["once", "per shift", "on target"] = "once"
    teacher: str | None = None
    short: bool = True

    @property
    def preset(self) -> str:
        """The name that ``--config`` takes."""
        return f"ablation/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Variants that stand together: those of ``tabled`` groups shift by shift, the others as a sweep around full."""

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
            Variant(name="agents", says="+ object agents and their interface"),
            Variant(name="full", says="+ decoupling; heads read `distil`"),
            Variant(name="full-refine", says="the same; heads read `refine`"),
            Variant(name="full-random-weights", says="the same as full, features of random diffusion weights"),
        ),
    ),
    Group(
        title="With the target in training",
        tabled=True,
        variants=(
            Variant(name="uda", says="full, and the target's unlabelled frames", trained="per shift"),
            Variant(name="uda-pl", says="+ pseudo labels made by uda", trained="per shift", teacher="uda", short=False),
            Variant(name="oracle", says="full, trained on the target's labels", trained="on target"),
        ),
    ),
    _sweep(
        "Decoupling: directions kept (k; full: 16)",
        ("rank-4", "k = 4"),
        ("rank-8", "k = 8"),
        ("rank-32", "k = 32: nothing is dropped, the loss stays"),
    ),
    _sweep(
        "What the queries attend to, and whether they meet the image",
        ("keys-features", "every cell of the feature maps as keys"),
        ("no-interface", "3D queries alone, no agents"),
        ("tokens-16", "16 learned tokens a set (full: 32)"),
        ("tokens-64", "64 learned tokens a set"),
        ("agents-36", "36 agents an image (full: 100)"),
    ),
    _sweep(
        "Which features (full: up0 to up3 and rgb)",
        ("taps-up1", "up1 and rgb"),
        ("taps-up1-up2", "up1, up2 and rgb"),
        ("no-rgb", "no image tap"),
        ("rgb-only", "the image tap alone, so no agents"),
    ),
    _sweep(
        "How stage one looks at an image (full: t = 0, 225x400)",
        ("t-100", "t = 100"),
        ("t-261", "t = 261"),
        ("image-112", "112x200 pixels"),
        ("image-338", "338x600 pixels"),
        ("normalised", "normalised per image (full: as they are)"),
        ("day-only", "a diffusion model that saw clear days only"),
    ),
    _sweep("The form of the paper", ("paper", "`refine`, dense keys, no rgb tap, raw features")),
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
    return [variant for group in GROUPS for variant in group.variants if not short or (group.tabled and variant.short)]
