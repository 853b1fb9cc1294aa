"""Finds the cache of a model that is not on this machine: all fields must match but those only the model tells."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..cache.metadata import load_identity
from ..cache.recipe import load_recipe
from ..cache.stores import open_store
from ..errors import CacheError, CacheMismatchError
from ..fingerprint import identity_differences
from ..stages.extract.catalogue import DIFFUSION_NAMES, PACKAGED_NAMES
from ..stages.extract.settings import DEFAULT_TAPS

__all__ = ["adopted_fingerprint", "fitting_cache"]

log = logging.getLogger(__name__)

Fingerprint = Mapping[str, Any]
Cache = Path | str

_PARTS = {"model": "the model", "unet": "the UNet weights"}


def fitting_cache(fingerprint: Fingerprint, caches: Sequence[Cache]) -> Cache | None:
    """Returns the first of ``caches`` with ``fingerprint``, or None."""
    found = _identities(caches)
    return next((cache for cache, own in found.items() if not identity_differences(fingerprint, own)), None)


def adopted_fingerprint(
    wanted: Sequence[Fingerprint],
    absent: Mapping[str, str],
    caches: Sequence[Cache],
    *,
    usual: Callable[[Fingerprint], Cache],
) -> Fingerprint:
    """Returns the fingerprint of the cache that equals one of ``wanted`` in all but what the absent models tell.

    ``wanted``: fingerprints, the best first, with None for the digests of ``absent`` (field -> model name). ``caches``:
    the newest first; a cache in its ``usual`` location is preferred to copies. A warning names the chosen cache. If
    none fits, the fingerprint closest to the newest cache is returned; the reader refuses it and names the fields.
    Caches of models that xd3d ships are never those of an absent one.

    Raises:
        CacheError: caches of different models fit.
        CacheMismatchError: there are only caches of models that xd3d ships.
    """
    known = _identities(caches)
    found = {cache: own for cache, own in known.items() if not _of_packaged_model(cache, absent)}
    if not found:
        if known:
            raise CacheMismatchError(
                f"{_said(absent)}, and no cache was made with it ({next(iter(known))} was made with a bundled model)."
                " Bring the model here (xd3d models list), and extract its features: xd3d extract-features"
            )
        return wanted[0]
    fits = [
        (cache, fields)
        for cache, own in found.items()
        for fields in _completed(wanted, absent, cache, own)
        if not identity_differences(fields, own)
    ]
    if not fits:
        cache, newest = next(iter(found.items()))
        closest = _completed(wanted, absent, cache, newest)
        return min(closest, key=lambda fields: len(identity_differences(fields, newest)))
    _require_one_model(fits, absent)
    dtypes = [fields["dtype"] for fields in wanted]
    cache, fields = min(fits, key=lambda fit: (dtypes.index(fit[1]["dtype"]), usual(fit[1]) != fit[0]))
    named = _described(cache, fields, absent)
    log.warning("%s: the features are those of %s, which matches in all other fields", _said(absent), named)
    return fields


def _completed(
    wanted: Sequence[Fingerprint], absent: Mapping[str, str], cache: Cache, own: Fingerprint
) -> list[dict[str, Any]]:
    """Returns ``wanted`` with what only the absent models could tell, from a cache's identity.

    These are their digests, and the default taps of a network that is no known UNet.
    """
    known = {part: own.get(part) for part in absent}
    usual = list(DEFAULT_TAPS)
    if absent.get("model", DIFFUSION_NAMES[0]) not in DIFFUSION_NAMES and wanted[0]["taps"] == usual:
        known["taps"] = own.get("taps") if _settings_of(cache).get("taps") == usual else usual
    return [{**fields, **known} for fields in wanted]


def _identities(caches: Sequence[Cache]) -> dict[Cache, Fingerprint]:
    """Returns the fingerprint of each cache; damaged caches are left out."""
    found: dict[Cache, Fingerprint] = {}
    for cache in caches:
        with suppress(CacheError):
            found[cache] = load_identity(open_store(cache))
    return found


def _of_packaged_model(cache: Cache, absent: Mapping[str, str]) -> bool:
    """Whether a cache was made with a model of this package, which the absent one cannot be."""
    if "model" not in absent:
        return False
    return _settings_of(cache).get("model") in PACKAGED_NAMES


def _settings_of(cache: Cache) -> dict[str, Any]:
    """Returns the settings that a cache was made with, if it says so."""
    return dict((load_recipe(open_store(cache)) or {}).get("extract", {}))


def _require_one_model(fits: Sequence[tuple[Cache, Fingerprint]], absent: Mapping[str, str]) -> None:
    if len({tuple(fields[part] for part in absent) for _, fields in fits}) > 1:
        listed = "\n".join(f"  {_described(cache, fields, absent)}" for cache, fields in fits)
        raise CacheError(
            f"{_said(absent)}, and caches of different models match in all other fields:\n{listed}\nMove the one to use"
            " into a separate folder and name that folder (--set extract.caches=FOLDER, or XD3D_CACHES=FOLDER), or"
            " install the model on this machine"
        )


def _said(absent: Mapping[str, str]) -> str:
    named = " and ".join(f"{_PARTS[part]} '{name}'" for part, name in absent.items())
    return f"{named[0].upper()}{named[1:]} {'is' if absent.keys() == {'model'} else 'are'} not on this machine"


def _described(cache: Cache, fields: Fingerprint, absent: Iterable[str]) -> str:
    """A cache, the digests of its models, and what they were called where it was made, if it says so."""
    made = _settings_of(cache)
    facts = [f"digest {str(fields[part])[:12]}" for part in absent]
    facts += [f"made with {name!r}" for part in _PARTS if (name := made.get(part))]
    return f"{cache} ({', '.join(facts)})"
