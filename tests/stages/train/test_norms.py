import torch
from torch import nn
from xd3d.stages.train.norms import norm_momentum, set_norm_momentum


def test_running_statistics_are_the_datas_after_a_few_steps():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3, momentum=0.01)
    for step in range(20):
        set_norm_momentum(nn.Sequential(norm), norm_momentum(step))
        norm(5 + 0.01 * torch.randn(500, 3))
    torch.testing.assert_close(norm.running_mean, torch.full((3,), 5.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(norm.running_var, torch.full((3,), 1e-4), rtol=0.1, atol=0)


def test_momentum_falls_to_the_published_one_and_stays():
    momenta = [norm_momentum(step) for step in range(2000)]
    assert momenta[0] == 1
    assert momenta == sorted(momenta, reverse=True)
    assert momenta[990:] == [0.01] * 1010
