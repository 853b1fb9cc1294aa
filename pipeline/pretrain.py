"""Pretraining of the 3D network: the domains that a config trains on, without their labels, and the run."""

import dataclasses
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from ..errors import ConfigError, DataError
from ..files import optional_path
from .config import DEFAULT_PRESET, ResolvedConfig, config_options, load_config
from .console import Outcome
from .domains import DomainOpener
from .runs import run_facts, run_name
from .workspace import Workspace

__all__ = ["pretrain"]


def pretrain(
    config: str = DEFAULT_PRESET,
    overrides: Sequence[str] = (),
    *,
    cached: bool = False,
    run: Path | str | None = None,
    torchrun: bool = False,
    workspace: Workspace | Path | str | None = None,
) -> Outcome:
    """Distils image features into the 3D network on the domains that ``config`` trains on; a stopped run resumes.

    Steps, batches and learning rate are those of ``train``, the features those of ``fusion.taps``.

    Args:
        config: name of a preset, or a YAML file.
        overrides: settings that differ from it, as ``"key=value"``.
        cached: read features from the cache; otherwise they are computed in the loop.
        run: a folder or a name; by default it follows from the settings.
        torchrun: the processes that ``torchrun`` started share each batch.
        workspace: its folder; by default ``XD3D_HOME``, or ``xd3d-work`` in the working directory.

    Examples:
        >>> few = ["extract.image_size=[48, 80]", "train.steps=2", "train.milestones=[2]"]
        >>> xd3d.pretrain("default", few, cached=True, run="pretrained").result["steps"]
        2

    Raises:
        ConfigError: a setting is unknown or out of range, or ``train.init`` is set.
        RunError: a domain has no images, or the run's folder belongs to another run.
    """
    from ..stages.train.parallel import distributed
    from ..stages.train.pretrain import pretrain as pretrain_network

    workspace, folder = Workspace.of(workspace), optional_path(run)
    resolved = _for_pretraining(load_config(config, overrides, labels=False))
    settings = resolved.config
    train, data = settings.train, settings.data
    with distributed(train.device) if torchrun else nullcontext():
        domains = DomainOpener(workspace, settings, cached=cached)
        source = None if train.source_free else domains.pretraining(data.source)
        target = domains.pretraining(data.target) if train.uses_target else None
        sides = [side for side, used in ((data.source, source), (data.target, target)) if used is not None]
        name = f"pretrain-{run_name(resolved, domains, cached=cached, sides=sides)}"
        done = pretrain_network(
            run=workspace.find_run(folder) if folder else workspace.run(name),
            source=source,
            target=target,
            model=settings.model,
            fusion=settings.fusion,
            augment=settings.augment,
            settings=train,
            facts=run_facts(resolved, cached=cached),
        )
    start = f"train.init={workspace.name_of(done.run)}"
    where, options = "", config_options(config, [start, *overrides])
    if not _has_labels(domains, config, overrides):
        where, options = ", where CONFIG has a source with labels", config_options("CONFIG", [start])
    command = shlex.join(["xd3d", "train", *(["--cached"] if cached else []), *options])
    return Outcome(
        result={"run": str(done.run), "steps": done.steps},
        text=f"{done.steps} steps done. The run is in {done.run}. Next: {command}{where}",
    )


def _has_labels(domains: DomainOpener, config: str, overrides: Sequence[str]) -> bool:
    """Whether 'xd3d train' with the same config has a source with labels of its classes."""
    try:
        load_config(config, overrides)
        return domains.source() is not None
    except (ConfigError, DataError):
        return False


def _for_pretraining(resolved: ResolvedConfig) -> ResolvedConfig:
    """Returns the config for pretraining: images are used, pseudo labels are not.

    ``lam_trg`` is 1 if the target's frames are used and 0 otherwise; it weights no loss.
    """
    config = resolved.config
    if config.train.init is not None:
        raise ConfigError(
            f"train.init={config.train.init} is for 'xd3d train': pretraining starts from random weights; leave it out"
        )
    fusion = config.fusion.model_copy(update={"variant": "image"})
    train = config.train.model_copy(update={"lam_trg": float(config.train.uses_target), "lam_pl": 0.0})
    data = config.data.model_copy(update={"pseudo_labels": None})
    changed = config.model_copy(update={"data": data, "fusion": fusion, "train": train})
    return dataclasses.replace(resolved, config=changed)
