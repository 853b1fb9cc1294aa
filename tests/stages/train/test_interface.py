import numpy as np
import torch
from xd3d.stages.train.interface import QueryInterface, StageRefiner
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
