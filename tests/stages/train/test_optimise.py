import pytest
import torch
from xd3d.errors import RunError
from xd3d.stages.train.norms import VoxelNorm
from xd3d.stages.train.optimise import Stepper, learning_rate
from xd3d.stages.train.settings import TrainSettings
from xd3d.stages.train.step_batch import StepBatch, step_losses

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = torch.ones(6)


def batches(make_batch, domain, network, count):
    return [
        (StepBatch(source=make_batch(domain, network, frames=1, step=step), target=None), 0.25) for step in range(count)
    ]


def test_the_rate_drops_to_a_tenth_after_each_milestone():
    settings = TrainSettings(milestones=(10, 20))
    rates = [learning_rate(settings, step) for step in (0, 9, 10, 19, 20, 30)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_a_step_over_three_batches_moves_by_the_mean_of_their_gradients(make_domain, make_network, make_batch):
    domain = make_domain(frames=3, points=60)
    network, twin = (make_network(domain, variant="image") for _ in range(2))
    parts = batches(make_batch, domain, network, 3)
    settings = TrainSettings(accumulate=3)
    did = Stepper(network, WEIGHTS, settings).step(0, parts)
    losses = [step_losses(twin, batch, WEIGHTS, settings) for batch, _ in parts]
    assert did.losses["ce_2d"] == pytest.approx(sum(each.terms["ce_2d"].item() for each in losses) / 3)
    assert (did.frames, did.points, did.waited) == (3, 180, 0.75)
    optimiser = torch.optim.Adam(twin.parameters(), lr=settings.lr)
    torch.autograd.backward(sum(each.total for each in losses) / 3)
    for (name, ours), theirs in zip(network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)
    optimiser.step()
    moved = network.head_2d.weight - twin.head_2d.weight
    assert moved.abs().max() < 0.1 * settings.lr


def test_a_step_of_float16_whose_gradients_overflow_is_left_out(make_domain, make_network, make_batch):
    domain = make_domain(frames=1, points=30, lidar_only=True)
    network = make_network(domain, variant="3d-only")
    parts = batches(make_batch, domain, network, 1)
    stepper = Stepper(network, WEIGHTS, TrainSettings(precision="float16"))
    stepper.scaler.load_state_dict({**stepper.scaler.state_dict(), "scale": 2.0**120})
    before = network.head_3d.bias.clone()
    stepper.step(0, parts)
    assert torch.equal(network.head_3d.bias, before)
    assert stepper.scaler.get_scale() == 2.0**119
    stepper.scaler.load_state_dict({**stepper.scaler.state_dict(), "scale": 8.0})
    stepper.step(1, parts)
    assert not torch.equal(network.head_3d.bias, before)


def test_gradients_that_no_scale_makes_finite_end_the_run(make_domain, make_network, make_batch):
    domain = make_domain(frames=1, points=30, lidar_only=True)
    network = make_network(domain, variant="3d-only")
    network.head_3d.bias.register_hook(lambda gradient: gradient * float("nan"))
    parts = batches(make_batch, domain, network, 1)
    stepper = Stepper(network, WEIGHTS, TrainSettings(precision="float16"))
    for step in range(30):
        stepper.step(step, parts)
    with pytest.raises(RunError, match=r"step 31 the.*train\.precision=float32"):
        stepper.step(30, parts)


def test_a_step_of_float16_whose_loss_is_not_finite_is_left_out_a_few_times_and_leaves_no_trace(
    make_domain, make_network, make_batch
):
    domain = make_domain(frames=1, points=30, lidar_only=True)
    network = make_network(domain, variant="3d-only")
    parts = batches(make_batch, domain, network, 1)
    stepper = Stepper(network, WEIGHTS, TrainSettings(precision="float16"))
    stepper.step(0, parts)
    before = {name: values.clone() for name, values in network.state_dict().items()}
    stage = next(each for each in network.unet.modules() if isinstance(each, VoxelNorm))
    overflow = stage.register_forward_pre_hook(lambda _, inputs: (inputs[0] * float("inf"),))
    for step in range(1, 11):
        assert not stepper.step(step, parts).losses
    for name, values in network.state_dict().items():
        assert torch.equal(values, before[name]), name
    with pytest.raises(RunError, match=r"step 12.*train\.precision=float32"):
        stepper.step(11, parts)
    overflow.remove()
    assert stepper.step(12, parts).losses["loss"] > 0
    assert not torch.equal(network.head_3d.bias, before["head_3d.bias"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_float16_scales_its_loss(make_domain, make_network, precision):
    network = make_network(make_domain(frames=1, points=30))
    stepper = Stepper(network, WEIGHTS, TrainSettings(precision=precision))
    assert not stepper.scaler.is_enabled()
    assert network.precision == getattr(torch, precision)
