"""``dataset.yaml``: paths of the sweeps, labels and images of a user's folder, and the meaning of its labels."""

import glob
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from jaxtyping import Bool
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from ...errors import DataError, nearest
from ...files import parse_yaml
from ...settings import Settings
from .foreign_files import BAGS, foreign_kind
from .listing import is_hidden, without_copies
from .raw_columns import RawType
from .ros_bags import BAG_SUFFIX, list_clouds
from .text_files import read_text

__all__ = [
    "NAME",
    "FolderDescription",
    "Key",
    "composed",
    "find_files",
    "fitting",
    "frame_name",
    "likely_files",
    "read_description",
]

NAME = "dataset.yaml"

#: Scene ("" if the patterns have none) and frame.
Key = tuple[str, str]


def _names(value: object) -> object:
    """Names that are numbers to YAML, as they are written."""
    given = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(name, str | int) for name in given):
        raise ValueError(
            "must be a list of frames or scenes (or globs of them), or a file with one a line; put a name such as null"
            " into quotes"
        )
    return str(value) if isinstance(value, int) else value if isinstance(value, str) else tuple(map(str, given))


def _keys(value: object) -> object:
    """The keys of a mapping as text."""
    return {str(name): entry for name, entry in value.items()} if isinstance(value, Mapping) else value


#: Names of frames ("scene/frame") or scenes, or globs of them; a string is a file with one per line.
Names = Annotated[tuple[str, ...] | str, BeforeValidator(_names)]

Pattern = Annotated[str, Field(min_length=1), AfterValidator(lambda pattern: PurePosixPath(pattern).as_posix())]

_QUOTES = ". Patterns within brackets or braces need quotes"
#: Words in a complaint about YAML -> what to do.
_HINTS = {
    "flow ": _QUOTES,
    "unhashable": _QUOTES,
    "unknown escape": ". Separate folders by '/', not by a backslash",
    "'\\t'": ". Indent by spaces, not by tabs",
}

_FIELD = re.compile(r"\{(\w+)\}|(\*)")


class FolderDescription(Settings):
    """The content of ``dataset.yaml``; paths are relative to its folder, with fields ``{frame}`` and ``{scene}``."""

    sweeps: Pattern
    columns: int | None = Field(default=None, ge=3)
    dtype: RawType | None = None
    labels: Pattern | None = None
    label_field: str | Annotated[int, Field(ge=0)] | None = None
    images: Annotated[dict[str, Pattern], BeforeValidator(_keys)] = Field(default_factory=dict)
    calibration: Pattern | None = None
    classes: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    ignore: tuple[int, ...] = ()
    val: Names = ()
    test: Names = ()
    unlabelled: Names = ()
    domains: Annotated[dict[str, Names], BeforeValidator(_keys)] = Field(default_factory=dict)

    @property
    def label_pattern(self) -> Pattern | None:
        """The pattern of the files that hold the labels; the sweeps themselves if only their field is named."""
        return self.sweeps if self.labels is None and self.label_field is not None else self.labels

    @field_validator("classes", mode="before")
    @classmethod
    def _one_id(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        for name, ids in value.items():
            if name is None:
                raise ValueError("null is nothing to YAML; put the name of this class into quotes")
            if ids is None:
                raise ValueError(f"{name} has no id; give it one, or a list")
            if str(name) != name:
                raise ValueError(f"{name} is a number; write names first: {{{ids}: {name}}}, or the name in quotes")
        return {name: ids if isinstance(ids, list | tuple) else [ids] for name, ids in value.items()}

    @model_validator(mode="after")
    def _check(self) -> "FolderDescription":
        fields = set(_fields(self.sweeps))
        faults = [] if "frame" in fields else [f"sweeps '{self.sweeps}' needs {{frame}}, the name of the frame"]
        for name, pattern in {"labels": self.labels, **{f"images.{c}": p for c, p in self.images.items()}}.items():
            if pattern is not None and set(_fields(pattern)) != fields:
                faults.append(f"{name} '{pattern}' must have the same fields in braces as sweeps '{self.sweeps}'")
        patterns = [self.sweeps, self.labels, self.calibration, *self.images.values()]
        outside = [pattern for pattern in patterns if pattern is not None and _leads_out(pattern)]
        if outside:
            faults.append(f"'{outside[0]}' leads out of the folder; name files in it (a link there may lead elsewhere)")
        windows = next((pattern for pattern in patterns if pattern and "\\" in pattern), None)
        if windows:
            faults.append(f"'{windows}' has a backslash; separate folders by '/', on Windows too")
        unknown = {*fields, *_fields(self.calibration or "")} - {"scene", "frame"}
        if unknown:
            faults.append(f"{{{sorted(unknown)[0]}}} is unknown; patterns have the fields {{scene}} and {{frame}}")
        if self.images and self.calibration is None:
            faults.append("images need a calibration")
        if self.label_pattern is not None and not self.classes:
            faults.append("labels (or label_field) need classes, the name and the ids of each")
        ids = [number for numbers in self.classes.values() for number in numbers]
        odd = [number for number, count in Counter(ids).items() if count > 1 or not 0 <= number < 1 << 16]
        if odd:
            faults.append(f"classes must assign each id, 0 to 65535, to one class, and have {odd[0]}")
        both = sorted(set(ids) & set(self.ignore))
        if both:
            faults.append(f"ignore has {both[0]}, which is an id of a class too")
        invalid = [name for name in self.domains if not re.fullmatch(r"\w[\w.-]*", name)]
        if invalid:
            faults.append(
                f"domains has '{invalid[0]}': names are parts of file names and have letters, digits, '_', '-' and '.'"
            )
        if set(self.domains) & {"source", "target"}:
            faults.append("domains has 'source' or 'target', which name the sides of a shift")
        if "all" in self.domains:
            faults.append("domains has 'all', which already means every frame")
        if faults:
            raise ValueError("; ".join(faults))
        return self


def read_description(root: Path) -> FolderDescription:
    """Reads ``dataset.yaml`` in ``root``.

    Raises:
        DataError: it is not YAML, or is invalid; the message lists all faults.
    """
    path = root / NAME
    found = _parsed(path)
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a {type(found).__name__} instead of keys such as 'sweeps'; write it again")
    try:
        return FolderDescription.model_validate(found)
    except ValidationError as error:
        faults = [f"  {_fault(fault)}" for fault in error.errors()]
        raise DataError("\n".join([f"{path} is invalid (docs/data/folder.md describes it):", *faults])) from error


def _parsed(path: Path) -> object:
    text = read_text(path, "description", "write it again (docs/data/folder.md)")
    try:
        return parse_yaml(text, words=True) or {}
    except ValueError as error:
        hint = next((hint for sign, hint in _HINTS.items() if sign in str(error)), "")
        raise DataError(f"{path} is not valid YAML: {error}{hint}") from error


def _fault(fault: ErrorDetails) -> str:
    dotted = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"{dotted}: unknown key; {nearest(dotted, FolderDescription.model_fields)}"
    return f"{dotted}{': ' if dotted else ''}{fault['msg'].removeprefix('Value error, ')}"


def find_files(root: Path, pattern: str) -> dict[Key, str]:
    """Returns the files that match ``pattern``, relative to ``root``, by scene and frame.

    Raises:
        DataError: two files belong to one frame.
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
    for path in _candidates(root, pattern):
        if _is_hidden(path.relative_to(root), pattern):
            continue
        relative = path.relative_to(root).as_posix()
        parts = re.fullmatch(expression, relative)
        if parts:
            names = parts.groupdict()
            key = names.get("scene", ""), names.get("frame", "")
            if key in found:
                raise DataError(
                    f"{root / found[key]} and {path.name} belong to one frame by the pattern '{pattern}' of {NAME};"
                    " exclude one of them"
                )
            found[key] = relative
    return found


def _candidates(root: Path, pattern: str) -> list[Path]:
    """Files that may fit ``pattern``, in order; the clouds of bags, if it names bags and then clouds."""
    bag, inside, _ = pattern.partition(f"{BAG_SUFFIX}/")
    if not inside:
        return without_copies(root.glob(_glob(pattern)))
    bags = without_copies(root.glob(_glob(bag + BAG_SUFFIX)))
    return [path / name for path in bags if not is_hidden(path) for name in list_clouds(path)]


def _is_hidden(path: Path, pattern: str) -> bool:
    """Whether a part of ``path`` is hidden that is not so by the pattern."""
    parts = zip(path.parts, PurePosixPath(pattern).parts, strict=False)
    return any(is_hidden(Path(part)) and not is_hidden(Path(wanted)) for part, wanted in parts)


def frame_name(key: Key) -> str:
    """Returns the name of a frame in an index: scene and frame."""
    return "/".join(part for part in key if part)


def fitting(root: Path, keys: Sequence[Key], kind: str, names: Names) -> Bool[np.ndarray, "frames"]:
    """Returns which frames match ``names`` under the key ``kind``; each name must match a frame.

    Raises:
        MissingDataError: ``names`` is a file, which is missing.
        DataError: a name matches none.
    """
    if isinstance(names, str):
        lines = read_text(
            root / names,
            "list",
            f"{NAME} names it under {kind}; write it with one name per line, or [{names}] if that is a frame or scene",
        ).splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
    rows_of: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        for known in {composed(key[0]), composed(frame_name(key))}:
            rows_of.setdefault(known, []).append(row)
    chosen = np.zeros(len(keys), bool)
    for name in names:
        wanted = composed(name)
        fits = list(rows_of.get(wanted, ()))
        if glob.has_magic(name):
            fits += [row for known, rows in rows_of.items() if fnmatchcase(known, wanted) for row in rows]
        if not fits:
            raise DataError(
                f"No frame and no scene matches '{name}' under {kind} in {root / NAME}; correct or remove it"
            )
        chosen[fits] = True
    return chosen


def composed(name: str) -> str:
    """Returns ``name`` with umlauts as single characters: the disk of a Mac takes them apart."""
    return unicodedata.normalize("NFC", name)


def likely_files(root: Path, pattern: str) -> str:
    """Says which files fit ``pattern`` but for their suffix, and what one of them is; "" if there are none."""
    for kind in BAGS:
        bag, inside, _ = pattern.partition(f"{kind}/")
        if inside and (first := next(root.glob(_glob(bag + kind)), None)):
            return f" ({first} {foreign_kind(first) or 'is no bag'})"
    suffix = PurePosixPath(pattern).suffix
    others = sorted(path for path in root.glob(_glob(pattern.removesuffix(suffix) + "*")) if not is_hidden(path))
    found = Counter(path.suffix for path in others if path.is_file())
    some = ", ".join(f"{count} with {kind}" for kind, count in found.most_common(3))
    foreign = foreign_kind(others[0]) if others else None
    return f" (there are {some}{f'; {others[0]} {foreign}' if foreign else ''})" if some else ""


def _glob(pattern: str) -> str:
    """The pattern as a glob: one star for each run of fields and stars, everything else escaped."""
    return re.sub(r"\*+", "*", "*".join(map(glob.escape, _FIELD.split(pattern)[:: _FIELD.groups + 1])))


def _leads_out(pattern: str) -> bool:
    path = PurePosixPath(pattern)
    return path.is_absolute() or ".." in path.parts


def _fields(pattern: str) -> list[str]:
    return [match[1] for match in _FIELD.finditer(pattern) if match[1]]
