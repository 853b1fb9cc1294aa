"""The JSON files of a cache: Zarr metadata of groups and arrays, the manifest in the group attributes, the image keys.

The manifest carries a checksum over itself and the digest of the image keys (in a file of their own, ``images.json``:
hundreds of thousands do not belong in attributes). Everything that is read is treated as untrusted.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import google_crc32c

from ..errors import CacheError, CacheMismatchError, UnfinishedUpgradeError
from ..fingerprint import canonical_json, fingerprint_digest
from .layout import FORMATS, MANIFEST, ArrayLayout, CacheLayout
from .schema import SCALES, TapSpec
from .stores import Store
from .stores.base import Files

__all__ = [
    "KEYS",
    "MANIFEST",
    "checksummed_body",
    "checksummed_line",
    "holds_networks",
    "load_identity",
    "load_layout",
    "load_unfinished",
    "manifest_checksum",
    "metadata_files",
    "networks_manifest",
    "parse_json",
    "unfinished_manifest",
]

KEYS = "images.json"
_ATTRIBUTE = "xd3d_cache"
_NETWORKS = "xd3d_networks"  #: attribute of the group above the parts of a cache of several networks
_UNFINISHED = "1 to 2"  #: stands for the format while the commit records are exchanged


def metadata_files(layout: CacheLayout) -> dict[str, bytes]:
    """Returns every JSON file of an empty cache by path; the manifest comes last, because it publishes the others."""
    arrays = {array.path: _array_metadata(array, layout) for array in layout.arrays.values()}
    nested, usual = {folder for path in arrays for folder in _folders(path)}, ("features", "agents")
    folders = {folder: _group({}) for folder in (*(() if layout.part else usual), *sorted(nested - {*usual}))}
    folders |= {folder: _group({}) for folder in usual if folder in nested}
    files = {f"{name}/zarr.json": _encode(value) for name, value in {**folders, **arrays}.items()}
    manifest = _encode_manifest(_manifest(layout), {**folders, **arrays})
    return {**files, KEYS: _encode_keys(layout.image_keys), MANIFEST: manifest}


def unfinished_manifest(layout: CacheLayout) -> bytes:
    """Returns the manifest that blocks readers and writers while a cache of format 1 is switched to ``layout``."""
    return _encode_manifest({**_manifest(layout), "format": _UNFINISHED}, {})


def networks_manifest() -> dict[str, bytes]:
    """Returns the groups above the parts of a cache of several networks, the outermost last."""
    inner = {f"{folder}/zarr.json": _encode(_group({})) for folder in ("features", "agents")}
    return {**inner, MANIFEST: _encode(_group({_NETWORKS: 1}))}


def holds_networks(store: Files) -> bool:
    """Returns whether ``store`` is a cache of several networks; False if its manifest is missing or damaged."""
    try:
        return _of_networks(parse_json(store.read(MANIFEST), store.describe(MANIFEST)))
    except CacheError:
        return False


def _of_networks(manifest: Any) -> bool:
    attributes = manifest.get("attributes") if isinstance(manifest, dict) else None
    return isinstance(attributes, dict) and _NETWORKS in attributes


def manifest_checksum(layout: CacheLayout) -> str:
    """Returns the checksum of a layout's manifest; it links commit records to their cache."""
    return str(_manifest(layout)["checksum"])


def load_layout(store: Files) -> CacheLayout:
    """Reads the layout of the cache in ``store`` from its manifest and its image keys.

    Raises:
        UnfinishedUpgradeError: it is between two formats.
        CacheMismatchError: it is of another format.
        CacheError: there is no cache, or a file is damaged; the message names the file.
    """
    facts = _facts(store)
    if facts["format"] == _UNFINISHED:
        raise UnfinishedUpgradeError(
            f"The cache in {store.describe()} is between two formats, because its upgrade is not finished; nothing is"
            f" lost, finish it with: xd3d cache upgrade {shlex.quote(store.describe())}"
        )
    with _damage_named(store):
        _require_checksum(store, facts)
    if facts["format"] not in FORMATS:
        raise CacheMismatchError(
            f"The cache in {store.describe()} has format {facts['format']!r}, this version reads"
            f" {' and '.join(map(str, FORMATS))}; use a newer xd3d, or extract the features again"
        )
    return _layout(store, facts)


def load_identity(store: Files) -> dict[str, Any]:
    """Reads the ``CacheLayout.identity`` of the cache in ``store`` from its manifest alone.

    Raises:
        CacheError: there is no cache, its manifest is damaged, or it is between two formats.
    """
    facts = _facts(store)
    with _damage_named(store):
        _require_checksum(store, facts)
        return {"profile": str(facts["profile"]), **facts["fingerprint"]}


def load_unfinished(store: Store) -> CacheLayout | None:
    """Reads the target layout of an unfinished upgrade of the cache in ``store``; None if there is none.

    Raises:
        CacheError: there is no cache, or a file is damaged.
    """
    facts = _facts(store)
    return _layout(store, {**facts, "format": FORMATS[-1]}) if facts["format"] == _UNFINISHED else None


def _facts(store: Files) -> dict[str, Any]:
    """What the manifest says, its format at least."""
    if not store.exists(MANIFEST):
        raise CacheError(f"There is no feature cache in {store.describe()}; make one with: xd3d extract-features")
    file = store.describe(MANIFEST)
    manifest = parse_json(store.read(MANIFEST), file)
    try:
        facts: dict[str, Any] = manifest["attributes"][_ATTRIBUTE]
        facts["format"]
    except (KeyError, TypeError) as error:
        if _of_networks(manifest):
            raise CacheError(
                f"{store.describe()} is a cache of several networks; give one of its parts, such as"
                f" {store.describe('features')}/NETWORK (xd3d cache info lists them)"
            ) from error
        raise CacheError(f"{file} is not the manifest of a feature cache (no attribute {error})") from error
    return facts


@contextmanager
def _damage_named(store: Files) -> Iterator[None]:
    """Turns errors in the manifest into a ``CacheError`` that names the file."""
    file = store.describe(MANIFEST)
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, CacheError):
            raise
        raise CacheError(f"The manifest {file} is damaged ({type(error).__name__}: {error})") from error


def parse_json(data: bytes, file: str) -> Any:
    """Parses one file of a cache; raises a ``CacheError`` that names the file if it is invalid."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{file} is damaged: it is no JSON ({error})") from error


def checksummed_line(kind: str, body: bytes) -> bytes:
    """Returns a line of JSON with ``body`` (JSON too) under the key ``kind``, and its crc32c."""
    return b'{"crc32c":"%08x","%s":%s}\n' % (google_crc32c.value(body), kind.encode(), body)


def checksummed_body(kind: str, line: bytes) -> bytes | None:
    """Returns the ``body`` of a ``checksummed_line``; None if the line does not match its checksum."""
    body = line[len(checksummed_line(kind, b"")) - len(b"}\n") : -len(b"}\n")]
    return body if line == checksummed_line(kind, body) else None


def _manifest(layout: CacheLayout) -> dict[str, Any]:
    facts = {
        "format": layout.format,
        "profile": layout.profile,
        "fingerprint": dict(layout.fingerprint),
        "digest": fingerprint_digest(layout.fingerprint),
        "taps": [_encode_tap(tap) for tap in layout.taps],
        **({} if layout.grid is None else {"grid": _encode_tap(layout.grid)}),
        "agents": layout.agents,
        **({"part": layout.part} if layout.part else {}),
        "images": layout.images,
        "images_per_frame": layout.images_per_frame,
        "images_per_shard": layout.images_per_shard,
        "image_keys": {"file": KEYS, "sha256": hashlib.sha256(_encode_keys(layout.image_keys)).hexdigest()},
    }
    return {**facts, "checksum": _checksum(facts)}


def _layout(store: Files, facts: dict[str, Any]) -> CacheLayout:
    with _damage_named(store):
        _require_checksum(store, facts)
        data, file = store.read(KEYS), store.describe(KEYS)
        if hashlib.sha256(data).hexdigest() != facts["image_keys"]["sha256"]:
            raise CacheError(f"{file} is damaged: the manifest gives it another sha256")
        keys = parse_json(data, file)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(keys) != facts["images"]:
            raise CacheError(f"{file} does not hold the {facts['images']} image keys of the manifest")
        layout = CacheLayout(
            taps=tuple(_tap(values) for values in facts["taps"]),
            agents=_integer(facts["agents"]),
            image_keys=tuple(keys),
            images_per_frame=_integer(facts["images_per_frame"]),
            images_per_shard=_integer(facts["images_per_shard"]),
            fingerprint=dict(facts["fingerprint"]),
            profile=str(facts["profile"]),
            grid=_tap(facts["grid"]) if facts["format"] != 1 and facts.get("part") != "features" else None,
            part=str(facts.get("part", "")),
        )
        if layout.images_per_shard > layout.images:
            raise CacheError(
                f"{store.describe(MANIFEST)} gives shards of {layout.images_per_shard} images to {layout.images} images"
            )
        return layout


def _require_checksum(store: Files, facts: dict[str, Any]) -> None:
    unsigned = {key: value for key, value in facts.items() if key != "checksum"}
    if _checksum(unsigned) != facts["checksum"]:
        raise CacheError(f"The manifest {store.describe(MANIFEST)} is damaged: it does not match its checksum")


def _encode_tap(tap: TapSpec) -> dict[str, Any]:
    return {**asdict(tap), "extent": [float(cells) for cells in tap.extent]}


def _tap(values: dict[str, Any]) -> TapSpec:
    down, across = (float(cells) for cells in values["extent"])
    sizes = {name: _integer(values[name]) for name in ("channels", "height", "width")}
    return TapSpec(name=str(values["name"]), extent=(down, across), dtype=values["dtype"], **sizes)


def _integer(value: Any) -> int:
    if type(value) is not int or value > 2**40:
        raise CacheError(f"The manifest is damaged: {value!r} is not a count")
    return value


def _folders(name: str) -> list[str]:
    """Returns the groups above an array, outermost first."""
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _group(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _encode_manifest(facts: dict[str, Any], metadata: dict[str, Any]) -> bytes:
    """Encodes the metadata of the root group, with the consolidated metadata of all its members."""
    consolidated = {"kind": "inline", "must_understand": False, "metadata": metadata}
    return _encode({**_group({_ATTRIBUTE: facts}), "consolidated_metadata": consolidated})


def _array_metadata(array: ArrayLayout, layout: CacheLayout) -> dict[str, Any]:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": [1, *array.row_shape],
        "codecs": [{"name": "bytes"} if array.dtype.itemsize == 1 else little],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    chunk = {"chunk_shape": [layout.images_per_shard, *array.row_shape]}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [layout.images, *array.row_shape],
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": chunk},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0 if array.dtype.kind == "u" else 0.0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": _encoding(array, layout),
        "dimension_names": list(array.dimensions),
        "storage_transformers": [],
    }


def _encoding(array: ArrayLayout, layout: CacheLayout) -> dict[str, str]:
    """Returns attributes that tell any reader how to decode the array."""
    if SCALES + array.name not in layout.arrays:  # it holds no codes
        return {}
    value = "float8_e4m3fn(code) * scales[image, 0, channel] + scales[image, 1, channel]"
    return {"value": value, "scales": SCALES + array.name}


def _checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()


def _encode(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


@lru_cache(maxsize=1)  # opening a cache asks for it several times
def _encode_keys(keys: tuple[str, ...]) -> bytes:
    return (json.dumps(keys, indent=0) + "\n").encode()
