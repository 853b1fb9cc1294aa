import numpy as np
from PIL import Image
from xd3d.stages.synthesize.nuscenes_writer import global_from_world, street_tile, write_map, write_tile
from xd3d.stages.synthesize.style_sampling import city_style
from xd3d.stages.synthesize.world import World


def mask_of(path):
    from nuscenes.utils.map_mask import MapMask

    return MapMask(str(path))


def test_the_devkit_finds_the_road_where_the_street_has_it(tmp_path):
    """Streets in a lower and an upper row of squares, each turned: a mirrored or swapped axis shows at once."""
    tiles, checks = {}, []
    for slot, angle in ((1, 0.4), (10, 2.5)):
        world = World(city_style("singapore", rng=np.random.default_rng(slot)), slot, length=40.0)
        pose = global_from_world(world=world, slot=slot, angle=angle)
        tiles[slot] = tmp_path / f"{slot}.png"
        write_tile(tiles[slot], street_tile(world=world, slot=slot, global_from_world=pose))
        x, y = np.random.default_rng(0).uniform(-60, 60, (2, 2000)) + np.array(world.lane_pose(20.0)[:2])[:, None]
        ground = world.ground.classes(x, y)
        moved = pose @ np.stack([x, y, np.zeros(2000), np.ones(2000)])
        checks.append((moved, np.isin(ground, (24, 26))))
    write_map(tmp_path / "map.png", tiles)
    mask = mask_of(tmp_path / "map.png")
    for moved, expected in checks:
        assert (mask.is_on_mask(moved[0], moved[1]) == expected).mean() > 0.97
        assert 0.05 < expected.mean() < 0.95


def test_a_street_lies_in_the_middle_of_its_own_square():
    world = World(city_style("boston", rng=np.random.default_rng(0)), 3, length=40.0)
    x, y, _ = world.lane_pose(20.0)
    for slot, middle in ((0, (100, 100)), (7, (1500, 100)), (8, (100, 300))):
        pose = global_from_world(world=world, slot=slot, angle=1.0)
        np.testing.assert_allclose((pose @ [x, y, 0, 1])[:2], middle, atol=1e-9)


def test_squares_without_a_street_are_empty(tmp_path):
    full = np.full((2000, 2000), 255, np.uint8)
    write_tile(tmp_path / "tile.png", full)
    write_map(tmp_path / "map.png", {9: tmp_path / "tile.png"})
    with Image.open(tmp_path / "map.png") as image:
        assert image.mode == "L"
        mask = np.asarray(image)
    assert mask.shape == (4000, 16000)
    np.testing.assert_array_equal(mask[:2000, 2000:4000], full)
    assert mask.sum(dtype=np.int64) == full.sum(dtype=np.int64)
