import numpy as np
import pytest
import torch
from xd3d.stages.train.decoupling import decoupling_loss, low_rank


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


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
