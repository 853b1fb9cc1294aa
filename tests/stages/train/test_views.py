"""Training draws a view of each image and moves its projections; evaluation sees images as they are."""

from dataclasses import replace

import numpy as np
import pytest
from xd3d.errors import RunError
from xd3d.stages.train.loader import evaluation_batch, training_batch
from xd3d.stages.train.streams import Use, generator
from xd3d.stages.train.views import draw_views, identity_views

pytestmark = pytest.mark.usefixtures("one_thread")


class Views:
    """A source of several views an image, each image and view with features of its own; it notes what was read."""

    def __init__(self, source, views=("jitter:1", "hflip", "identity")):
        self._source, self.views = source, views
        self.taps, self.agents, self.grid = source.taps, source.agents, source.grid
        self.rows = []

    def require(self, rows):
        self._source.require(rows)

    def read(self, rows):
        self.rows.append(list(rows))
        return self._source.read(rows)


@pytest.fixture
def domain(make_domain):
    plain = make_domain(frames=4, cameras=2, points=100)
    return replace(plain, features=Views(plain.features))


def test_a_mirrored_image_takes_its_points_along(domain):
    frame = domain.load(0)
    for step in range(20):
        moved, drawn = draw_views(frame, domain.features, generator(1, Use.SAMPLE, step, 0))
        mirrored = (drawn == 1)[frame.projection_view]
        np.testing.assert_allclose(moved.projection_uv[mirrored, 0], 1 - frame.projection_uv[mirrored, 0], atol=1e-7)
        np.testing.assert_array_equal(moved.projection_uv[~mirrored], frame.projection_uv[~mirrored])
        np.testing.assert_array_equal(moved.projection_uv[:, 1], frame.projection_uv[:, 1])


def test_a_point_strictly_inside_stays_strictly_inside(domain):
    frame = domain.load(0)
    uv = frame.projection_uv.copy()
    uv[:, 0] = np.resize(np.array([1e-12, 2**-30, 1 - 2**-24, 0.5], np.float32), len(uv))
    source = Views(domain.features, ("hflip",))
    moved, _ = draw_views(replace(frame, projection_uv=uv), source, np.random.default_rng(0))
    assert ((moved.projection_uv > 0) & (moved.projection_uv < 1)).all()


def test_every_view_is_drawn_and_a_resumed_run_draws_the_same(domain, make_network, make_batch):
    network = make_network(domain)
    batches = [make_batch(domain, network, step=step) for step in range(10)]
    read = domain.features.rows
    assert {row % 3 for rows in read for row in rows} == {0, 1, 2}
    again = make_batch(domain, network, step=7)
    assert read[-1] == read[7]
    np.testing.assert_array_equal(again.images.projection_uv, batches[7].images.projection_uv)


def test_evaluation_reads_images_as_they_are_or_says_why_not(domain, make_network):
    plan = make_network(domain).plan
    batch = evaluation_batch(domain, plan, 1)
    assert domain.features.rows[-1] == [3 * 2 + 2, 3 * 3 + 2]
    np.testing.assert_array_equal(batch.images.projection_uv, domain.load(1).projection_uv)
    source = Views(domain.features, ("hflip",))
    with pytest.raises(RunError, match=r"these features hold hflip; .*extract\.views"):
        identity_views(domain.load(1), source)


def test_with_one_view_batches_are_what_they_were(make_domain, make_network):
    from xd3d.stages.train.settings import AugmentSettings

    domain = make_domain(frames=4, points=100)
    plan = make_network(domain).plan
    batch = training_batch(domain, plan, AugmentSettings(), batch_size=2, seed=1, step=0)
    uv = np.concatenate([domain.load(p).projection_uv for p in range(4)])
    assert np.isin(batch.images.projection_uv.numpy()[:, 0], uv[:, 0]).all()
