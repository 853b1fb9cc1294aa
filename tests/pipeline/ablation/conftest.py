import pytest
from xd3d.pipeline.ablation.rows import Row


@pytest.fixture
def make_row():
    """Call it with shift, variant, seed and scores in points for a row; all but 3D may be left out."""

    def make(
        shift, variant, seed, *, three, xm=None, fused=None, two=None, lidar=None, source=None, digest="d", iou=None
    ):
        def scores(value):
            return {
                "2d": None if two is None else two / 100,
                "3d": value / 100,
                "3d_lidar_only": None if lidar is None else lidar / 100,
                "xm": None if xm is None else xm / 100,
                "fused": None if fused is None else fused / 100,
            }

        return Row(
            shift=shift,
            variant=variant,
            seed=seed,
            miou=scores(three),
            source_miou=scores(three if source is None else source),
            iou=iou or {"road": {"2d": None, "3d": three / 100, "xm": None}},
            points=10,
            steps=2,
            best=None,
            seconds=1.0,
            digest=digest,
            code="1",
            features="none",
            run=f"{variant}-seed{seed}",
            command=f"xd3d ablate --only {variant} --shifts {shift} --seeds {seed}",
        )

    return make


@pytest.fixture
def drawn(make_row):
    """Rows with drawn scores: two shifts, three seeds, four variants, and one variant that lacks a row."""
    import numpy as np

    rng = np.random.default_rng(4)
    rows = [
        make_row(shift, variant, seed, three=a, xm=b, fused=e, two=c, lidar=a, source=d)
        for variant in ("3d-only", "full", "full-random-weights", "full-400", "rank-4")
        for shift in ("fog", "night")
        for seed in (1, 2, 3)
        for a, b, c, d, e in [rng.uniform(20, 80, 5)]
    ]
    return [row for row in rows if (row.variant, row.shift, row.seed) != ("rank-4", "night", 3)]
