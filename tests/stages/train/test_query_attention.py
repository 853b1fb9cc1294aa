import numpy as np
import pytest
import torch
from xd3d.stages.train.query_attention import QueryInterface, StageRefiner, decoupling_loss, low_rank
from xd3d.stages.train.ragged import Ragged


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def standardised(x):
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)


def linear(layer, x):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def test_interface_follows_its_formula_in_float64():
    torch.manual_seed(0)
    interface = QueryInterface(channels=6, scale=0.25).double()
    q3, qa = torch.randn(2, 4, 6).double(), torch.randn(2, 5, 6).double()
    found = interface(q3, qa).detach().numpy()
    for sample in range(2):
        own, other = q3[sample].numpy(), qa[sample].numpy()
        alike = standardised(own) @ standardised(other).T
        attention = softmax(alike / np.sqrt(6))[:, 1:]
        expected = own + 0.25 * linear(interface.out, attention @ linear(interface.value, other[1:]) + own)
        np.testing.assert_allclose(found[sample], expected, atol=1e-9)


def test_refiner_follows_its_formula_voxel_by_voxel_over_ragged_samples():
    torch.manual_seed(0)
    refiner = StageRefiner(query_channels=6, voxel_channels=3).double()
    torch.nn.init.normal_(refiner.out.weight)
    sample = torch.tensor([1, 0, 1, 1])
    voxels, queries = torch.randn(4, 3).double(), torch.randn(2, 5, 6).double()
    found = refiner(voxels, Ragged.of(sample, 2), queries).detach().numpy()
    for row in range(4):
        q, x = queries[sample[row]].numpy(), voxels[row].numpy()
        attention = softmax(x @ refiner.key.weight.detach().numpy() @ q.T / np.sqrt(3))[1:]
        expected = linear(refiner.out, attention @ linear(refiner.value, q[1:]) + x)
        np.testing.assert_allclose(found[row], expected, atol=1e-9)


def test_nothing_is_read_from_the_sink():
    """Query 0 draws attention, but what it holds beyond its key never arrives."""
    torch.manual_seed(0)
    refiner = StageRefiner(query_channels=4, voxel_channels=3)
    torch.nn.init.zeros_(refiner.key.weight)
    queries = torch.randn(1, 5, 4)
    other = queries.clone()
    other[:, 0] += 100
    voxels, layout = torch.randn(2, 3), Ragged.of(torch.zeros(2, dtype=torch.int64), 1)
    torch.testing.assert_close(refiner(voxels, layout, queries), refiner(voxels, layout, other))


def test_attention_of_large_features_stays_finite_in_float16():
    refiner = StageRefiner(query_channels=256, voxel_channels=256).half()
    torch.nn.init.eye_(refiner.key.weight)
    voxels, queries = torch.full((1, 3, 256), 20.0).half(), torch.full((1, 4, 256), 20.0).half()
    assert torch.equal(refiner.attention(voxels, queries), torch.full((1, 3, 4), 0.25).half())


def projected(queries, rank):
    """Onto the first right singular vectors, in float64."""
    _, _, vh = np.linalg.svd(queries, full_matrices=False)
    return queries @ vh[:rank].T @ vh[:rank]


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
def test_projection_is_that_of_numpys_svd_sample_by_sample(shape, scale):
    torch.manual_seed(0)
    queries = torch.randn(3, *shape)
    found = low_rank(queries * scale, 4) / scale
    for sample in range(3):
        np.testing.assert_allclose(found[sample], projected(queries[sample].double().numpy(), 4), atol=1e-4)
    assert all(np.linalg.matrix_rank(each.numpy(), tol=1e-3) == 4 for each in found)


@pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
def test_queries_with_fewer_directions_than_are_kept_stay_as_they_are(shape):
    torch.manual_seed(0)
    few = torch.randn(2, shape[0], 2) @ torch.randn(2, 2, shape[1])
    torch.testing.assert_close(low_rank(few, 5), few, rtol=1e-4, atol=1e-5)
    same = torch.randn(2, 1, shape[1]).expand(2, *shape)
    torch.testing.assert_close(low_rank(same, 5), same, rtol=1e-4, atol=1e-5)
    assert torch.equal(low_rank(torch.zeros(2, *shape), 5), torch.zeros(2, *shape))


@pytest.mark.parametrize("rank", [12, 50])
def test_full_rank_changes_nothing(rank):
    queries = torch.randn(2, 20, 12)
    assert torch.equal(low_rank(queries, rank), queries)


def test_gradient_passes_the_projection_and_not_the_projector():
    torch.manual_seed(0)
    queries = torch.randn(1, 20, 12, requires_grad=True)
    seed = torch.randn(1, 20, 12)
    (low_rank(queries, 4) * seed).sum().backward()
    _, _, vh = np.linalg.svd(queries[0].detach().double().numpy(), full_matrices=False)
    np.testing.assert_allclose(queries.grad[0], seed[0].double().numpy() @ vh[:4].T @ vh[:4], atol=1e-4)


@pytest.mark.parametrize("standardise", [False, True])
def test_loss_is_the_kl_both_ways_by_hand(standardise):
    a, b = np.random.default_rng(0).normal(3, 5, (2, 2, 5, 8))
    loss = decoupling_loss(torch.tensor(a), torch.tensor(b), standardise=standardise)
    if standardise:
        a, b = ((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) for x in (a, b))
    p, q = softmax(a), softmax(b)
    expected = (q * np.log(q / p)).sum(-1).mean() + (p * np.log(p / q)).sum(-1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_standardised_queries_are_compared_however_small_they_are():
    a, b = torch.randn(2, 2, 5, 8)
    large, small = (decoupling_loss(scale * a, scale * b, standardise=True).item() for scale in (1.0, 0.05))
    assert small > 0.8 * large


def test_each_side_learns_from_one_of_both_divergences():
    torch.manual_seed(0)
    a = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    loss = decoupling_loss(a, b, standardise=False)
    p, q = softmax(a.detach().numpy()), softmax(b.detach().numpy())
    loss.backward()
    # d KL(q || softmax(a)) / da = p - q, with q held, over the 10 queries
    np.testing.assert_allclose(a.grad, (p - q) / 10, atol=1e-12)
    np.testing.assert_allclose(b.grad, (q - p) / 10, atol=1e-12)


def test_equal_queries_cost_nothing():
    a = torch.randn(2, 5, 8)
    assert decoupling_loss(a, a.clone(), standardise=True).item() == pytest.approx(0, abs=1e-6)
