"""Point clouds in ROS 2 bags (``.mcap``): a bag is taken for a folder of sweeps, ``BAG.mcap/TOPIC-NANOSECONDS``.

The libraries are extras: ``pip install 'xd3d[sweeps]'``.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from ...errors import DataError, MissingDataError
from .foreign_files import foreign_kind
from .point_files import import_extra

__all__ = ["BAG_SUFFIX", "bag_of", "list_clouds", "read_cloud"]

BAG_SUFFIX = ".mcap"

_CLOUD, _CLOUD_OF_ROS_1 = "sensor_msgs/msg/PointCloud2", "sensor_msgs/PointCloud2"

#: Datatypes of sensor_msgs/PointField.
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}


def bag_of(path: Path) -> Path | None:
    """Returns the bag that holds the cloud ``path``; None for a file of its own."""
    return path.parent if path.parent.suffix.lower() == BAG_SUFFIX and not path.parent.is_dir() else None


def list_clouds(bag: Path) -> list[str]:
    """Returns the names of the clouds in a bag, by topic and time.

    Raises:
        DataError: it is damaged or truncated.
        MissingDataError: it is missing.
        ConfigError: the library is not installed.
    """
    kinds, found = set[str](), set[tuple[str, int]]()
    with _reader(bag) as (reader, topics):
        for schema, channel, message in reader.iter_messages(topics=list(topics.values()) if topics else None):
            kinds.add(schema.name if schema else "")
            if schema and schema.name == _CLOUD:
                found.add((channel.topic, message.log_time))
    if not found and _CLOUD_OF_ROS_1 in kinds:
        raise DataError(
            f"The bag {bag} has messages of ROS 1; convert the bag that it was made of: pip install rosbags;"
            " rosbags-convert --src NAME.bag --dst NEW --dst-storage mcap"
        )
    return [f"{_short(topic)}-{time}" for topic, time in sorted(found)]


def read_cloud(path: Path) -> Float64[np.ndarray, "points 3"]:
    """Returns the points of the cloud ``path`` of a bag, in the order of the message.

    Raises:
        DataError: the bag is damaged, or the cloud has no x, y and z.
        MissingDataError: the bag or the cloud is missing.
        ConfigError: the library is not installed.
    """
    bag = path.parent
    topic, _, time = path.name.rpartition("-")
    with _reader(bag) as (reader, topics):
        wanted = [topics[topic]] if topic in topics else None
        if time.isdecimal():
            for each in reader.iter_decoded_messages(topics=wanted, starting_at=int(time), ending_before=int(time) + 1):
                if _short(each.channel.topic) == topic:
                    return _points(each.decoded_message, path)
    raise MissingDataError(f"The bag {bag} has no cloud {path.name}; run 'xd3d prepare' again, if it was exchanged")


def _short(topic: str) -> str:
    return topic.strip("/").replace("/", "_")


@contextmanager
def _reader(bag: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """A reader of the bag, and its topics of clouds by their short names; none if the bag has no summary."""
    mcap, decoders = import_extra("mcap.reader", bag), import_extra("mcap_ros2.decoder", bag)
    errors = import_extra("mcap.exceptions", bag)
    try:
        with bag.open("rb") as file:
            reader = mcap.make_reader(file, decoder_factories=[decoders.DecoderFactory()])
            summary = reader.get_summary()
            known = summary.channels.values() if summary else ()
            clouds = [c.topic for c in known if c.schema_id and summary.schemas[c.schema_id].name == _CLOUD]
            yield reader, {_short(topic): topic for topic in clouds}
    except FileNotFoundError as error:
        raise MissingDataError(f"The bag {bag} is missing; restore it") from error
    except DataError:
        raise
    except (errors.McapError, ValueError, KeyError, EOFError, RuntimeError, OSError, struct.error) as error:
        known = f"is damaged or truncated ({error}); try: mcap recover"
        raise DataError(f"The bag {bag} {foreign_kind(bag) or known}") from error


def _points(message: Any, path: Path) -> np.ndarray:
    fields = {field.name: field for field in message.fields}
    if not {"x", "y", "z"} <= fields.keys():
        raise DataError(f"The cloud {path} has no x, y and z; its fields are: {', '.join(fields)}")
    order = ">" if message.is_bigendian else "<"
    dtype = np.dtype(
        {
            "names": list("xyz"),
            "formats": [order + _TYPES[fields[axis].datatype] for axis in "xyz"],
            "offsets": [fields[axis].offset for axis in "xyz"],
            "itemsize": message.point_step,
        }
    )
    content, across = np.frombuffer(bytes(message.data), np.uint8), message.width * message.point_step
    step = across if len(content) == message.height * across else message.row_step  # some drivers write a wrong one
    if len(content) != message.height * step or step < across:
        raise DataError(
            f"The cloud {path} has {len(content)} bytes, and its header says {message.height} rows of {message.width}"
            f" points of {message.point_step} bytes; record it again, or leave it out"
        )
    used = np.ascontiguousarray(content.reshape(message.height, step)[:, :across])
    table = used.reshape(-1).view(dtype)
    return np.stack([table[axis].astype(np.float64) for axis in "xyz"], axis=1)
