"""Finds the cache of a model that is not on this machine: its digest comes from the cache, all else is compared."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache.metadata import load_identity
from ..cache.recipe import load_recipe
from ..cache.stores import open_store
from ..errors import CacheError
from ..fingerprint import identity_differences

__all__ = ["adopted_fingerprint", "fitting_cache"]

log = logging.getLogger(__name__)

Fingerprint = Mapping[str, Any]
Cache = Path | str

_PARTS = {"model": "the model", "unet": "the UNet weights"}


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A cache, the wanted fingerprint with the digests of this cache, and the differences to the cache's own."""

    cache: Cache
    fingerprint: Fingerprint
    digests: tuple[str, ...]
    differs: Sequence[str]


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
    """Returns the fingerprint of the cache that equals one of ``wanted`` in all but the digests of absent models.

    ``wanted``: fingerprints, the best first, with None for the digests of ``absent`` (field -> model name). ``caches``:
    the newest first; a cache in its ``usual`` location is preferred to copies. A warning names the chosen cache. If
    none fits, the fingerprint closest to the newest cache is returned; the reader refuses it and names the fields.

    Raises:
        CacheError: caches of different models fit.
    """
    candidates = [
        _candidate(fields, absent, cache, own) for cache, own in _identities(caches).items() for fields in wanted
    ]
    if not candidates:
        return wanted[0]
    fits = [candidate for candidate in candidates if not candidate.differs]
    if not fits:
        newest = [candidate for candidate in candidates if candidate.cache == candidates[0].cache]
        return min(newest, key=lambda candidate: len(candidate.differs)).fingerprint
    _require_one_model(fits, absent)
    dtypes = [fields["dtype"] for fields in wanted]
    best = min(fits, key=lambda fit: (dtypes.index(fit.fingerprint["dtype"]), usual(fit.fingerprint) != fit.cache))
    log.warning("%s: the features are those of %s, which fits in everything else", _said(absent), _described(best))
    return best.fingerprint


def _identities(caches: Sequence[Cache]) -> dict[Cache, Fingerprint]:
    """Returns the fingerprint of each cache; damaged caches are left out."""
    found: dict[Cache, Fingerprint] = {}
    for cache in caches:
        with suppress(CacheError):
            found[cache] = load_identity(open_store(cache))
    return found


def _candidate(fields: Fingerprint, absent: Mapping[str, str], cache: Cache, own: Fingerprint) -> _Candidate:
    digests = {part: own.get(part) for part in absent}
    completed = {**fields, **digests}
    return _Candidate(
        cache=cache,
        fingerprint=completed,
        digests=tuple(str(digest) for digest in digests.values()),
        differs=identity_differences(completed, own),
    )


def _require_one_model(fits: Sequence[_Candidate], absent: Mapping[str, str]) -> None:
    if len({fit.digests for fit in fits}) > 1:
        listed = "\n".join(f"  {_described(fit)}" for fit in fits)
        raise CacheError(
            f"{_said(absent)}, and caches of different models fit in everything else:\n{listed}\nMove the one that is"
            " meant into a folder of its own and name that folder (--set extract.caches=FOLDER, or XD3D_CACHES=FOLDER),"
            " or bring the model here"
        )


def _said(absent: Mapping[str, str]) -> str:
    named = " and ".join(f"{_PARTS[part]} '{name}'" for part, name in absent.items())
    return f"{named[0].upper()}{named[1:]} {'is' if absent.keys() == {'model'} else 'are'} not on this machine"


def _described(fit: _Candidate) -> str:
    """A cache, the digests of its models, and what they were called where it was made, if it says so."""
    recipe = load_recipe(open_store(fit.cache))
    facts = [f"digest {digest[:12]}" for digest in fit.digests]
    if recipe is not None:
        facts += [f"made with {name!r}" for part in _PARTS if (name := recipe.get("extract", {}).get(part))]
    return f"{fit.cache} ({', '.join(facts)})"
