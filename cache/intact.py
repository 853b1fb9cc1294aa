"""Whether the metadata files of a cache are what its writer made."""

from ..errors import CacheError
from ..fingerprint import canonical_json
from .finished import FINISHED, finished_fault
from .layout import CacheLayout
from .metadata import STORAGE, metadata_files, parse_json
from .recipe import RECIPE, recipe_fault
from .stores.base import Store

__all__ = ["metadata_faults", "refuse_damaged_metadata"]


def metadata_faults(store: Store, layout: CacheLayout) -> dict[str, str]:
    """File -> what is wrong, for every metadata file that is not, byte for byte, what the writer made."""
    return _faults(store, layout, byte_for_byte=True)


def refuse_damaged_metadata(store: Store, layout: CacheLayout) -> None:
    """Refuse a cache whose metadata is damaged; arrays that another tool has stored in another way are let pass.

    Raises:
        CacheError: a file is missing, damaged, or says something else than the manifest; the message names it.
    """
    for file, reason in _faults(store, layout, byte_for_byte=False).items():
        raise CacheError(
            f"{store.describe(file)} is damaged: {reason}; mend it with: xd3d cache repair {store.describe()}"
        )


def _faults(store: Store, layout: CacheLayout, *, byte_for_byte: bool) -> dict[str, str]:
    faults = {}
    for name, data in metadata_files(layout).items():
        try:
            found = store.read(name)
            if found != data and (byte_for_byte or not _mean_the_same(found, data, store.describe(name))):
                faults[name] = "it differs from what the writer made"
        except CacheError as error:
            faults[name] = str(error)
    others = {RECIPE: recipe_fault(store), FINISHED: finished_fault(store, layout)}
    return faults | {name: reason for name, reason in others.items() if reason}


def _mean_the_same(found: bytes, made: bytes, file: str) -> bool:
    """Whether two metadata files say the same, or the first describes an array that is stored in another way."""
    try:
        theirs, ours = parse_json(found, file), parse_json(made, file)
        if ours["node_type"] == "array" and any(
            canonical_json(theirs.get(key)) != canonical_json(ours[key]) for key in STORAGE
        ):
            return True
        return canonical_json(theirs) == canonical_json(ours)
    except (ValueError, RecursionError, AttributeError) as error:
        raise CacheError(f"it is no metadata of a cache ({error})") from error
