"""The configuration of all stages: presets, YAML files, ``extends:`` and ``--set a.b=c``, validated together."""

import importlib.resources
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from ..errors import ConfigError, nearest
from ..files import parse_yaml
from ..settings import Settings
from ..stages.datasets.settings import DataSettings
from ..stages.evaluate.settings import EvaluateSettings
from ..stages.extract.settings import ExtractSettings
from ..stages.train.settings import AugmentSettings, FusionSettings, ModelSettings, TrainSettings

__all__ = [
    "DEFAULT_PRESET",
    "Config",
    "ResolvedConfig",
    "change_config",
    "config_options",
    "dotted_values",
    "load_config",
    "preset_names",
]

DEFAULT_PRESET = "default"
_OPTION = "--set"


class Config(Settings):
    """All settings of a run; each section belongs to one stage."""

    data: DataSettings = Field(default_factory=DataSettings, description="Domains, classes and splits")
    extract: ExtractSettings = Field(default_factory=ExtractSettings, description="Stage one: image features")
    model: ModelSettings = Field(default_factory=ModelSettings, description="Stage two: the sparse 3D network")
    fusion: FusionSettings = Field(default_factory=FusionSettings, description="Stage two: use of image features")
    augment: AugmentSettings = Field(default_factory=AugmentSettings, description="Stage two: 3D augmentation")
    train: TrainSettings = Field(default_factory=TrainSettings, description="Stage two: optimiser, losses and loop")
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings, description="How scores are counted")


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """A validated config, its name, and the origin of each value (dotted key -> preset, file or option)."""

    name: str
    config: Config
    origins: Mapping[str, str]


def preset_names() -> list[str]:
    """Returns the names of the presets, such as ``nuscenes_usa_singapore/dg``."""
    return sorted(_shipped_presets())


def load_config(name: str = DEFAULT_PRESET, overrides: Sequence[str] = (), *, labels: bool = True) -> ResolvedConfig:
    """Loads a preset or a YAML file, applies ``extends:`` and ``key=value`` overrides, and validates the result.

    Without ``labels`` the data sets of source and target need not have the classes of ``data.merge``.

    Raises:
        ConfigError: unknown preset, invalid YAML, or invalid values, which are all listed by dotted key.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in [*_layers(name, ()), *(_override(text) for text in overrides)]:
        _forget_domains(values, layer, origins)
        try:
            _merge(values, layer, origin, origins, "")
        except RecursionError as error:
            raise ConfigError(
                f"A section of '{origin}' contains itself (a YAML alias); write its settings out"
            ) from error
    config = _validated(values, f"The config '{name}'", labels=labels)
    return ResolvedConfig(name=Path(name).stem if _is_file(name) else name, config=config, origins=origins)


def config_options(name: str, overrides: Sequence[str]) -> list[str]:
    """Returns the options ``--config`` and ``--set`` for ``name`` and ``overrides``."""
    config = [] if name == DEFAULT_PRESET else ["--config", name]
    return [*config, *(part for text in overrides for part in (_OPTION, text))]


def change_config(config: Config, overrides: Sequence[str], *, allowed: Collection[str]) -> Config:
    """Returns ``config`` with ``key=value`` overrides of the dotted keys ``allowed``.

    Raises:
        ConfigError: another key, or an invalid value.
    """
    values = config.model_dump(mode="json")
    for text in overrides:
        origin, layer = _override(text)
        keys: dict[str, str] = {}
        _merge(values, layer, origin, keys, "")
        if strange := next((key for key in keys if key not in allowed), None):
            raise ConfigError(
                f"'{origin}' would change a trained run: {strange} is a setting of the run. The settings of this"
                f" machine can be changed: {', '.join(allowed)}"
            )
    return _validated(values, "The config with these settings")


def _validated(values: Mapping[str, Any], what: str, *, labels: bool = True) -> Config:
    try:
        return Config.model_validate(values, context={"labels": labels})
    except ValidationError as error:
        faults = "\n".join(f"  {line}" for line in _fault_lines(error))
        raise ConfigError(f"{what} has {error.error_count()} fault(s):\n{faults}") from error


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


@cache
def _shipped_presets() -> dict[str, tuple[Traversable, str | None]]:
    """The file of each shipped preset by name, and its key where the file is a table of several, under ``presets``."""
    return dict(_walk(importlib.resources.files("xd3d.configs"), ""))


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, tuple[Traversable, str | None]]]:
    for entry in folder.iterdir():
        name = prefix + entry.name.removesuffix(".yaml")
        if entry.is_dir():
            yield from _walk(entry, f"{name}/")
        elif entry.name.endswith(".yaml"):
            text = entry.read_text(encoding="utf-8")
            if re.search(r"^presets:", text, flags=re.MULTILINE):
                yield from ((f"{name}/{key}", (entry, key)) for key in parse_yaml(text)["presets"])
            else:
                yield name, (entry, None)


def _read(name: str) -> Any:
    """The values of one preset or file, its parents left out."""
    key = None
    if _is_file(name):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else f"it is no text ({error})"
            raise ConfigError(f"The config file {name} cannot be read: {why}") from error
    elif name in _shipped_presets():
        file, key = _shipped_presets()[name]
        text = file.read_text(encoding="utf-8")
    else:
        raise ConfigError(
            f"There is no preset '{name}'; {nearest(name, preset_names())} ('xd3d config list' shows all)"
        )
    try:
        values = _parsed(text)
    except ValueError as error:
        raise ConfigError(f"The config '{name}' is not valid YAML: {error}") from error
    return deepcopy(values["presets"][key] if key else values)


@cache
def _parsed(text: str) -> Any:
    """Parses a text once: the table of the benchmark's presets is read for each of them."""
    return parse_yaml(text)


def _layers(name: str, above: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the chain of ``extends:``, parents first, as (origin, values)."""
    chain = (*above, str(Path(name).resolve()) if _is_file(name) else name)
    if chain[-1] in above:
        raise ConfigError(f"The presets extend each other in a cycle: {' -> '.join(chain)}")
    layer = _read(name) or {}
    if not isinstance(layer, dict):
        raise ConfigError(f"The config '{name}' must map sections to settings; it holds a {type(layer).__name__}")
    parent = layer.pop("extends", None)
    if parent is not None and not isinstance(parent, str):
        raise ConfigError(f"'extends' in the config '{name}' must be the name of one preset or file; it is {parent!r}")
    if parent and _is_file(parent):
        parent = str(Path(name).parent / parent)
    return [*(_layers(parent, chain) if parent else []), (name, layer)]


def _override(text: str) -> tuple[str, dict[str, Any]]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set wants KEY=VALUE, such as train.batch_size=4; it got '{text}'")
    try:
        layer: Any = parse_yaml(value)
    except ValueError as error:
        raise ConfigError(f"The value in --set {text[:200]} is not valid YAML: {error}") from error
    for part in reversed(key.strip().split(".")):
        layer = {part: layer}
    return f"{_OPTION} {text}", layer


def _forget_domains(values: dict[str, Any], layer: Mapping[str, Any], origins: dict[str, str]) -> None:
    """Drops the domain that presets set for a side of the shift whose data set ``layer`` changes."""
    data = layer.get("data")
    for side in ("source", "target"):
        change = data.get(side) if isinstance(data, Mapping) else None
        there = values.get("data", {}).get(side) if isinstance(values.get("data"), Mapping) else None
        if not isinstance(change, Mapping) or not isinstance(there, dict) or "dataset" not in change:
            continue
        key = f"data.{side}.domain"
        if change["dataset"] != there.get("dataset", "nuscenes") and not origins.get(key, "").startswith(_OPTION):
            there.pop("domain", None)
            origins.pop(key, None)


def _merge(values: dict[str, Any], layer: Mapping[str, Any], origin: str, origins: dict[str, str], prefix: str) -> None:
    for key, value in layer.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            child = values.get(key)
            values[key] = child = child if isinstance(child, dict) else {}
            _merge(child, value, origin, origins, f"{dotted}.")
        else:
            values[key] = value
            origins[dotted] = origin


def _fault_lines(error: ValidationError) -> Iterator[str]:
    for fault in error.errors():
        keys = [str(part) for part in fault["loc"]]
        dotted = ".".join(keys)
        if fault["type"] == "extra_forbidden":
            yield f"{dotted}: unknown key; {_nearest_key(keys)}"
        else:
            yield f"{dotted}: {fault['msg']} (found {fault['input']!r})"


def _nearest_key(keys: Sequence[str]) -> str:
    model: type[BaseModel] = Config
    for key in keys[:-1]:
        field = model.model_fields.get(key)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            break
        model = field.annotation
    prefix = "".join(f"{key}." for key in keys[:-1])
    return nearest(keys[-1], model.model_fields, prefix=prefix)


def dotted_values(config: BaseModel) -> Iterable[tuple[str, Any]]:
    """Yields all values of ``config`` with their dotted keys, in the order of the fields."""
    for name, value in config:
        if isinstance(value, BaseModel):
            yield from ((f"{name}.{key}", inner) for key, inner in dotted_values(value))
        else:
            yield name, value
