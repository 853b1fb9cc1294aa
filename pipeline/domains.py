"""Opens the domains of a config: the index, the frames and the source of their features."""

import dataclasses
import logging
import shlex
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from ..cache.metadata import MANIFEST
from ..cache.network_parts import NetworksReader
from ..cache.reader import FeatureReader
from ..cache.stores import open_store
from ..cache.views import view_keys
from ..errors import CacheError, ConfigError, DataError, MissingDataError
from ..fingerprint import fingerprint_digest
from ..stages.datasets.index import FrameIndex
from ..stages.datasets.labels import NO_CLASSES, LabelMerge, index_merge
from ..stages.datasets.settings import DomainSettings
from ..stages.datasets.splits import domain_frames, validation_side
from ..stages.evaluate.metrics import Modality
from ..stages.extract.models import missing_models
from ..stages.extract.settings import ExtractSettings
from ..stages.train.domain import Domain
from ..stages.train.features import FeatureSource
from ..stages.train.pseudo_labels import PseudoLabels
from .config import Config
from .workspace import Workspace

__all__ = ["DomainOpener", "left_out_of", "open_index"]

log = logging.getLogger(__name__)


def open_index(workspace: Workspace, dataset: str, root: Path | None = None) -> FrameIndex:
    """Opens the index of ``dataset``; ``root`` overrides the data root it was prepared with.

    Raises:
        MissingDataError: the data set is not prepared, or the data root does not exist.
    """
    folder = workspace.index(dataset)
    if not (folder / "index.json").exists():
        known = workspace.root(dataset, root)
        command = shlex.join(["xd3d", "prepare", "--dataset", dataset, "--root", str(known)])
        raise MissingDataError(f"{dataset} is not prepared. Run: {command}")
    index = FrameIndex.load(folder)
    index = dataclasses.replace(index, root=(root or index.root).absolute())
    if not index.root.is_dir():
        raise MissingDataError(
            f"The data root of {dataset} does not exist: {index.root}."
            f" Give its new location: xd3d prepare --dataset {dataset} --root DIR"
        )
    if index.left_out:
        log.warning(left_out_of(dataset, index.left_out))
    return index


def left_out_of(dataset: str, left_out: Mapping[str, str]) -> str:
    """Returns a sentence about the frames left out of an index; "" if there are none."""
    if not left_out:
        return ""
    key, reason = next(iter(left_out.items()))
    return f"{dataset}: {len(left_out)} incomplete frames are left out of the index, such as {key}: {reason}"


class DomainOpener:
    """Opens the domains of one config; index and features of a data set are opened once and shared.

    ``index``, if given, is used for its data set instead of the one in the workspace.
    """

    def __init__(
        self,
        workspace: Workspace,
        config: Config,
        *,
        cached: bool,
        root: Path | None = None,
        index: FrameIndex | None = None,
    ) -> None:
        self._workspace = workspace
        self.config = config
        self._cached = cached
        known = {} if index is None else {index.dataset: index}
        self.index = lru_cache(lambda dataset: known.get(dataset) or open_index(workspace, dataset, root))
        self.fingerprint = lru_cache(self._shared_fingerprint)
        self._own_fingerprint = lru_cache(self._make_fingerprint)
        self._features = lru_cache(self._open_features)

    def source(self) -> Domain | None:
        """Returns the labelled training frames: the source's train split without validation frames.

        None if training is source-free.

        Raises:
            DataError: they have no label files.
        """
        if self.config.train.source_free:
            return None
        source = self._training(self.config.data.source)
        if not source.index.has_labels(source.frames):
            raise DataError(
                f"The {len(source)} train frames of {source.index.dataset} in {source.index.root} have no labels; name"
                " a labelled source (data.source), or learn from them without labels: xd3d pretrain"
            )
        return source

    def target(self) -> Domain | None:
        """Returns the unlabelled training frames: the target's train split; None if no loss uses it."""
        pseudo = self.pseudo_labels()
        if not self.config.train.uses_target:
            return None
        return dataclasses.replace(self.unlabelled(self.config.data.target), pseudo=pseudo)

    def unlabelled(self, side: DomainSettings) -> Domain:
        """Returns the train split of ``side`` without labels."""
        return self._training(side).unlabelled()

    def pseudo_labels(self) -> PseudoLabels | None:
        """Returns the stored pseudo labels that the run learns from; None if it uses none.

        Raises:
            MissingDataError: they do not exist, or are not finished.
            ConfigError: the settings name some and learn from none.
        """
        train, named = self.config.train, self.config.data.pseudo_labels
        if train.stored_labels:
            return PseudoLabels.open(self._workspace.find_pseudo_labels(named))
        if named is not None:
            raise ConfigError(
                f"data.pseudo_labels={named} is learned only with train.lam_pl above 0 and train.teacher=stored; the"
                f" settings are train.lam_pl={train.lam_pl:g} and train.teacher={train.teacher}: leave it out"
            )
        return None

    def pretraining(self, side: DomainSettings) -> Domain:
        """Returns the train split of ``side`` without labels and without classes: any data set with images will do."""
        try:
            validated = self._validated()
        except ConfigError:  # neither side holds out scenes, and pretraining validates on none
            validated = None
        return self._train_split(side, validated, merge=NO_CLASSES).unlabelled()

    def _training(self, side: DomainSettings) -> Domain:
        return self._train_split(side, self._validated())

    def _train_split(
        self, side: DomainSettings, validated: DomainSettings | None, merge: LabelMerge | None = None
    ) -> Domain:
        if validated is not None and validated.dataset != side.dataset:
            validated = None
        return self.open(side, "train", validated_on=validated.domain if validated else None, merge=merge)

    def init(self) -> Path | None:
        """Returns the folder of the run that provides the initial weights."""
        name = self.config.train.init
        return None if name is None else self._workspace.find_run(Path(name))

    def sides(self) -> list[DomainSettings]:
        """Returns the sides of the shift that the run uses."""
        data = self.config.data
        return [data.target] if self.config.train.source_free else [data.source, data.target]

    def best_metric(self) -> Modality:
        """Returns the metric that selects the best checkpoint: "fused", or "3d" if the target has no images.

        With the fusion rule "sum" it is "xm".
        """
        images = self.config.fusion.image and self.index(self.config.data.target.dataset).cameras
        fused: Modality = "xm" if self.config.evaluate.fusion == "sum" else "fused"
        return fused if images else "3d"

    def validation(self) -> Domain | None:
        """Returns the validation frames; None without validation, with a warning unless the config asks for none.

        Raises:
            ConfigError: some are test frames of the target.
        """
        side = self._validated()
        if side is None:
            return None
        if side not in self.sides():
            log.warning(
                "There is no validation, and the last checkpoint is used as the best: the validation frames are those"
                " of the source, and train.source_free opens none of them"
            )
            return None
        try:
            validation = self.open(side, "val")
        except DataError as error:
            other = side != self.config.data.source and not self.config.train.source_free
            remedy = "; data.validate_on=source would validate on the source" if other else ""
            log.warning("There is no validation, and the last checkpoint is used as the best%s. %s", remedy, error)
            return None
        self._refuse_test_frames(validation, side)
        return validation

    def _refuse_test_frames(self, validation: Domain, side: DomainSettings) -> None:
        target = self.config.data.target
        if side.dataset != target.dataset:
            return
        try:
            tested = domain_frames(validation.index, target.domain, "test")
        except DataError:  # it has no test frames
            return
        if shared := len(np.intersect1d(validation.frames, tested)):
            raise ConfigError(
                f"{shared} val frames of '{side.domain}', which choose the best checkpoint, are test frames of"
                f" the target '{target.domain}'. Set data.validate_on=none, or a source or target of other frames"
            )

    def _validated(self) -> DomainSettings | None:
        source, target = self.config.data.source, self.config.data.target
        chosen = self.config.data.validate_on
        if chosen == "none":
            return None
        if chosen == "auto":
            chosen = validation_side(source, target)
        return source if chosen == "source" else target

    def open(
        self,
        side: DomainSettings,
        split: str,
        *,
        validated_on: str | None = None,
        images: bool = True,
        merge: LabelMerge | None = None,
    ) -> Domain:
        """Returns the frames of ``side`` in ``split``, with their features if ``images``.

        ``merge`` replaces that of the config.

        Raises:
            MissingDataError: there is no index, no cache, or no such frame.
            CacheMismatchError: all caches were made with other settings.
        """
        index = self.index(side.dataset)
        frames = domain_frames(index, side.domain, split, validated_on=validated_on)
        merge = merge or index_merge(self.config.data.merge, index, labelled=index.has_labels(frames))
        return self.frames(index, frames, merge, images=images)

    def frames(
        self, index: FrameIndex, rows: Int64[np.ndarray, "rows"], merge: LabelMerge, *, images: bool = True
    ) -> Domain:
        """Returns the frames in ``rows`` of ``index``, with their features if ``images``."""
        return Domain(
            index=index,
            frames=rows,
            merge=merge,
            features=self._features(index.dataset) if images else None,
            every_point=self.config.data.points == "all",
            image_size=self.config.extract.for_dataset(index.dataset).image_size,
        )

    def _shared_fingerprint(self, dataset: str) -> Mapping[str, object]:
        """Returns the fingerprint of the features of ``dataset``; in a process group the first process computes it.

        If the features are cached and the model is not on this machine, it is that of the cache that matches otherwise.
        """
        from ..stages.train.parallel import broadcast, rank

        return broadcast(self._read_fingerprint(dataset) if rank() == 0 else {})

    def _read_fingerprint(self, dataset: str) -> Mapping[str, object]:
        from ..stages.extract.fingerprint import partial_fingerprints
        from .absent_model import adopted_fingerprint

        settings = self.config.extract.for_dataset(dataset)
        if settings.models:
            from ..stages.extract.network_parts import NetworksPlan

            plan = NetworksPlan(
                index=self.index(dataset), settings=settings, path=self.cache_path(dataset), reading=self._cached
            )
            return plan.fingerprint
        if not self._cached or not (absent := missing_models(settings)):
            return self._own_fingerprint(dataset)
        wanted = partial_fingerprints(settings, self.index(dataset), absent)
        return adopted_fingerprint(wanted, absent, self._caches(dataset), usual=partial(self._cache_of, dataset))

    def _make_fingerprint(self, dataset: str) -> Mapping[str, object]:
        """Returns the fingerprint of the features of one network, which is on this machine, for ``dataset``.

        With ``dtype: auto`` an existing cache determines the precision: a cache made on a GPU is valid on any machine.
        """
        from ..stages.extract.fingerprint import feature_fingerprints

        allowed = feature_fingerprints(self.config.extract.for_dataset(dataset), self.index(dataset))
        if not self._cached:
            return allowed[0]
        there = [found for found in allowed if open_store(self._cache_of(dataset, found)).exists(MANIFEST)]
        if there and there[0] != allowed[0]:
            log.info("The cache of %s is in %s, and is used in that precision", dataset, there[0]["dtype"])
        return (there or allowed)[0]

    def extract_settings(self, dataset: str) -> ExtractSettings:
        """Returns the settings of stage one for ``dataset``, with the precision resolved (of one network)."""
        if self.config.extract.models:
            return self.config.extract.for_dataset(dataset)
        return self._extract_settings(dataset, self._own_fingerprint(dataset))

    def _extract_settings(self, dataset: str, fingerprint: Mapping[str, object]) -> ExtractSettings:
        return self.config.extract.for_dataset(dataset).model_copy(update={"dtype": fingerprint["dtype"]})

    def cache_path(self, dataset: str) -> Path | str:
        """Returns the location of the cache of ``dataset``."""
        if self.config.extract.models:
            from ..stages.extract.fingerprint import shared_fields

            shared = shared_fields(self.config.extract.for_dataset(dataset), self.index(dataset))
            return self._cache_of(dataset, {"networks": "several", **shared})
        return self._cache_of(dataset, self._own_fingerprint(dataset))

    def _caches(self, dataset: str) -> list[Path | str]:
        """Returns all caches of ``dataset``, newest first.

        Raises:
            CacheError: there is none.
        """
        configured = self.config.extract.caches
        there = self._workspace.caches(dataset, configured)
        if not there:
            raise CacheError(
                f"There are no cached features of {dataset} in {self._workspace.cache_root(configured)}."
                f" Make them with: xd3d extract-features --dataset {dataset} (the same --config and --set)"
            )
        return there

    def _cache_of(self, dataset: str, fingerprint: Mapping[str, object]) -> Path | str:
        return self._workspace.cache(dataset, fingerprint_digest(fingerprint), self.config.extract.caches)

    def _open_features(self, dataset: str) -> FeatureSource | None:
        if not self.config.fusion.image or not self.index(dataset).cameras:
            return None
        if not self._cached:
            from ..stages.extract.online import OnlineExtractor

            settings = self.config.extract.for_dataset(dataset)
            if not settings.models:
                settings = self._extract_settings(dataset, self.fingerprint(dataset))
            return OnlineExtractor(index=self.index(dataset), settings=settings)
        return self.open_cache(dataset)

    def open_cache(self, dataset: str) -> FeatureReader | NetworksReader:
        """Opens the cached features of ``dataset`` with these settings; rows are those of the index's images.

        Raises:
            CacheError: there is no cache, or it is damaged.
            CacheMismatchError: all caches were made with other settings.
        """
        from .absent_model import fitting_cache

        in_blocks = self.config.train.shuffle_block is not None
        keys = view_keys(map(str, self.index(dataset).images.key), self.config.extract.views)
        if self.config.extract.models:
            from ..cache.network_parts import NetworksReader

            parts: dict[str, Any] = dict(self.fingerprint(dataset))
            return NetworksReader(self.cache_path(dataset), **parts, keys=keys, whole_shards=in_blocks)
        there, expected = self._caches(dataset), self.fingerprint(dataset)
        path = self._cache_of(dataset, expected)
        if path not in there:
            path = fitting_cache(expected, there) or there[0]
        return FeatureReader(path, expected=expected, keys=keys, whole_shards=in_blocks)
