import numpy as np
import pytest
import torch
from xd3d.errors import ConfigError
from xd3d.stages.train.insight import look_inside
from xd3d.stages.train.queries import QueryBlock

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize("head", ["distil", "refine"])
def test_the_look_inside_has_a_row_a_point_and_leaves_the_network_as_it_was(make_domain, make_network, head):
    domain = make_domain(cameras=2)
    network = make_network(domain, head=head).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    insight = look_inside(network, domain, 0)
    points = len(domain.load(0).points)
    assert insight.voxels.shape == (points, 6)
    assert insight.queries.shape == (6, 6)
    assert insight.agents.shape == (6, 2 * 7)
    for rows in (insight.voxels, insight.queries, insight.agents, insight.voxels_to_agents, insight.queries_to_agents):
        np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)
    assert np.linalg.matrix_rank(insight.projected, tol=1e-4) == 3
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_dense_keys_have_no_agents_and_other_variants_nothing_to_look_at(make_domain, make_network):
    domain = make_domain()
    insight = look_inside(make_network(domain, keys="features"), domain, 0)
    assert (insight.agents, insight.voxels_to_agents, insight.queries_to_agents) == (None, None, None)
    with pytest.raises(ConfigError, match="full"):
        look_inside(make_network(domain, variant="image"), domain, 0)
