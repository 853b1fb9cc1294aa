"""What is checked before training: that the domains, their features and the settings go together."""

from collections.abc import Mapping

from ...errors import ConfigError, RunError
from .domain import Domain
from .settings import FusionSettings, TrainSettings
from .source import FeatureSource

__all__ = ["check_domains", "check_taps"]


def check_domains(
    *,
    source: Domain,
    target: Domain | None,
    validation: Domain | None,
    fusion: FusionSettings,
    settings: TrainSettings,
) -> None:
    """Refuse what cannot be trained, or would be trained without the reader's knowing.

    Raises:
        RunError: a domain has no frames, or no features where the settings use images.
        ConfigError: settings that contradict each other or the domains.
    """
    source.require_frames("source")
    if fusion.image and source.features is None:
        raise RunError(
            f"fusion.variant={fusion.variant} uses images, and the source has no features; extract them, or set"
            " fusion.variant=3d-only"
        )
    if validation is not None:
        validation.require_frames("validation")
        _same_classes(source, validation, "validation")
    if (target is not None) != settings.uses_target:
        found = "none is given" if target is None else "one is given"
        raise ConfigError(
            f"A target is trained on where train.lam_trg is above 0; it is {settings.lam_trg:g}, and {found}"
        )
    if target is not None:
        _check_target(source, target, fusion, settings)


def check_taps(tap_channels: Mapping[str, int], features: FeatureSource) -> None:
    """Check that ``features`` have the taps of a network, with its channels.

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


def _check_target(source: Domain, target: Domain, fusion: FusionSettings, settings: TrainSettings) -> None:
    target.require_frames("target")
    _same_classes(source, target, "target")
    if not fusion.image:
        raise ConfigError(
            f"train.lam_trg={settings.lam_trg:g} compares the image's prediction with the cloud's, and"
            f" fusion.variant={fusion.variant} has no image branch; set fusion.variant=image or train.lam_trg=0"
        )
    if target.features is None:
        raise RunError("The losses on the target compare images with clouds, and it has no features; extract them")
    if fusion.interface and len(target.index.cameras) > len(source.index.cameras):
        raise RunError(
            f"The source has {len(source.index.cameras)} camera(s) and the target {len(target.index.cameras)}; prepare"
            " the target with as many as the source"
        )


def _same_classes(source: Domain, other: Domain, role: str) -> None:
    if other.merge.classes != source.merge.classes:
        raise ConfigError(
            f"The source is labelled with merge {source.merge.name} and the {role} with {other.merge.name};"
            " both need the same classes"
        )
