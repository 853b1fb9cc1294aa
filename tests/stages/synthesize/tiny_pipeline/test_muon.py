import torch
from xd3d.stages.synthesize.tiny_pipeline.muon import Muon, orthogonalise


def test_orthogonalise_keeps_the_singular_vectors_and_brings_the_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((12, 40), (40, 12), (16, 16)):
        matrix = torch.randn(shape, generator=generator)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        in_own_basis = left.T @ orthogonalise(matrix) @ right.T
        assert torch.allclose(in_own_basis, torch.diag(in_own_basis.diag()), atol=1e-4)
        assert in_own_basis.diag()[values > 0.1 * values[0]].min() > 0.5
        assert in_own_basis.diag().max() < 1.3


def test_steps_fit_a_linear_map_and_leave_weights_without_gradient_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(4, 6, generator=generator)
    inputs = torch.randn(64, 6, generator=generator)
    weight, idle = torch.nn.Parameter(torch.zeros(4, 6)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight, idle], lr=0.05)
    losses = []
    for _ in range(120):
        loss = (inputs @ (weight - truth).T).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0]
    assert torch.equal(idle, torch.ones(2, 2))
