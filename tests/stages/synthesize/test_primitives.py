"""Where rays meet solids, against a march in small steps through inside-outside tests written here."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xd3d.stages.synthesize.primitives import BOX, CONE, ELLIPSOID, SolidList, intersect, local_normals

STEP = 0.002
SOLIDS = {
    "box": (BOX, (0.0, 0.0)),
    "cabin": (BOX, (0.4, 0.25)),
    "roof": (BOX, (0.1, 0.97)),
    "ball": (ELLIPSOID, (0.0, 0.0)),
    "column": (CONE, (0.0, 0.0)),
    "cone": (CONE, (0.8, 0.8)),
    "flare": (CONE, (-0.25, -0.25)),
}


def one(kind, taper, centre=(0.3, -0.2, 0.4), half=(0.9, 0.6, 0.5), yaw=0.7, cut=0.0):
    solids = SolidList()
    solids.add(kind, centre, half, material=0, label=17, colour=(0.5, 0.5, 0.5), yaw=yaw, taper=taper, cut=cut)
    return solids.freeze()


def inside(solids, points):
    """Whether points [P, 3] lie within the only solid."""
    offset = points - solids.centre[0]
    cos, sin = np.cos(solids.yaw[0]), np.sin(solids.yaw[0])
    x, y, z = offset[:, 0] * cos + offset[:, 1] * sin, -offset[:, 0] * sin + offset[:, 1] * cos, offset[:, 2]
    a, b, c = solids.half[0]
    rise = (z / c + 1) / 2
    wide_x, wide_y = a * (1 - solids.taper[0, 0] * rise), b * (1 - solids.taper[0, 1] * rise)
    if solids.kind[0] == ELLIPSOID:
        return (x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2 < 1
    if solids.kind[0] == BOX:
        return (np.abs(x) < wide_x) & (np.abs(y) < wide_y) & (np.abs(z) < c)
    return ((x / a) ** 2 + (y / b) ** 2 < (wide_x / a) ** 2) & (np.abs(z) < c)


def meet(solids, origin, direction):
    shaped = np.asarray(direction, np.float32).T[:, None]
    return intersect(solids, 0, np.asarray(origin, np.float32).reshape(3, 1, 1), shaped)[0]


@pytest.mark.parametrize("name", SOLIDS)
def test_rays_stop_where_a_march_first_gets_inside(name):
    solids = one(*SOLIDS[name])
    rng = np.random.default_rng(1)
    steps = np.arange(0, 6, STEP)
    hits = 0
    for _ in range(12):
        origin = rng.normal(0, 1, 3)
        origin = origin / np.linalg.norm(origin) * 2.5
        aim = solids.centre[0] + rng.normal(0, 0.35, (8, 3)) - origin
        direction = aim / np.linalg.norm(aim, axis=1, keepdims=True)
        found = meet(solids, origin, direction)
        for ray, distance in zip(direction, found, strict=True):
            within = inside(solids, origin + steps[:, None] * ray)
            if within.sum() * STEP < 0.02:  # the march cannot judge a graze
                continue
            hits += 1
            assert distance == pytest.approx(steps[np.argmax(within)], abs=2 * STEP)
    assert hits > 40


@pytest.mark.parametrize("name", SOLIDS)
def test_rays_that_pass_by_or_start_inside_meet_nothing(name):
    solids = one(*SOLIDS[name])
    away = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0.2, 0.1]])
    assert np.isinf(meet(solids, (3.0, 3.0, 3.0), away)).all()
    assert np.isinf(meet(solids, solids.centre[0], away)).all()


@pytest.mark.parametrize("name", SOLIDS)
def test_normals_point_out_of_the_surface(name):
    solids = one(*SOLIDS[name], yaw=0.0)
    rng = np.random.default_rng(2)
    origin = rng.normal(0, 1, (200, 3))
    origin = origin / np.linalg.norm(origin, axis=1, keepdims=True) * 2.5
    direction = solids.centre[0] + rng.normal(0, 0.3, (200, 3)) - origin
    distance = np.array([meet(solids, o, d[None])[0] for o, d in zip(origin, direction, strict=True)])
    origin, direction, distance = (a[np.isfinite(distance)] for a in (origin, direction, distance))
    points = origin + direction * distance[:, None]
    local = (points - solids.centre[0]).astype(np.float32)
    normals = local_normals(solids, np.zeros(len(local), np.int64), local)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    outside = ~inside(solids, points + 0.004 * normals)
    within = inside(solids, points - 0.004 * normals)
    assert outside.mean() > 0.99
    assert within.mean() > 0.97  # not at sharp edges
    assert ((normals * direction).sum(axis=1) < 1e-3).all()


@settings(max_examples=60, deadline=None)
@given(
    centre=st.tuples(*[st.floats(-20, 20)] * 3),
    radius=st.floats(0.2, 5),
    aim=st.tuples(*[st.floats(-1, 1)] * 3),
)
def test_ball_distance_is_that_of_the_quadratic_formula(centre, radius, aim):
    origin = np.array([30.0, -25.0, 12.0])
    direction = np.array(centre) + np.array(aim) * radius - origin
    direction /= np.linalg.norm(direction)
    offset = origin - np.array(centre)
    b, c = direction @ offset, offset @ offset - radius**2
    found = meet(one(ELLIPSOID, (0.0, 0.0), centre, (radius,) * 3), origin, direction[None])[0]
    if b * b - c > 0.02 * radius**2:
        assert found == pytest.approx(-b - np.sqrt(b * b - c), rel=2e-3)
    elif b * b - c < -0.02 * radius**2:
        assert np.isinf(found)


def test_a_ragged_crown_lies_within_the_smooth_one():
    rng = np.random.default_rng(3)
    direction = rng.normal(0, 1, (4000, 3)) * 0.25 + [0, 0, -1]
    smooth = meet(one(ELLIPSOID, (0.0, 0.0)), (0.3, -0.2, 3), direction)
    ragged = meet(one(ELLIPSOID, (0.0, 0.0), cut=0.7), (0.3, -0.2, 3), direction)
    lost = np.isinf(ragged) & np.isfinite(smooth)
    assert 0.02 < lost.sum() / np.isfinite(smooth).sum() < 0.6
    kept = np.isfinite(ragged)
    np.testing.assert_array_equal(ragged[kept], smooth[kept])
