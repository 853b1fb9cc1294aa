"""The rows of the nuScenes tables that the index needs, read row by row.

``sample_data`` and ``ego_pose`` of v1.0-trainval have 2.6 million rows each, nine in ten of them between the keyframes;
the devkit holds all of them in memory. Here each table is streamed, and only the rows of keyframes and of the chosen
sensors are kept.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError

__all__ = ["KeyframeTables", "Record", "read_keyframes", "sensor_channels", "stream_rows"]

Record = dict[str, Any]

_CHUNK = 1 << 22  #: characters; no row is nearly as long
_BETWEEN = re.compile(r"[\s,]*")
_OF_SENSOR = ("token", "filename", "width", "height", "ego_pose_token", "calibrated_sensor_token")


@dataclass(frozen=True, kw_only=True)
class KeyframeTables:
    """Rows by token. ``records``: the ``sample_data`` row of each keyframe by channel, None where it is not chosen."""

    samples: list[Record]
    scenes: Mapping[str, Record]
    logs: Mapping[str, Record]
    sensors: Mapping[str, Record]  #: calibrated_sensor
    poses: Mapping[str, Record]  #: ego_pose
    records: Mapping[str, Mapping[str, Record | None]]


def stream_rows(path: Path) -> Iterator[Record]:
    """The rows of a table, one after the other; the file is never in memory as a whole.

    Raises:
        DataError: it is not a JSON list.
    """
    decode = json.JSONDecoder().raw_decode
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_CHUNK).lstrip()
            if not text.startswith("["):
                raise _damaged(path, "it holds no list")
            place = 1
            while True:
                place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]  # it matches nothing, too
                if text.startswith("]", place):
                    return
                try:
                    row, place = decode(text, place)
                except json.JSONDecodeError as error:
                    more = "" if len(text) - place > _CHUNK else file.read(_CHUNK)
                    if not more:
                        raise _damaged(path, f"a row does not end, or is no JSON: {error.msg}") from error
                    text, place = text[place:] + more, 0
                else:
                    yield row
    except UnicodeDecodeError as error:
        raise _damaged(path, str(error)) from error


def sensor_channels(tables: Path) -> dict[str, str]:
    """Channel of each sensor, such as ``CAM_FRONT``, by token."""
    return {row["token"]: row["channel"] for row in stream_rows(tables / "sensor.json")}


def read_keyframes(tables: Path, channels: Mapping[str, str], chosen: Collection[str]) -> KeyframeTables:
    """The tables of a version folder; of ``sample_data`` the keyframes' rows of the ``chosen`` channels.

    Raises:
        DataError: a table is damaged.
        KeyError, TypeError: rows lack what they should have, or refer to rows that are not there.
    """
    sensors = _by_token(tables, "calibrated_sensor")
    channel_of = {token: channels[row["sensor_token"]] for token, row in sensors.items()}
    samples = list(stream_rows(tables / "sample.json"))
    records: dict[str, dict[str, Record | None]] = {row["token"]: {} for row in samples}
    poses: set[str] = set()
    for row in stream_rows(tables / "sample_data.json"):
        if not row["is_key_frame"]:
            continue
        channel = channel_of[row["calibrated_sensor_token"]]
        kept = {name: row[name] for name in _OF_SENSOR} if channel in chosen else None
        records[row["sample_token"]][channel] = kept
        if kept is not None:
            poses.add(kept["ego_pose_token"])
    return KeyframeTables(
        samples=samples,
        scenes=_by_token(tables, "scene"),
        logs=_by_token(tables, "log"),
        sensors=sensors,
        poses={row["token"]: row for row in stream_rows(tables / "ego_pose.json") if row["token"] in poses},
        records=records,
    )


def _by_token(tables: Path, name: str) -> dict[str, Record]:
    return {row["token"]: row for row in stream_rows(tables / f"{name}.json")}


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path} is not valid JSON ({what}); unpack the metadata again")
