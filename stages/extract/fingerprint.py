"""The fingerprint of features: everything that changes the bytes stage one stores, and nothing else.

Batch size, compilation, device and shard size are left out: they change results by rounding at most. The precision is
in it; where it is left to the machine, more than one fingerprint will do.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ..datasets.index import FrameIndex
from .backbones import with_default_taps
from .diffusion_backbone import PROMPT
from .images import IMAGE_METHOD
from .models import resolve_model, resolve_unet, settings_model, unet_digest
from .precision import precisions
from .settings import ExtractSettings

__all__ = ["FEATURE_FORMAT", "feature_fingerprint", "feature_fingerprints", "partial_fingerprints", "shared_fields"]

FEATURE_FORMAT = 2  #: raised whenever the same settings would give other features


def feature_fingerprint(settings: ExtractSettings, index: FrameIndex) -> dict[str, Any]:
    """Returns the facts that the features of ``index`` depend on when this machine computes them, as JSON values.

    Raises:
        ModelError: the model cannot be found or is incomplete.
    """
    return feature_fingerprints(settings, index)[0]


def feature_fingerprints(settings: ExtractSettings, index: FrameIndex) -> list[dict[str, Any]]:
    """Returns the fingerprint of ``index`` in every precision that ``settings`` allow, that of this machine first.

    Raises:
        ModelError: the model cannot be found or is incomplete.
    """
    model = settings_model(settings)
    digests = {"model": model.digest, "unet": model.unet_digest}
    return _fingerprints(with_default_taps(model, settings), index, digests, precisions(settings, model))


def partial_fingerprints(settings: ExtractSettings, index: FrameIndex, absent: Collection[str]) -> list[dict[str, Any]]:
    """Like ``feature_fingerprints``, with None as the digest of each model in ``absent`` (see ``missing_models``).

    Every precision that ``settings`` allow for some model is included. The hub is not contacted.

    Raises:
        ModelError: what is on this machine is incomplete.
    """
    digests: dict[str, str | None] = dict.fromkeys(absent)
    if "model" not in absent:
        digests["model"] = resolve_model(settings.model, weights=settings.weights, offline=True).digest
    if settings.unet and "unet" not in absent:
        digests["unet"] = unet_digest(resolve_unet(settings.unet, offline=True))
    return _fingerprints(settings, index, digests, precisions(settings, None))


def shared_fields(settings: ExtractSettings, index: FrameIndex) -> dict[str, Any]:
    """Returns the facts that all parts of a cache of several networks have in common."""
    fields = _fingerprints(settings, index, {"model": None, "unet": None}, [""])[0]
    return {key: value for key, value in fields.items() if key not in ("model", "taps", "dtype", "agents", "unet")}


def _fingerprints(
    settings: ExtractSettings, index: FrameIndex, digests: Mapping[str, str | None], precisions: Iterable[str]
) -> list[dict[str, Any]]:
    fields: dict[str, Any] = {
        "format": FEATURE_FORMAT,
        "model": digests["model"],
        "weights": settings.weights if settings.weights == "pretrained" else f"random, seed {settings.weights_seed}",
        "taps": list(settings.taps),
        "timestep": settings.timestep,
        "noise_seed": settings.noise_seed if settings.timestep and settings.noise else None,
        "prompt": PROMPT,
        "image_size": list(settings.image_size),
        "image_method": IMAGE_METHOD,
        "dtype": "",
        "agents": settings.agents.model_dump(mode="json"),
        "views": list(settings.views),
        "index": index.digest,
    }
    # Fields of later versions stand only where they matter, so that earlier caches keep their fingerprints.
    if settings.unet:
        fields["unet"] = digests["unet"]
    if settings.draws > 1:
        fields["draws"] = settings.draws
    if not settings.noise:
        fields["noise"] = False
    if settings.decoding != "full":
        fields["decoding"] = settings.decoding
    if settings.profile != "exact":
        fields["profile"] = settings.profile
    if settings.exported_from:
        fields["exported_from"] = settings.exported_from
    if settings.maps_only:
        del fields["agents"]
    return [{**fields, "dtype": dtype} for dtype in precisions]
