"""The map of a location: streets side by side, and the mask of road and sidewalk.

Every scene has its own street. On the location's map each has a square and a rotation; this pose defines the global
frame of the tables. The mask is the "semantic prior" of nuScenes: 255 on road and
sidewalk, 0 elsewhere, 0.1 m per pixel, x to the right and y upwards from the lower left corner.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from ...files import write_atomic
from .classes import DRIVEABLE, SIDEWALK
from .poses import rigid, rotation
from .world import World

__all__ = ["global_from_world", "street_tile", "write_map", "write_tile"]

TILE_METRES = 200
TILE_COLUMNS = 8
PIXELS_PER_METRE = 10
COARSENING = 2


def global_from_world(*, world: World, slot: int, angle: float) -> Float64[np.ndarray, "4 4"]:
    """Return the pose of a street on its location's map.

    Args:
        world: the street; the middle of its lane is at the centre of the square.
        slot: number of the square, row by row from the lower left.
        angle: rotation of the street, radians anticlockwise.
    """
    column, row = slot % TILE_COLUMNS, slot // TILE_COLUMNS
    turn = rotation(yaw=angle)
    x, y, _ = world.lane_pose(world.length / 2)
    middle = np.array([column + 0.5, row + 0.5, 0.0]) * TILE_METRES
    return rigid(turn, middle - turn @ [x, y, 0.0])


def street_tile(
    *, world: World, slot: int, global_from_world: Float64[np.ndarray, "4 4"]
) -> UInt8[np.ndarray, "tile tile"]:
    """Draw the mask of one square, top row first; pixels of 0.1 m, looked up every 0.2 m."""
    step = COARSENING / PIXELS_PER_METRE
    offsets = (np.arange(round(TILE_METRES / step)) + 0.5) * step
    x = slot % TILE_COLUMNS * TILE_METRES + offsets
    y = slot // TILE_COLUMNS * TILE_METRES + offsets[::-1]
    grid = np.stack(np.broadcast_arrays(x[None, :], y[:, None], 0.0, 1.0))
    world_x, world_y = np.tensordot(np.linalg.inv(global_from_world)[:2], grid, axes=1)
    mask = np.isin(world.ground_class(world_x, world_y), (DRIVEABLE, SIDEWALK)).astype(np.uint8) * np.uint8(255)
    return mask.repeat(COARSENING, axis=0).repeat(COARSENING, axis=1)


def write_tile(path: Path, tile: UInt8[np.ndarray, "height width"]) -> None:
    """Store a mask as an 8-bit grey PNG."""
    write_atomic(path, lambda file: Image.fromarray(tile).save(file, format="PNG", compress_level=1))


def write_map(path: Path, tiles: Mapping[int, Path]) -> None:
    """Join the squares of a location, given by slot, to one mask; a square without a street stays 0."""
    side = TILE_METRES * PIXELS_PER_METRE
    rows = max(tiles) // TILE_COLUMNS + 1
    columns = min(TILE_COLUMNS, max(tiles) + 1)
    mask = np.zeros((rows * side, columns * side), np.uint8)
    for slot, tile in tiles.items():
        top, left = (rows - 1 - slot // TILE_COLUMNS) * side, slot % TILE_COLUMNS * side
        with Image.open(tile) as image:
            mask[top : top + side, left : left + side] = np.asarray(image)
    write_tile(path, mask)
