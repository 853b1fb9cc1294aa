"""Checks before training that the domains, their features and the settings fit together."""

import shlex
from collections.abc import Mapping
from dataclasses import replace

from ...cache.reader import FeatureReader
from ...cache.schema import TapSpec
from ...errors import CacheError, ConfigError, RunError
from ...processes import world_size
from .domain import Domain
from .features import FeatureSource
from .initial import InitialCheckpoint
from .loader import step_positions
from .network import choose_taps
from .pseudo_label_choice import HEADS, LabelRule
from .pseudo_labels import PseudoLabels
from .record import describe_domain
from .settings import FusionSettings, TrainSettings

__all__ = ["check_domains", "check_label_rule", "check_memberships", "check_settings", "check_taps"]


def check_domains(
    *,
    source: Domain | None,
    target: Domain | None,
    validation: Domain | None,
    fusion: FusionSettings,
    settings: TrainSettings,
) -> dict[str, TapSpec]:
    """Checks that a run can be trained on the domains; returns the taps to train on.

    Raises:
        RunError: a domain lacks features that the settings need, or has other taps.
        CacheError: images of a domain have no features yet, or their extraction failed.
        ConfigError: the settings contradict the domains, such as a batch larger than a domain.
    """
    trained = {role: domain for role, domain in (("source", source), ("target", target)) if domain is not None}
    for role, domain in trained.items():
        if fusion.image and domain.features is None:
            raise RunError(
                f"fusion.variant={fusion.variant} uses images, and the {role} has no features; extract them, or set"
                " fusion.variant=3d-only"
            )
        step_positions(len(domain), world_size() * settings.batch_size, settings.seed, 0)
        if domain.pseudo is not None:
            rule = LabelRule(agree=settings.pl_agree, vote=settings.pl_vote)
            domain.pseudo.require(describe_domain(domain), heads=HEADS if fusion.image else HEADS[1:], rule=rule)
            _check_points(domain, domain.pseudo)
    if validation is not None and validation.features is None and fusion.needs_images:
        raise RunError(
            f"fusion.head={fusion.head} predicts with images alone, and the frames to validate on have none; set"
            " fusion.head=distil, or data.validate_on to the other side"
        )
    first = next(iter(trained))
    features = trained[first].features
    taps = choose_taps(fusion, features.taps if features else {})
    for role, other in (("target", target), ("validation", validation)):
        if other is not None and role != first:
            _check_pair(first, trained[first], role, other, taps, distinguishes_cameras=fusion.interface)
    if taps:
        for each in (*trained.values(), *([validation] if validation is not None else [])):
            each.require_features()
            if each.features is not None:
                check_memberships(fusion, each.features)
    return taps


def check_taps(tap_channels: Mapping[str, int], features: FeatureSource) -> None:
    """Checks that ``features`` have the taps of a network, with the same channels.

    Raises:
        RunError: a tap is missing or has other channels.
    """
    for tap, channels in tap_channels.items():
        spec = features.taps.get(tap)
        if spec is None or spec.channels != channels:
            found = f"{spec.channels} channels" if spec else f"only {', '.join(features.taps)}"
            raise RunError(
                f"The network was trained on tap {tap} with {channels} channels, and these features have {found};"
                " extract them with the settings of the run"
            )


def check_memberships(fusion: FusionSettings, features: FeatureSource) -> None:
    """Checks that ``features`` have the memberships of pixels in agents, if ``fusion`` reads them.

    Raises:
        CacheError: they come from a cache of format 1, which does not store them.
    """
    if fusion.memberships and features.grid is None:
        path = features.path if isinstance(features, FeatureReader) else "CACHE"
        raise CacheError(
            f"The network reads the agents of each pixel (fusion.context={fusion.context},"
            f" fusion.inject={fusion.inject}, fusion.locate_queries={str(fusion.locate_queries).lower()}), which the"
            f" cache {path} does not store (format 1). Add them, without the frozen network: xd3d cache upgrade"
            f" {shlex.quote(str(path))}; or go without: fusion.context=none, fusion.inject=pixel and"
            " fusion.locate_queries=false"
        )


def check_label_rule(rule: LabelRule, fusion: FusionSettings) -> None:
    """Checks that a network with the settings ``fusion`` has the heads and agents that ``rule`` needs.

    Raises:
        ConfigError: one of them is missing.
    """
    if rule.agree and not fusion.image:
        raise ConfigError(
            "Pseudo labels are compared between the 2D and the 3D head (train.pl_agree, train.pl_weigh, --agree), and"
            f" fusion.variant={fusion.variant} has no image branch; go without, or train with images"
        )
    if rule.vote and not fusion.memberships:
        raise ConfigError(
            "Object agents vote on pseudo labels (train.pl_vote, --vote), and this network reads none; go without, or"
            " train with fusion.variant=full and fusion.context=agents"
        )


def check_settings(
    *,
    source: Domain | None,
    target: Domain | None,
    initial: InitialCheckpoint | None,
    fusion: FusionSettings,
    settings: TrainSettings,
) -> None:
    """Checks that the domains are those that the settings train on, and that the losses have what they need.

    Raises:
        ConfigError: they contradict each other.
    """
    for role, domain, wanted, when in (
        ("source", source, not settings.source_free, "with train.source_free=false"),
        ("target", target, settings.uses_target, "with train.lam_trg or train.lam_pl above 0"),
    ):
        if wanted and domain is None:
            raise ConfigError(f"A {role} domain is required {when}, and none is given")
        if domain is not None and not wanted:
            raise ConfigError(f"A {role} domain is used only {when}, and one is given")
    _check_start(initial, settings)
    if target is not None and (target.pseudo is not None) != settings.stored_labels:
        found = "no pseudo labels" if target.pseudo is None else "pseudo labels"
        raise ConfigError(
            "Stored pseudo labels are used only with train.lam_pl above 0 and train.teacher=stored; the settings are"
            f" train.lam_pl={settings.lam_pl:g} and train.teacher={settings.teacher}, and {found} are given"
        )
    by_teacher = settings.teacher == "ema"  # stored labels were chosen by the network that made them
    agree, vote = settings.pl_weigh or (by_teacher and settings.pl_agree), by_teacher and settings.pl_vote
    check_label_rule(LabelRule(agree=agree, vote=vote), fusion)
    if settings.lam_trg and not fusion.image:
        raise ConfigError(
            f"train.lam_trg={settings.lam_trg:g} compares the image's prediction with the cloud's, and"
            f" fusion.variant={fusion.variant} has no image branch; set fusion.variant=image or train.lam_trg=0"
        )


def _check_start(initial: InitialCheckpoint | None, settings: TrainSettings) -> None:
    """Checks that a run starts from weights where its settings rely on them."""
    if initial is None and settings.backbone_rate == 0:
        raise ConfigError(
            "train.backbone_rate=0 freezes the 3D network of another run, and train.init names none: its random weights"
            " would stay; add --set train.init=RUN, or set train.backbone_rate above 0"
        )
    if initial is not None and not initial.pretrained:
        return
    found = "none" if initial is None else f"a run of 'xd3d pretrain', {initial.run.name}, which has no heads"
    advice = "add --set train.init=RUN, with a run of 'xd3d train'"
    if settings.source_free:
        raise ConfigError(f"train.source_free adapts a trained network, and train.init names {found}; {advice}")
    if settings.teacher == "ema":
        raise ConfigError(
            f"train.teacher=ema labels the target with a trained network, and train.init names {found}; {advice}"
        )


def _check_points(domain: Domain, pseudo: PseudoLabels) -> None:
    """Checks by the first frame that the pseudo labels are for the points of ``domain``: all, or those seen."""
    plain = replace(domain, pseudo=None, labelled=False)
    other = replace(plain, every_point=not domain.every_point)
    stored, points = pseudo.points_of(0), len(plain.load(0).points)
    if stored != points and stored == len(other.load(0).points):
        ours, theirs = ("all", "seen") if domain.every_point else ("seen", "all")
        raise RunError(
            f"The pseudo labels in {pseudo.folder} were made with data.points={theirs} ({stored} points in frame"
            f" {domain.key(0)}), and this training has data.points={ours} ({points}). Make others from a run with"
            f" data.points={ours}: xd3d pseudo-label --run RUN; or train with --set data.points={theirs}"
        )


def _check_pair(
    role: str,
    domain: Domain,
    other_role: str,
    other: Domain,
    taps: Mapping[str, TapSpec],
    *,
    distinguishes_cameras: bool,
) -> None:
    """Checks that ``domain`` and ``other`` fit one network, which may distinguish cameras."""
    if other.merge.classes != domain.merge.classes:
        raise ConfigError(
            f"The {role} is labelled with merge {domain.merge.name} and the {other_role} with {other.merge.name};"
            " both need the same classes"
        )
    if other.features is None:
        return
    check_taps({name: spec.channels for name, spec in taps.items()}, other.features)
    cameras, found = len(domain.index.cameras), len(other.index.cameras)
    if distinguishes_cameras and found > cameras:
        raise RunError(
            f"The {role} has {cameras} camera(s) and the {other_role} {found}; prepare the {other_role} with as many"
        )
