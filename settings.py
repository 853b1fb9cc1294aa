"""The base of every settings model: unknown keys and infinite numbers are faults, and a value never changes.

What may differ between runs that belong together is said once, at the setting, by a mark:
``workers: Annotated[int, Mark.FREE] = Field(default=2)``. A setting without a mark is the run's own.
"""

from enum import Enum, auto
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["Mark", "Settings", "marked", "unmarked_values"]


class Settings(BaseModel):
    """A strict, immutable group of settings; a field's description is its help text."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=False)


class Mark(Enum):
    """What may change about a setting without making another run of it."""

    #: It moves work and changes no result, or names something that is compared by its content: it is no part of a run's
    #: name, and a run goes on with another value.
    FREE = auto()
    #: It belongs to the machine: a run goes on with another value, and is read with this machine's.
    MACHINE = auto()
    #: Training alone reads it: a run may begin with the weights of one that had another value.
    TRAINING_ONLY = auto()
    #: Each run of an ablation is given its own value, so none can be set for all of them.
    GIVEN = auto()


@cache
def marked(settings: type[BaseModel], *marks: Mark) -> tuple[str, ...]:
    """The dotted keys of the fields of ``settings``, and of its groups, that carry one of ``marks``, in their order."""
    keys: list[str] = []
    for name, field in settings.model_fields.items():
        if any(mark in field.metadata for mark in marks):
            keys.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += [f"{name}.{key}" for key in marked(field.annotation, *marks)]
    return tuple(keys)


def unmarked_values(settings: BaseModel, *marks: Mark) -> dict[str, Any]:
    """The values of ``settings`` as JSON, without the fields that carry one of ``marks``."""
    values = settings.model_dump(mode="json")
    for key in marked(type(settings), *marks):
        *groups, name = key.split(".")
        group = values
        for part in groups:
            group = group[part]
        del group[name]
    return values
