import pytest
import torch
from xd3d.stages.train.ragged import Ragged

SAMPLE = torch.tensor([2, 0, 2, 0, 0, 2, 2])  # unsorted, and sample 1 has no row


def test_padding_keeps_every_row_with_its_sample_and_in_order():
    rows = torch.arange(14.0).view(7, 2)
    layout = Ragged.of(SAMPLE, 3)
    padded = layout.pad(rows)
    assert padded.shape == (3, 4, 2)
    for sample in range(3):
        own = rows[sample == SAMPLE]
        torch.testing.assert_close(padded[sample, : len(own)], own)
        assert not padded[sample, len(own) :].any()
        assert layout.mask[sample].sum() == max(len(own), 1)
    torch.testing.assert_close(layout.unpad(padded), rows)


@pytest.mark.parametrize("samples", [1, 4])
def test_rows_come_back_with_their_gradient(samples):
    rows = torch.randn(9, 3, requires_grad=True)
    layout = Ragged.of(torch.arange(9) % samples, samples)
    (layout.unpad(layout.pad(rows)) * torch.arange(9.0)[:, None]).sum().backward()
    torch.testing.assert_close(rows.grad, torch.arange(9.0)[:, None].expand(9, 3))
