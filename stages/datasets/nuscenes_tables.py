"""Streaming reader of the rows of the nuScenes tables that the index needs.

``sample_data`` and ``ego_pose`` of v1.0-trainval have 2.6 million rows each, nine in ten of them between the keyframes;
the devkit holds all of them in memory. This reader keeps only the rows of keyframes and of the chosen sensors.
"""

import json
import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ...errors import DataError
from .foreign_files import foreign_kind

__all__ = ["KeyframeTables", "Record", "read_keyframes", "sensor_channels", "stream_rows"]

Record = dict[str, Any]
Value = TypeVar("Value")

_CHUNK = 1 << 22  #: characters; far more than a row has
_BETWEEN = re.compile(r"[\s,]*")
_OF_SENSOR = ("token", "filename", "width", "height", "ego_pose_token", "calibrated_sensor_token")


class ByToken(dict[str, Value]):
    """Values of the rows of the table in ``path`` by token.

    Raises:
        DataError: two ``rows`` have one token; on access, a token is missing.
    """

    def __init__(self, path: Path, rows: Iterable[tuple[str, Value]]) -> None:
        super().__init__()
        self._path = path
        for token, value in rows:
            if token in self:
                raise DataError(f"{path} has two rows with the token {token!r}; unpack the metadata again")
            self[token] = value

    def __missing__(self, token: Hashable) -> NoReturn:
        raise DataError(
            f"{self._path} has no row with the token {token!r}, which another table names; the tables are"
            " inconsistent: unpack the metadata of one version again"
        )


@dataclass(frozen=True, kw_only=True)
class KeyframeTables:
    """Rows by token. ``records``: the ``sample_data`` row of each keyframe by channel, None for other channels."""

    samples: list[Record]
    scenes: Mapping[str, Record]
    logs: Mapping[str, Record]
    sensors: Mapping[str, Record]  #: calibrated_sensor
    poses: Mapping[str, Record]  #: ego_pose
    records: Mapping[str, Mapping[str, Record | None]]


def stream_rows(path: Path) -> Iterator[Record]:
    """Yields the rows of a table without loading the whole file.

    Raises:
        DataError: it is not a JSON list.
    """
    decode = json.JSONDecoder().raw_decode
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_CHUNK).lstrip()
            if not text.startswith("["):
                raise _damaged(path, "it is not a list")
            position = 1
            while True:
                position = _BETWEEN.match(text, position).end()  # type: ignore[union-attr]  # it always matches
                if text.startswith("]", position):
                    return
                try:
                    row, position = decode(text, position)
                except json.JSONDecodeError as error:
                    more = "" if len(text) - position > _CHUNK else file.read(_CHUNK)
                    if not more:
                        raise _damaged(path, f"a row is truncated, or not JSON: {error.msg}") from error
                    text, position = text[position:] + more, 0
                    continue
                if not isinstance(row, dict):
                    raise _damaged(path, f"a row is a {type(row).__name__} instead of an object")
                yield row
    except (UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); fix that, or unpack the metadata again") from error


def sensor_channels(tables: Path) -> dict[str, str]:
    """Returns the channel of each sensor, such as ``CAM_FRONT``, by token."""
    path = tables / "sensor.json"
    return ByToken(path, ((row["token"], row["channel"]) for row in stream_rows(path)))


def read_keyframes(tables: Path, channels: Mapping[str, str], chosen: Collection[str]) -> KeyframeTables:
    """Reads the tables of a version folder; of ``sample_data`` the keyframes' rows of the ``chosen`` channels.

    Raises:
        DataError: a table is damaged, has a duplicate token, or lacks one that another table names.
        KeyError, TypeError: rows lack keys.
    """
    sensors = _by_token(tables, "calibrated_sensor")
    channel_of = ByToken(
        tables / "calibrated_sensor.json", ((token, channels[row["sensor_token"]]) for token, row in sensors.items())
    )
    samples = list(stream_rows(tables / "sample.json"))
    records = ByToken[dict[str, Record | None]](tables / "sample.json", ((row["token"], {}) for row in samples))
    poses: set[str] = set()
    for row in stream_rows(tables / "sample_data.json"):
        if not row["is_key_frame"]:
            continue
        channel, of_sample = channel_of[row["calibrated_sensor_token"]], records[row["sample_token"]]
        if channel in of_sample:
            raise DataError(
                f"{tables / 'sample_data.json'} has two keyframe records of {channel} in sample"
                f" {row['sample_token']!r}; unpack the metadata again"
            )
        kept = {name: row[name] for name in _OF_SENSOR} if channel in chosen else None
        of_sample[channel] = kept
        if kept is not None:
            poses.add(kept["ego_pose_token"])
    return KeyframeTables(
        samples=samples,
        scenes=_by_token(tables, "scene"),
        logs=_by_token(tables, "log"),
        sensors=sensors,
        poses=_by_token(tables, "ego_pose", poses),
        records=records,
    )


def _by_token(tables: Path, name: str, wanted: Collection[str] | None = None) -> ByToken[Record]:
    path = tables / f"{name}.json"
    rows = ((row["token"], row) for row in stream_rows(path))
    return ByToken(path, rows if wanted is None else (row for row in rows if row[0] in wanted))


def _damaged(path: Path, what: str) -> DataError:
    if foreign := foreign_kind(path):
        return DataError(f"{path} {foreign}")
    return DataError(f"{path} is not valid JSON ({what}); unpack the metadata again")
