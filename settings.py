"""The base of every settings model: unknown keys and infinite numbers are errors, and values are immutable.

A mark at a setting states whether it may change between calls of the same run:
``workers: Annotated[int, Mark.FREE] = Field(default=2)``. Another value of a setting without a mark makes another run.
"""

from collections.abc import Callable, Mapping
from enum import Enum, auto
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, model_serializer

__all__ = ["Mark", "Settings", "marked", "unmarked_values", "with_added"]


class Settings(BaseModel):
    """A strict, immutable group of settings; the docstring below a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Leaves out the settings marked ``Mark.ADDED`` that have their default value."""
        values = handler(self)
        for name, field in type(self).model_fields.items():
            if Mark.ADDED in field.metadata and getattr(self, name) == field.default:
                values.pop(name, None)
        return values


class Mark(Enum):
    """How a setting may change without making another run."""

    #: The setting changes no result, or names something that is compared by content. It is not part of a run's name,
    #: and a run can be resumed with another value.
    FREE = auto()
    #: The setting belongs to the machine. A run can be resumed with another value, and a trained run is opened with
    #: the default or the value that is given then.
    MACHINE = auto()
    #: Only training reads it: a run may start from the weights of a run with another value.
    TRAINING_ONLY = auto()
    #: A later version added it; its default is what earlier versions do, and must not change. Only another value is
    #: recorded, so that names, records and digests of earlier runs remain valid.
    ADDED = auto()
    #: The ablation sets it for each run, so it cannot be set for all of them.
    ABLATION = auto()


@cache
def marked(settings: type[BaseModel], *marks: Mark) -> tuple[str, ...]:
    """Returns the dotted keys, in order, of the fields of ``settings`` and its groups that carry one of ``marks``."""
    keys: list[str] = []
    for name, field in settings.model_fields.items():
        if any(mark in field.metadata for mark in marks):
            keys.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += [f"{name}.{key}" for key in marked(field.annotation, *marks)]
    return tuple(keys)


def with_added(settings: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns recorded ``values`` with the defaults of missing fields of ``settings`` marked ``Mark.ADDED``."""
    fields = settings.model_fields
    return {**{name: fields[name].default for name in fields if Mark.ADDED in fields[name].metadata}, **values}


def unmarked_values(settings: BaseModel, *marks: Mark) -> dict[str, Any]:
    """Returns the values of ``settings`` as JSON, without the fields that carry one of ``marks``."""
    values = settings.model_dump(mode="json")
    for key in marked(type(settings), *marks):
        *groups, name = key.split(".")
        group = values
        for part in groups:
            group = group[part]
        group.pop(name, None)  # one marked ``ADDED`` may have been left out
    return values
