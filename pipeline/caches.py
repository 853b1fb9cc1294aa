"""What looks after caches and needs more than the cache: the index of its data set, the model, the workspace."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CacheError
from .config import load_config
from .console import Outcome
from .domains import DomainOpener, open_index
from .workspace import Workspace

if TYPE_CHECKING:
    from ..stages.datasets.index import FrameIndex
    from ..stages.extract.settings import ExtractSettings

__all__ = ["repair_cache"]


def repair_cache(
    workspace: Workspace, path: str, dataset: str | None, config: str, overrides: Sequence[str], root: Path | None
) -> Outcome:
    """Mend the cache at ``path`` by its own recipe, or as ``dataset`` and the config say; 1 when something is left."""
    from ..stages.extract.repair import repair_features

    if dataset:
        opener = DomainOpener(workspace, load_config(config, overrides).config, cached=True, root=root)
        index, settings = opener.index(dataset), opener.extract_settings(dataset)
    else:
        index, settings = _by_recipe(workspace, path, root)
    done = repair_features(index, settings, path, root=root)
    mended = f"{done.repaired} images and {len(done.metadata)} metadata files mended"
    failed = f"; {done.failed} images could not be computed" if done.failed else ""
    rest = "" if done.ok else "; damage is left: xd3d cache verify names it"
    return Outcome(result=asdict(done), text=mended + failed + rest, exit_code=0 if done.ok and not done.failed else 1)


def _by_recipe(workspace: Workspace, path: str, root: Path | None) -> "tuple[FrameIndex, ExtractSettings]":
    from ..cache.recipe import load_recipe
    from ..cache.stores import open_store
    from ..stages.extract.settings import ExtractSettings

    recipe = load_recipe(open_store(path))
    try:
        if recipe is not None:
            settings = ExtractSettings.model_validate(recipe["extract"])
            return open_index(workspace, str(recipe["dataset"]), root), settings
    except (KeyError, ValueError) as error:
        raise CacheError(f"The recipe of the cache {path} is of another version ({error}); {_REMEDY}") from error
    raise CacheError(f"The cache {path} does not say how it was made; {_REMEDY}")


_REMEDY = "give it: xd3d cache repair PATH --dataset NAME --config NAME --set KEY=VALUE, as it was made with"
