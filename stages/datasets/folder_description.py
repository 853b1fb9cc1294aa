"""``dataset.yaml``: where a folder of one's own keeps its sweeps, labels and images, and what labels mean."""

import glob
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from ...errors import DataError
from ...files import parse_yaml
from ...settings import Settings
from .texts import read_text

__all__ = ["NAME", "FolderDescription", "Key", "find_files", "read_description"]

NAME = "dataset.yaml"

#: Scene ("" where the patterns have none) and frame.
Key = tuple[str, str]

#: Names of frames ("scene/frame") or of scenes, each may be a glob; a string is a file with one a line.
Names = tuple[str, ...] | str

Pattern = Annotated[str, Field(min_length=1), AfterValidator(lambda pattern: PurePosixPath(pattern).as_posix())]

_FIELD = re.compile(r"\{(\w+)\}|(\*)")


class FolderDescription(Settings):
    """What ``dataset.yaml`` says; paths are relative to its folder, with ``{frame}`` and ``{scene}`` for names."""

    sweeps: Pattern
    columns: int | None = Field(default=None, ge=3)
    labels: Pattern | None = None
    images: dict[str, Pattern] = Field(default_factory=dict)
    calibration: Pattern | None = None
    classes: dict[str, tuple[int, ...]] = Field(min_length=1)
    val: Names = ()
    test: Names = ()
    unlabelled: Names = ()
    domains: dict[str, Names] = Field(default_factory=dict)

    @field_validator("classes", mode="before")
    @classmethod
    def _one_id(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return {name: [ids] if isinstance(ids, int) else ids for name, ids in value.items()}

    @model_validator(mode="after")
    def _check(self) -> "FolderDescription":
        fields = set(_fields(self.sweeps))
        faults = [] if "frame" in fields else [f"sweeps '{self.sweeps}' needs {{frame}}, the name of each frame"]
        for name, pattern in {"labels": self.labels, **{f"images.{c}": p for c, p in self.images.items()}}.items():
            if pattern is not None and set(_fields(pattern)) != fields:
                faults.append(f"{name} '{pattern}' must have the same names in braces as sweeps '{self.sweeps}'")
        patterns = [self.sweeps, self.labels, self.calibration, *self.images.values()]
        outside = [pattern for pattern in patterns if pattern is not None and _leads_out(pattern)]
        if outside:
            faults.append(f"'{outside[0]}' leads out of the folder; name files in it (a link there may lead elsewhere)")
        strange = {*fields, *_fields(self.calibration or "")} - {"scene", "frame"}
        if strange:
            faults.append(f"{{{sorted(strange)[0]}}} is no name; patterns know {{scene}} and {{frame}}")
        if self.images and self.calibration is None:
            faults.append("images need a calibration")
        ids = [number for numbers in self.classes.values() for number in numbers]
        if len(set(ids)) < len(ids) or not all(0 <= number < 1 << 16 for number in ids):
            faults.append("classes must give each id, 0 to 65535, to one class")
        unfit = [name for name in self.domains if not re.fullmatch(r"\w[\w.-]*", name)]
        if unfit:
            faults.append(f"domains has '{unfit[0]}': a name has letters, digits, '_', '-' and '.', for files bear it")
        if set(self.domains) & {"source", "target"}:
            faults.append("domains has 'source' or 'target', which are the sides of a shift")
        if "all" in self.domains:
            faults.append("domains has 'all', which stands for every frame already")
        if faults:
            raise ValueError("; ".join(faults))
        return self


def read_description(root: Path) -> FolderDescription:
    """Read ``dataset.yaml`` in ``root``.

    Raises:
        DataError: it is no YAML, or some of it is faulty: all faults at once.
    """
    path = root / NAME
    text = read_text(path, "description", "write it again (docs/data/folder.md)")
    try:
        return FolderDescription.model_validate(parse_yaml(text) or {})
    except ValidationError as error:
        faults = [f"  {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise DataError("\n".join([f"{path} is faulty (docs/data/folder.md describes it):", *faults])) from error
    except ValueError as error:
        raise DataError(f"{path} is not valid YAML: {error}") from error


def find_files(root: Path, pattern: str) -> dict[Key, str]:
    """The files that ``pattern`` names, relative to ``root``, by scene and frame.

    Raises:
        DataError: two of them are of one frame.
    """
    expression, last, seen = "", 0, set[str]()
    found: dict[Key, str] = {}
    for match in _FIELD.finditer(pattern):
        expression += re.escape(pattern[last : match.start()])
        name = match[1]
        expression += "[^/]*" if name is None else f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)"
        seen.add(name or "")
        last = match.end()
    expression += re.escape(pattern[last:])
    for path in sorted(root.glob(_glob(pattern))):
        relative = path.relative_to(root).as_posix()
        parts = re.fullmatch(expression, relative)
        if parts:
            names = parts.groupdict()
            key = names.get("scene", ""), names.get("frame", "")
            if key in found:
                raise DataError(
                    f"{root / found[key]} and {path.name} are of one frame by the pattern '{pattern}' of {NAME};"
                    " name one of them"
                )
            found[key] = relative
    return found


def _glob(pattern: str) -> str:
    """The pattern with one star for every run of names and stars, and no other meaning of its own."""
    return re.sub(r"\*+", "*", "*".join(map(glob.escape, _FIELD.split(pattern)[:: _FIELD.groups + 1])))


def _leads_out(pattern: str) -> bool:
    path = PurePosixPath(pattern)
    return path.is_absolute() or ".." in path.parts


def _fields(pattern: str) -> list[str]:
    return [match[1] for match in _FIELD.finditer(pattern) if match[1]]
