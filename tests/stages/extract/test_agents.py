"""Agents equal a slow loop written from the definition, and behave at the edges."""

import math

import numpy as np
import pytest
import torch
from xd3d.cache.schema import TapSpec
from xd3d.stages.extract.agents import AgentMaker, grid_tap
from xd3d.stages.extract.settings import AgentSettings

CPU = torch.device("cpu")
IMAGE = (50, 90)  # height, width


def specs_for(image=IMAGE):
    made = {}
    for name, channels, stride in (("up0", 5, 32), ("up1", 4, 16), ("up2", 3, 8)):
        extent = (image[0] / stride, image[1] / stride)
        made[name] = TapSpec(
            name=name, channels=channels, height=math.ceil(extent[0]), width=math.ceil(extent[1]), extent=extent
        )
    return made


def random_inputs(specs, batch=2, seed=0, image=IMAGE):
    rng = np.random.default_rng(seed)
    maps = {
        name: torch.from_numpy(rng.standard_normal((batch, s.channels, s.height, s.width), dtype=np.float32))
        for name, s in specs.items()
    }
    return maps, torch.from_numpy(rng.integers(0, 256, (batch, 3, *image), dtype=np.uint8))


def make(specs, image=IMAGE, **settings):
    return AgentMaker(settings=AgentSettings(**settings), specs=specs, image_size=image, device=CPU)


# The reference: one image, plain loops, float64, image fractions throughout.


def bounds(i, extent):
    return min(i / extent, 1.0), min((i + 1) / extent, 1.0)


def filtered(values, extent, centre, radius):
    """Triangle-filtered value of a row of cells at ``centre`` (in cells), the centre kept inside the outer cells."""
    cells = len(values)
    centre = min(max(centre, 0.5), max(cells - 0.5, 0.5))
    weights = [max(0.0, 1 - abs(j + 0.5 - centre) / radius) for j in range(cells)]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def resized_vector(tap, spec_extent, grid_extent, i, j):
    radius = [max(1.0, s / g) for s, g in zip(spec_extent, grid_extent, strict=True)]
    y, x = (i + 0.5) / grid_extent[0] * spec_extent[0], (j + 0.5) / grid_extent[1] * spec_extent[1]
    return np.array(
        [
            filtered([filtered(row, spec_extent[1], x, radius[1]) for row in channel], spec_extent[0], y, radius[0])
            for channel in tap
        ]
    )


def circle(values):
    return np.concatenate([np.cos(math.pi * values), np.sin(math.pi * values)]) / math.sqrt(len(values))


def standardised(tap, extent):
    """Each channel less its mean over the part of its cells that lies on the image, over its deviation."""
    sizes = [
        [hi - lo for lo, hi in (bounds(i, e) for i in range(n))] for n, e in zip(tap.shape[1:], extent, strict=True)
    ]
    area = np.array([[tall * wide for wide in sizes[1]] for tall in sizes[0]])
    mean = [(channel * area).sum() for channel in tap]
    deviation = [math.sqrt(((channel - m) ** 2 * area).sum()) for channel, m in zip(tap, mean, strict=True)]
    return np.array([(channel - m) / d for channel, m, d in zip(tap, mean, deviation, strict=True)])


def relative_colours(picture):
    """Colours less their mean, 0 to 1 from two deviations (of all values together) below it to two above."""
    colours = picture / 255.0
    centred = np.array([channel - channel.mean() for channel in colours])
    return np.clip(0.5 + centred / math.sqrt((centred**2).mean()) / 4, 0, 1)


def reference(maps, picture, specs, settings, image=IMAGE):
    grid = specs[settings.grid or "up2"]
    cells = [(i, j) for i in range(grid.height) for j in range(grid.width)]
    boxes = [(*bounds(i, grid.extent[0]), *bounds(j, grid.extent[1])) for i, j in cells]
    area = np.array([(v1 - v0) * (u1 - u0) for v0, v1, u0, u1 in boxes])
    centre = np.array([((u0 + u1) / 2, (v0 + v1) / 2) for v0, v1, u0, u1 in boxes])
    normal = {name: standardised(maps[name], specs[name].extent) for name in specs}
    unit = {name: values / np.linalg.norm(values, axis=0) for name, values in normal.items()}
    colours = relative_colours(picture)
    weights = {name: settings.tap_weights.get(name, 1.0) for name in specs}
    vectors = []
    for (i, j), (u, v) in zip(cells, centre, strict=True):
        parts = []
        if settings.assign != "rgb":
            for name, spec in specs.items():
                vector = resized_vector(unit[name], spec.extent, grid.extent, i, j)
                parts.append(math.sqrt(weights[name] / sum(weights.values())) * vector)
        if settings.assign != "features":
            colour = resized_vector(colours, image, grid.extent, i, j)
            parts.append(math.sqrt(1.0 if settings.assign == "rgb" else settings.rgb_weight) * circle(colour))
        place = np.array([u * image[1], v * image[0]]) / max(image)
        parts.append(math.sqrt(settings.position_weight) * circle(place))
        joint = np.concatenate(parts)
        vectors.append(joint / np.linalg.norm(joint))
    pixels = np.array(vectors)

    count = settings.count
    points = count * (4 if settings.seeds == "distinct" else 1)
    rows = min(points, max(1, round(math.sqrt(points * image[0] / image[1]))))
    centres = []
    for row in range(rows):
        columns = (row + 1) * points // rows - row * points // rows
        for column in range(columns):
            y, x = (row + 0.5) / rows * grid.extent[0], (column + 0.5) / columns * grid.extent[1]
            image_of = pixels.T.reshape(-1, grid.height, grid.width)
            seed = [filtered([filtered(r, 0, x, 1.0) for r in channel], 0, y, 1.0) for channel in image_of]
            centres.append(np.array(seed) / np.linalg.norm(seed))
    if settings.seeds == "distinct":
        chosen = [int(np.argmax([sum(a @ b for b in centres) for a in centres]))]
        while len(chosen) < count:
            chosen.append(int(np.argmin([max(a @ centres[i] for i in chosen) for a in centres])))
        centres = [centres[i] for i in sorted(chosen)]
    for _ in range(settings.rounds):
        similarity = np.array([[c @ p for p in pixels] for c in centres]) / settings.temperature
        weight = np.exp(similarity - similarity.max(0))
        assignment = weight / weight.sum(0)
        means = [sum(a * g * p for a, g, p in zip(row, area, pixels, strict=True)) for row in assignment]
        centres = [m / np.linalg.norm(m) for m in means]

    mass = assignment @ area
    geometry = np.zeros((count, 5))
    for n in range(count):
        share = assignment[n] * area / mass[n]
        mean = share @ centre
        spread = np.zeros(2)
        for s, (v0, v1, u0, u1), point in zip(share, boxes, centre, strict=True):
            spread += s * ((point - mean) ** 2 + np.array([u1 - u0, v1 - v0]) ** 2 / 12)
        geometry[n] = [mass[n], *mean, *np.sqrt(spread)]
    queries = {}
    for name, spec in specs.items():
        query = np.zeros((count, spec.channels))
        for i in range(spec.height):
            for j in range(spec.width):
                (v0, v1), (u0, u1) = bounds(i, spec.extent[0]), bounds(j, spec.extent[1])
                for g, (gv0, gv1, gu0, gu1) in enumerate(boxes):
                    shared = max(0, min(v1, gv1) - max(v0, gv0)) * max(0, min(u1, gu1) - max(u0, gu0))
                    query += shared * assignment[:, g, None] * maps[name][None, :, i, j]
        queries[name] = query / mass[:, None]
    return assignment.reshape(count, grid.height, grid.width), geometry, queries


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seeds": "grid"},
        {"assign": "rgb", "count": 5},
        {"assign": "features+rgb", "rgb_weight": 0.5, "grid": "up1", "count": 6},
        {"tap_weights": {"up0": 0.0, "up2": 3.0}, "position_weight": 0.0, "temperature": 0.3, "grid": "up0"},
    ],
)
def test_agents_equal_a_plain_loop(changes):
    specs = specs_for()
    settings = AgentSettings(**({"count": 9, "rounds": 4, "temperature": 0.1} | changes))
    maps, pictures = random_inputs(specs)
    made = AgentMaker(settings=settings, specs=specs, image_size=IMAGE, device=CPU)(maps, pictures)
    for b in range(2):
        one = {name: values[b].double().numpy() for name, values in maps.items()}
        assignment, geometry, queries = reference(one, pictures[b].double().numpy(), specs, settings)
        np.testing.assert_allclose(made.assignment[b], assignment, atol=2e-4)
        np.testing.assert_allclose(made.geometry[b], geometry, atol=2e-4)
        for name, query in queries.items():
            np.testing.assert_allclose(made.queries[name][b], query, atol=1e-3)


def test_memberships_and_masses_are_shares_of_the_image():
    maps, pictures = random_inputs(specs_for())
    made = make(specs_for(), count=20)(maps, pictures)
    torch.testing.assert_close(made.assignment.sum(1), torch.ones_like(made.assignment[:, 0]))
    torch.testing.assert_close(made.geometry[..., 0].sum(1), torch.ones(2))
    assert ((made.geometry >= 0) & (made.geometry <= 1)).all()


def test_agents_find_two_halves():
    specs = specs_for((64, 128))
    maps, pictures = random_inputs(specs, image=(64, 128))
    for values in maps.values():
        values[:] = 0.0
        half = values.shape[-1] // 2
        values[:, 0, :, :half] = 1.0
        values[:, 1, :, half:] = 2.0
    made = make(specs, (64, 128), count=2, assign="features", seeds="grid")(maps, pictures)
    np.testing.assert_allclose(made.geometry[0, :, :3], [[0.5, 0.25, 0.5], [0.5, 0.75, 0.5]], atol=0.02)
    np.testing.assert_allclose(made.geometry[0, :, 3:], [[0.5 / 12**0.5, 1 / 12**0.5]] * 2, atol=0.02)
    np.testing.assert_allclose(made.queries["up2"][0, :, :2], [[1, 0], [0, 2]], atol=0.05)


def test_an_agent_without_pixels_is_zeros_and_never_nan():
    specs = specs_for()
    maps, pictures = random_inputs(specs, batch=1)
    made = make(specs, count=40, temperature=1e-4, rounds=6)(maps, pictures)
    empty = made.geometry[0, :, 0] == 0
    assert empty.any()
    assert not empty.all()
    assert (made.geometry[0, empty] == 0).all()
    assert all((query[0, empty] == 0).all() for query in made.queries.values())
    assert all(torch.isfinite(values).all() for values in (*made.queries.values(), made.geometry, made.assignment))


def test_a_black_image_with_dead_features_gives_finite_agents():
    specs = specs_for()
    maps, pictures = random_inputs(specs, batch=1)
    dead = {name: torch.zeros_like(values) for name, values in maps.items()}
    made = make(specs, assign="features+rgb")(dead, torch.zeros_like(pictures))
    assert torch.isfinite(made.geometry).all()
    assert all((query == 0).all() for query in made.queries.values())


def test_more_agents_than_cells_are_possible():
    specs = specs_for((32, 40))
    maps, pictures = random_inputs(specs, image=(32, 40))
    made = make(specs, (32, 40), count=100)(maps, pictures)
    assert made.queries["up0"].shape == (2, 100, 5)
    torch.testing.assert_close(made.geometry[..., 0].sum(1), torch.ones(2))


def test_the_same_maps_give_the_same_bits():
    specs = specs_for()
    maps, pictures = random_inputs(specs)
    first, second = (make(specs)(maps, pictures) for _ in range(2))
    assert torch.equal(first.geometry, second.geometry)
    assert torch.equal(first.queries["up1"], second.queries["up1"])


def test_the_grid_is_that_of_the_finest_tap():
    specs = specs_for()
    assert grid_tap(AgentSettings(), specs) == "up2"
    assert grid_tap(AgentSettings(), {"up0": specs["up0"], "up1": specs["up1"]}) == "up1"
    assert grid_tap(AgentSettings(grid="up0"), specs) == "up0"


@pytest.mark.parametrize("assign", ["features", "rgb", "features+rgb"])
def test_brightness_and_contrast_of_an_image_move_no_agent(assign):
    specs = specs_for()
    maps, pictures = random_inputs(specs, batch=1)
    dim = {name: 0.3 * values + 2.0 for name, values in maps.items()}
    bright, dark = make(specs, assign=assign)(maps, pictures // 5 * 5), make(specs, assign=assign)(dim, pictures // 5)
    torch.testing.assert_close(dark.geometry, bright.geometry, atol=1e-3, rtol=0)
