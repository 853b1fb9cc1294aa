"""Several networks in one cache: the maps of each in a part of its own, then agents from the stored maps of all.

A part that is there already is kept, so adding a network computes that network alone, and agents. Agents are grouped
from the maps as they are stored, so they do not depend on which network came first.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...cache.layout import CacheLayout
from ...cache.metadata import MANIFEST, load_identity, load_layout
from ...cache.network_parts import agents_part, create_networks, network_part
from ...cache.reader import FeatureReader
from ...cache.schema import TapSpec
from ...cache.stored import StoredRows
from ...cache.stores import open_store
from ...cache.verify import cache_info
from ...errors import CacheError, CacheMismatchError
from ...fingerprint import differences, fingerprint_digest
from ...processes import select_device
from ..datasets.index import FrameIndex
from .agents import AgentMaker
from .backbones import network_settings, tap_specs
from .encode import decoded, stored_rows
from .extractor import ACTIVITIES, StageClock, agent_arrays
from .fingerprint import feature_fingerprints, shared_fields
from .images import FeatureMaps, PictureArray, PictureSource, shrink_to_stride
from .job import (
    ExtractSummary,
    cache_opener,
    check_disk,
    extract_features,
    fill_pending,
    planned_layout,
    summarise,
)
from .models import missing_models, settings_model
from .settings import DEFAULT_TAPS, RGB, ExtractSettings, network_taps
from .taps import map_specs

__all__ = ["NetworksPlan", "extract_networks", "group_networks"]

#: fields that all parts have in common, whatever their network
SHARED = ("decoding", "image_size", "index", "profile", "views", "weights")
GPU_BATCH = 16  #: images that are grouped together on a GPU
FillPart = Callable[..., ExtractSummary]  #: ``extract_features``, or a function of its arguments


@dataclass(frozen=True, kw_only=True)
class NetworksPlan:
    """What the cache of several networks in ``path`` holds for ``settings``: the fingerprints of its parts.

    An existing part keeps its precision, and its taps if they include the requested ones. The part of a network that is
    not on this machine is used as it is. With ``reading``, a missing part is an error.
    """

    index: FrameIndex
    settings: ExtractSettings
    path: Path | str
    reading: bool = False

    @cached_property
    def parts(self) -> dict[str, tuple[ExtractSettings | None, dict[str, Any]]]:
        """Network -> the settings that its part is computed with (None: not on this machine), and its fingerprint.

        Raises:
            ModelError: a network is neither on this machine nor in the cache, or is incomplete.
            CacheError: the part of a network lacks a tap, or is missing when ``reading``.
            CacheMismatchError: a part was made with other settings.
        """
        return {name: self._part(name) for name in self.settings.networks}

    @property
    def taps(self) -> tuple[str, ...]:
        """Every tap that is read, by its name in the cache.

        Raises:
            ModelError, CacheError: see ``parts``.
        """
        if self.settings.taps != DEFAULT_TAPS:
            return self.settings.taps
        return (*(f"{name}/{tap}" for name, (_, fields) in self.parts.items() for tap in fields["taps"]), RGB)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """``networks``: name -> the fingerprint of its maps; ``agents``: that of what summarises them.

        Raises:
            ModelError, CacheError: see ``parts``.
        """
        networks = {name: fields for name, (_, fields) in self.parts.items()}
        agents = {
            **shared_fields(self.settings, self.index),
            "networks": {name: fingerprint_digest(fields) for name, fields in networks.items()},
            "taps": list(self.taps),
            "agents": self.settings.agents.model_dump(mode="json"),
        }
        return {"networks": networks, "agents": agents}

    @property
    def agents_path(self) -> Path | str:
        """Where the agents are kept."""
        return agents_part(self.path, self.fingerprint["agents"])

    def incomplete(self, retry_failed: bool = False) -> dict[str, ExtractSettings]:
        """Returns the networks whose part lacks images, with the settings that it is computed with.

        Raises:
            ModelError, CacheError: see ``parts``.
        """
        return {
            name: part
            for name, (part, fields) in self.parts.items()
            if part is not None and not _is_complete(network_part(self.path, name), fields, retry_failed)
        }

    def agents_layout(self) -> CacheLayout:
        """Returns the layout of the part of the agents; no weights are loaded.

        Raises:
            ModelError, CacheError: see ``parts``.
            DataError, ConfigError: see ``planned_layout``.
        """
        specs = map_specs(self.settings.model_copy(update={"taps": (RGB,)}), {}, {})
        for name, (part, _) in self.parts.items():
            location = open_store(network_part(self.path, name))
            stored = load_layout(location).taps if location.exists(MANIFEST) else ()
            found = stored or (tap_specs(settings_model(part), part).values() if part else ())
            specs |= {f"{name}/{spec.name}": replace(spec, name=f"{name}/{spec.name}") for spec in found}
        whole = planned_layout(self.index, self.settings, {tap: specs[tap] for tap in self.taps})
        return replace(whole, fingerprint=self.fingerprint["agents"])

    def _part(self, name: str) -> tuple[ExtractSettings | None, dict[str, Any]]:
        stored = _stored_fingerprint(network_part(self.path, name))
        if stored is None and self.reading:
            raise CacheError(
                f"The cache {self.path} has no features of the network '{name}'; add them with: xd3d extract-features"
                f" --dataset {self.index.dataset} (the same --config and --set)"
            )
        wanted = set(network_taps(self.settings.taps, name))
        if stored and not wanted <= set(stored["taps"]):
            raise CacheError(
                f"The cache {self.path} holds the taps {', '.join(stored['taps'])} of the network '{name}', not"
                f" {', '.join(sorted(wanted - set(stored['taps'])))}; choose among them, or keep this one in another"
                " folder (extract.caches=FOLDER)"
            )
        if stored and missing_models(self.settings.model_copy(update={"model": self.settings.networks[name]})):
            shared = shared_fields(self.settings, self.index)
            expected, found = (
                {key: value for key, value in fields.items() if key in SHARED} for fields in (shared, stored)
            )
            self._check_part(name, expected, found)
            return None, stored
        settings = network_settings(self.settings, name)
        if stored:
            settings = settings.model_copy(update={"taps": tuple(stored["taps"])})
        allowed = feature_fingerprints(settings, self.index)
        fields = next((each for each in allowed if stored and each["dtype"] == stored["dtype"]), allowed[0])
        if stored:
            self._check_part(name, fields, stored)
        return settings.model_copy(update={"dtype": fields["dtype"]}), fields

    def _check_part(self, name: str, expected: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
        if lines := differences(expected, stored):
            raise CacheMismatchError(
                f"The part of the network '{name}' in the cache {self.path} was made with other settings:\n  "
                + "\n  ".join(lines)
                + "\nChange the settings back, or keep this one in another folder (extract.caches=FOLDER)"
            )


def _stored_fingerprint(path: Path | str) -> dict[str, Any] | None:
    """Returns the fingerprint of a part; None if there is none."""
    if not open_store(path).exists(MANIFEST):
        return None
    fields = load_identity(open_store(path))
    return {key: value for key, value in fields.items() if (key, value) != ("profile", "exact")}


def extract_networks(
    index: FrameIndex,
    settings: ExtractSettings,
    cache_path: Path | str,
    *,
    fill: FillPart = extract_features,
    retry_failed: bool = False,
) -> ExtractSummary:
    """Writes the maps of every network of ``settings.models``, and their agents, or resumes an earlier run.

    ``fill`` fills the part of one network. Where a part is complete, its network is not loaded. The settings, taps and
    files of all networks are checked before the first one runs.

    Raises:
        ModelError, MissingDataError, CacheError, CacheMismatchError, DiskSpaceError: as ``extract_features``.
    """
    start = time.monotonic()
    plan = NetworksPlan(index=index, settings=settings, path=cache_path)
    plan.agents_layout()
    create_networks(cache_path)
    done: list[ExtractSummary] = []
    for name, part in plan.incomplete(retry_failed).items():
        done.append(fill(index, part, network_part(cache_path, name), retry_failed=retry_failed))
    done.append(group_networks(plan, retry_failed=retry_failed))
    total = sum(each.seconds for each in done)
    shares = {
        activity: sum(each.shares.get(activity, 0.0) * each.seconds for each in done) / total for activity in ACTIVITIES
    }
    computed = [each.images_per_second for each in done if each.images_per_second]
    return replace(
        done[-1],
        cache=cache_path,
        fingerprint=fingerprint_digest(plan.fingerprint),
        seconds=time.monotonic() - start,
        images_per_second=1.0 / sum(1.0 / rate for rate in computed) if computed else 0.0,
        shares=shares,
    )


def _is_complete(path: Path | str, fields: Mapping[str, Any], retry_failed: bool) -> bool:
    if not open_store(path).exists(MANIFEST):
        return False
    found = cache_info(path)
    whole = found["done"] + found["failed"] == found["images"] and not (retry_failed and found["failed"])
    return bool(whole) and found["fingerprint"] == fingerprint_digest(fields)


def group_networks(plan: NetworksPlan, *, retry_failed: bool = False) -> ExtractSummary:
    """Writes the agents of the images whose maps every network's part has, from those maps.

    Raises:
        CacheError: a part is missing or damaged, or the agents cannot be written.
        CacheMismatchError: a part was made with other settings.
    """
    start, settings, layout = time.monotonic(), plan.settings, plan.agents_layout()
    pictures = PictureSource.of(plan.index, settings)
    grouper, path = _Grouper(plan, layout), plan.agents_path
    opener = cache_opener(plan.index, settings, path, fingerprint=layout.fingerprint)
    with opener(taps=layout.taps, shared=True) as writer:
        shards = list(writer.layout.shards())
        pending = [shard for shard in writer.pending_shards(retry_failed) if grouper.has_all(shard.rows)]
        check_disk(path, writer.layout, pending)
        fill_pending(writer, shards, pending, grouper, pictures)
        return summarise(writer, shards, pending, grouper.clock, start=start)


class _Grouper:
    """Computes the agents of a batch of pictures, and ``rgb``, from the maps in the parts; a ``BatchExtractor``."""

    def __init__(self, plan: NetworksPlan, layout: CacheLayout) -> None:
        settings = plan.settings
        self.clock = StageClock()
        self._profile = settings.profile
        self._device = select_device(settings.device, setting="extract.device")
        self.batch_size = settings.batch_size or (1 if self._device.type == "cpu" else GPU_BATCH)
        self._specs: dict[str, TapSpec] = {spec.name: spec for spec in layout.taps}
        self._agents = AgentMaker(
            settings=settings.agents, specs=self._specs, image_size=settings.image_size, device=self._device
        )
        self._readers = {
            name: FeatureReader(network_part(plan.path, name), expected=fields)
            for name, (_, fields) in plan.parts.items()
        }
        self._row_of_key = {key: row for row, key in enumerate(layout.image_keys)}
        for reader in self._readers.values():
            if reader.image_keys != layout.image_keys:
                raise CacheError(f"The part {reader.path} holds other images than the others; make it again")

    def has_all(self, rows: Sequence[int]) -> bool:
        """Returns whether all ``rows`` were computed, or failed, in every part."""
        chosen = list(rows)
        return all(
            (reader.available[chosen] | np.isin(chosen, list(reader.failed))).all() for reader in self._readers.values()
        )

    def begin(self, pictures: PictureArray, keys: Sequence[str]) -> Callable[[], StoredRows]:
        """Returns what computes the rows of a batch, numbered by batch index: there is no model to run first."""
        return partial(self._rows, pictures, keys)

    @torch.inference_mode()
    def _rows(self, pictures: PictureArray, keys: Sequence[str]) -> StoredRows:
        images = torch.from_numpy(pictures).to(self._device)
        maps, failed = self._read(keys)
        named = agent_arrays(self._agents, maps, images)
        if RGB in self._specs:
            named[f"features/{RGB}"] = shrink_to_stride(images)
        return stored_rows(named, self._profile).with_failures(failed)

    def _read(self, keys: Sequence[str]) -> tuple[FeatureMaps, dict[int, str]]:
        """Returns the maps of the images ``keys`` in float32, zeros for failed ones, and batch index -> reason."""
        rows = [self._row_of_key[key] for key in keys]
        failed = {
            i: f"{name}: {reader.failed[row]}"
            for name, reader in self._readers.items()
            for i, row in enumerate(rows)
            if row in reader.failed
        }
        good = [i for i in range(len(rows)) if i not in failed]
        maps = {
            tap: torch.zeros(len(rows), spec.channels, spec.height, spec.width, device=self._device)
            for tap, spec in self._specs.items()
            if tap != RGB
        }
        for network, reader in self._readers.items():
            own = network_taps(self._specs, network)
            if good:
                found = reader.read([rows[i] for i in good], reader.allocate(len(good), taps=own))
                for tap in own:
                    maps[f"{network}/{tap}"][good] = decoded(found, "features", tap, self._device)
        return maps, failed
