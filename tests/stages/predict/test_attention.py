"""The look inside a network: what its points read is what its forward pass reads, and it leaves the network alone."""

import numpy as np
import pytest
import torch
from xd3d.errors import ConfigError
from xd3d.stages.predict.attention import attention_maps
from xd3d.stages.train.loader import evaluation_batch
from xd3d.stages.train.queries import QueryBlock

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = {"queries": "agents", "inject": "none", "context": "none", "decoupling": "loss"}
DISTIL, REFINE = {"head": "distil", **PAPER}, {"head": "refine", **PAPER}
LOCATED_QUERIES = {"queries": "agents", "head": "distil", "locate_queries": True}
AGENTS = 2 * 7


def test_a_blocks_attention_is_what_its_forward_pass_uses():
    """With values that are plain sums of keys and heads that are averaged, the weights show in what comes out."""
    torch.manual_seed(1)
    block = QueryBlock(channels=8, drop_path=0.0).eval()
    tokens, keys = torch.randn(3, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    attention = block.attention(tokens, keys, mask)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3))
    assert attention[1, :, [2, 4]].abs().max() == 0
    with torch.no_grad():
        for part in block.mlp[2].parameters():
            part.zero_()
        block.value.weight.copy_(torch.ones(8, 8))
        block.out.weight.fill_(1 / 8)  # the mean over the heads
        block.value.bias.zero_()
        block.out.bias.zero_()
    expected = tokens + (attention @ keys.sum(-1, keepdim=True))
    torch.testing.assert_close(block(tokens, keys, mask), expected)


def calls_of(module, run):
    """What ``module`` was given and what it returned, call by call, while ``run`` ran."""
    seen = []
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs, output)))
    with torch.no_grad():
        run()
    handle.remove()
    return seen


@pytest.mark.parametrize("values", [{}, {"decoupling": "none"}, {"lidar_stages": 0, **LOCATED_QUERIES}], ids=str)
def test_memberships_times_tokens_are_what_the_2d_head_reads(make_domain, make_network, values):
    domain = make_domain(cameras=2)
    network = make_network(domain, **values).eval()
    insight = attention_maps(network, domain, 0)
    frame, batch = domain.load(0), evaluation_batch(domain, network.plan, 0)
    assert insight.memberships.shape == (len(frame.points), AGENTS)
    assert insight.memberships.min() >= 0
    np.testing.assert_allclose(insight.memberships.sum(1), 1, atol=1e-5)
    ((((read,), _),)) = calls_of(network.read_context, lambda: network(batch))
    ((_, tokens),) = calls_of(network.agent_tokens, lambda: network(batch))
    kept = network.truncated(tokens)
    np.testing.assert_allclose(insight.memberships @ kept.detach().numpy().reshape(AGENTS, -1), read, atol=1e-5)
    for point in range(0, len(frame.points), 17):
        views = frame.projection_view[frame.projection_point == point]
        assert set(insight.memberships[point].reshape(2, 7).any(1).nonzero()[0]) <= set(views)


def test_points_that_no_view_shows_read_no_agent(make_domain, make_network):
    domain = make_domain(frames=1)
    domain.index.images.intrinsics[:, 0, 0] *= 4  # a narrow view: some points lie beside the image
    domain = type(domain)(**{**vars(domain), "every_point": True})
    frame, insight = domain.load(0), attention_maps(make_network(domain), domain, 0)
    shown = np.isin(np.arange(len(frame.points)), frame.projection_point)
    assert 0 < shown.sum() < len(shown)
    np.testing.assert_allclose(insight.memberships.sum(1), shown, atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        DISTIL,
        REFINE,
        {"head": "distil", "queries": "agents"},
        {"head": "refine", "queries": "agents", "locate_queries": True},
        LOCATED_QUERIES,
    ],
    ids=str,
)
def test_the_attention_of_queries_is_that_of_the_forward_pass_and_the_network_stays_as_it_was(
    make_domain, make_network, values
):
    domain = make_domain(cameras=2)
    network = make_network(domain, **values).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    insight = attention_maps(network, domain, 0)
    attention = insight.queries
    points = len(domain.load(0).points)
    assert attention.voxels.shape == (points, 6)
    assert attention.queries.shape == (6, 6)
    assert attention.agents.shape == (6, AGENTS)
    looks = (attention.voxels, attention.queries, attention.agents)
    for rows in (*looks, attention.voxels_to_agents, attention.queries_to_agents):
        np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.eval()
    batch, last = evaluation_batch(domain, network.plan, 0), network.refiners[-1]
    ((inputs, output), *_) = calls_of(last, lambda: network(batch, complete=True))
    with torch.no_grad():
        read = torch.from_numpy(attention.voxels[:, 1:]) @ last.value(inputs[2][0, 1:])
        expected = last.out(read + inputs[0][batch.point_to_voxel])
    torch.testing.assert_close(output[batch.point_to_voxel], expected, rtol=1e-4, atol=1e-5)


def test_the_bias_of_located_queries_is_in_their_attention(make_domain, make_network):
    domain = make_domain()
    values = [{**LOCATED_QUERIES, "locate_queries": locate} for locate in (True, False)]
    located, plain = (attention_maps(make_network(domain, **each), domain, 0) for each in values)
    assert np.abs(located.queries.voxels - plain.queries.voxels).max() > 1e-3
    np.testing.assert_array_equal(located.queries.agents, plain.queries.agents)


@pytest.mark.parametrize("values", [{}, DISTIL, REFINE, LOCATED_QUERIES], ids=str)
def test_a_complete_pass_predicts_bit_for_bit_what_a_plain_one_does(make_domain, make_network, make_batch, values):
    domain = make_domain(frames=2)
    network = make_network(domain, **values).eval()
    batch = make_batch(domain, network)
    plain, complete = network(batch), network(batch, complete=True)
    for name in ("logits_3d", "logits_2d", "logits_lidar"):
        one, other = getattr(plain, name), getattr(complete, name)
        assert (one is None and other is None) or torch.equal(one, other)
    assert plain.queries is None
    assert not plain.refined
    assert len(complete.refined) == (4 if "queries" in values else 0)


def test_a_network_shows_what_it_has_and_nothing_else(make_domain, make_network):
    domain = make_domain()
    dense = attention_maps(make_network(domain, keys="features", **PAPER), domain, 0)
    assert dense.memberships is None
    assert (dense.queries.agents, dense.queries.voxels_to_agents, dense.queries.queries_to_agents) == (None,) * 3
    assert attention_maps(make_network(domain), domain, 0).queries is None
    injected = attention_maps(make_network(domain, inject="agents", context="none"), domain, 0)
    assert injected.memberships is not None
    for values in ({"variant": "image"}, {"context": "mlp"}, {"queries": "voxels", "context": "none"}):
        with pytest.raises(ConfigError, match=r"variant=full and fusion\.context=agents.*fusion\.queries=agents"):
            attention_maps(make_network(domain, **values), domain, 0)


def test_a_frame_that_no_camera_sees_shows_nothing(make_domain, make_network):
    domain = make_domain(frames=2)
    domain.index.images.camera_from_lidar[1, 2] *= -1  # the second camera looks backwards
    assert attention_maps(make_network(domain), domain, 1) is None
