"""The variants that the ablation compares, in the order and the groups of its tables."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from ...errors import ConfigError, nearest

__all__ = [
    "BASELINE",
    "GROUPS",
    "PRETRAININGS",
    "REFERENCE",
    "SHORTER",
    "VARIANTS",
    "Group",
    "Variant",
    "choose_variants",
    "initial_variant",
]

BASELINE = "3d-only"  #: gains of every variant are counted from it
REFERENCE = "full"  #: the method
SHORTER = "full-400"  #: the method in fewer steps; a sweep changes one setting of it


@dataclass(frozen=True)
class Variant:
    """One form of the method: the preset ``ablation/<name>`` of ``configs/ablation.yaml`` and its label in tables.

    ``trained``: "once" per seed for all shifts; "per shift" if training sees the target's unlabelled frames; "on
    target", per shift, if it sees the target's labels. ``init``: the variant, or the pretraining, whose run of the same
    seed gives the initial weights. With a ``norm_window`` nothing is trained: that run is tested with BatchNorm adapted
    to so many frames. ``short``: the short form of the ablation has it. ``pretrains``: its run is one of
    `xd3d pretrain`, and is not tested. ``target``: the domain whose unlabelled frames one training for all shifts sees.
    """

    name: str
    label: str
    _: KW_ONLY
    trained: Literal["once", "per shift", "on target"] = "once"
    init: str | None = None
    norm_window: int | None = None
    short: bool = True
    pretrains: bool = False
    target: str | None = None

    @property
    def preset(self) -> str:
        """The name that ``--config`` takes."""
        return f"ablation/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Variants of one table. ``main`` groups are reported for each shift; the others are sweeps around ``SHORTER``.

    ``named_only``: they run only if ``--only`` names them: networks of the hub, or what the development shifts decided.
    """

    title: str
    variants: tuple[Variant, ...]
    main: bool = False
    named_only: bool = False


def _sweep(title: str, *variants: tuple[str, str], named_only: bool = False) -> Group:
    chosen = tuple(Variant(*variant) for variant in variants)
    return Group(title=title, variants=chosen, named_only=named_only)


GROUPS: tuple[Group, ...] = (
    Group(
        title="The parts, one added to the other",
        main=True,
        variants=(
            Variant("3d-only", "no image at all"),
            Variant("image", "+ image branch and cross-modal losses"),
            Variant("full", "+ pixels injected into the 3D network, located agents, a LiDAR-only branch"),
            Variant("full-random-weights", "full, features of random diffusion weights"),
            Variant("full-rgb-only", "full, the image tap alone"),
            Variant("full-mix", "full, another frame mixed into each sample", short=False),
            Variant("paper", "the paper's form: global queries, `refine`, dense keys, raw features"),
        ),
    ),
    Group(
        title="With the target in training",
        main=True,
        variants=(
            Variant("uda", "full, then steps with the target's unlabelled frames", trained="per shift", init="full"),
            Variant("uda-pl", "uda, labelled by a teacher that learns", trained="per shift", init="full", short=False),
            Variant("oracle", "full, trained on the target's labels", trained="on target"),
        ),
    ),
    Group(
        title="Options that are off by default",
        main=True,
        variants=(
            Variant("full-depth", "full, the 2D branch reads the depth of the points", short=False),
            Variant("full-norm", "full, BatchNorm adapted to each frame", init="full", norm_window=1, short=False),
        ),
    ),
    Group(
        title="LiDAR alone, pretrained on images without labels",
        main=True,
        variants=(
            Variant(
                "pretrain",
                "3d-only from a 3D network pretrained on the train frames of all domains",
                init="pretraining",
                short=False,
            ),
            Variant("layernorm", "control: 3d-only with LayerNorm, not pretrained", short=False),
        ),
    ),
    Group(
        title="Controls of pretraining",
        main=True,
        named_only=True,
        variants=(
            Variant("pretrain-source", "pretrain, pretrained on the source alone", init="pretraining-source"),
            Variant("pretrain-frozen", "an MLP on the pretrained network, frozen", init="pretraining"),
            Variant("pretrain-linear", "a linear layer on the pretrained network, frozen", init="pretraining"),
        ),
    ),
    _sweep(
        "What the 3D network reads of the image",
        (SHORTER, "the method in a third of the steps: what the sweeps are compared with"),
        ("inject-none", "nothing"),
        ("inject-agents", "the located agents in place of the pixel"),
        ("inject-both", "the pixel and the agents"),
        ("inject-softmax", "control: the 2D head's softmax"),
        ("inject-xyz", "control: the voxel's position, nothing of the image"),
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
        ("no-rgb", "no image tap"),
        ("day-only", "a diffusion model that saw clear days only"),
    ),
    _sweep(
        "Which network (full: tiny-street; images of 224x392)",
        ("network-dinov2", "DINOv2 small, its last block"),
        ("network-clip", "CLIP ViT-L/14, its last block but one"),
        ("network-both", "tiny-street and DINOv2 small"),
        named_only=True,
    ),
    _sweep(
        "Options that are off by default, in a third of the steps",
        ("depth-400", "the 2D branch reads the depth of the points"),
        ("mix-400", "another frame mixed into each sample, at another scale (Mix3D)"),
        ("laser-400", "bands of elevation of another frame (LaserMix)"),
        ("beams-400", "half of the samples lose beams"),
        ("returns-400", "half of the samples have early returns of drops"),
        named_only=True,
    ),
    _sweep(
        "The paper's queries beside the method",
        ("queries", "global queries, `distil`"),
        ("queries-located", "the same, biased to the agents of a voxel's pixels"),
    ),
)

VARIANTS: dict[str, Variant] = {variant.name: variant for group in GROUPS for variant in group.variants}

#: What variants start from and no table has.
PRETRAININGS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("pretraining", "on all domains", pretrains=True, target="all"),
        Variant("pretraining-source", "on the source", pretrains=True),
    )
}


def initial_variant(variant: Variant) -> Variant | None:
    """Returns the variant, or the pretraining, that ``variant`` starts from."""
    return {**VARIANTS, **PRETRAININGS}[variant.init] if variant.init else None


def choose_variants(names: Sequence[str], *, short: bool) -> list[Variant]:
    """Returns the variants called ``names``; without names all but the ``named_only`` ones, or the short form's.

    Raises:
        ConfigError: a name is unknown.
    """
    for name in names:
        if name not in VARIANTS:
            raise ConfigError(f"There is no variant '{name}' of the ablation; {nearest(name, VARIANTS)}")
    if names:
        return [variant for name, variant in VARIANTS.items() if name in names]
    groups = [group for group in GROUPS if not group.named_only and (group.main or not short)]
    return [variant for group in groups for variant in group.variants if variant.short or not short]
