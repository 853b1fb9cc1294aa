"""BatchNorm on the statistics of the frames that are predicted: against training mode, over windows, and afterwards."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from xd3d.errors import MissingDataError, RunError
from xd3d.stages.predict.adapted_norms import adapted_norms
from xd3d.stages.predict.inference import predict_frames
from xd3d.stages.predict.whole_sweeps import sweep_prediction
from xd3d.stages.train.loader import evaluation_batch

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def trained(make_domain, make_network, make_batch):
    """A domain and a network whose BatchNorms know statistics of other clouds."""
    domain = make_domain(frames=3, cameras=2, points=150)
    other = make_domain(frames=2, cameras=2, points=400, seed=9)
    network = make_network(domain, camera_dropout=0.0, drop_path=0.0)
    network.model = network.model.model_copy(update={"voxel_size": 0.4})  # voxels that have neighbours
    network(make_batch(other, network))
    return domain, network.eval()


def read(network, domain, frames, norm_window=None):
    """The 3D probabilities of the frames, predicted in the given order."""
    chosen = dataclasses.replace(domain, frames=np.array(frames))
    found = predict_frames(network, chosen, norm_window=norm_window, workers=0)
    return {frame: each.probabilities_3d for frame, each in zip(frames, found, strict=True)}


def test_a_frame_alone_is_normalised_as_in_training_and_whatever_the_order(trained):
    domain, network = trained
    forwards, backwards = (read(network, domain, frames, 1) for frames in ([0, 1, 2], [2, 1, 0]))
    plain = read(network, domain, [0, 1, 2])
    batches = [evaluation_batch(domain, network.plan, frame) for frame in range(3)]
    network.train()
    for frame, batch in enumerate(batches):
        with torch.no_grad():
            expected = network(batch).logits_3d.softmax(1)
        np.testing.assert_allclose(forwards[frame], expected, atol=1e-4)
        np.testing.assert_array_equal(forwards[frame], backwards[frame])
        assert np.abs(forwards[frame] - plain[frame]).max() > 0.01


def test_a_window_takes_the_voxels_of_its_frames_together(trained):
    domain, network = trained
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm1d))
    calls = []
    hook = norm.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0].double(), output.double())))
    one = read(network, domain, [0, 1, 2], 2)
    hook.remove()
    weight, bias = norm.weight.detach().double(), norm.bias.detach().double()
    for place, (values, found) in enumerate(calls):
        window = torch.cat([earlier for earlier, _ in calls[max(0, place - 1) : place + 1]])
        expected = (values - window.mean(0)) / (window.var(0, correction=0) + norm.eps).sqrt() * weight + bias
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(one[1], read(network, domain, [1], 2)[1])
    np.testing.assert_array_equal(one[0], read(network, domain, [0], 1)[0])


@pytest.mark.parametrize("variant", ["full", "3d-only"])
def test_passes_over_whole_sweeps_do_not_mix_with_those_over_frames(trained, make_network, make_batch, variant):
    domain, network = trained
    domain.index.images.intrinsics[:, 0, 0] *= 4  # a narrow view: some points lie beside the images
    if variant == "3d-only":
        domain = dataclasses.replace(domain, features=None)
        network = make_network(domain, variant=variant)
        network(make_batch(domain, network))
    alone = read(network, domain, [0, 1, 2], 2)
    predictions = predict_frames(network, domain, norm_window=2, workers=0)
    for frame, prediction in enumerate(predictions):
        whole = sweep_prediction(network, domain, frame, domain.load(frame), prediction)
        np.testing.assert_array_equal(prediction.probabilities_3d, alone[frame])
        assert whole.scores["3d"].any(1).sum() > len(prediction.labels), "the others need a pass of their own"


def test_the_network_is_the_same_afterwards_even_after_an_error(trained):
    domain, network = trained
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plain = read(network, domain, [0])
    next(predict := predict_frames(network, domain, norm_window=2, workers=0))
    predict.close()
    (domain.index.root / "1.bin").unlink()
    with pytest.raises(MissingDataError):
        read(network, domain, [0, 1], 1)
    assert [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])] == []
    np.testing.assert_array_equal(read(network, domain, [0])[0], plain[0])


def test_a_single_voxel_is_normalised_as_without_adaptation(trained):
    domain, network = trained
    cloud = np.zeros((1, 5), np.float32)
    cloud[0, 1] = 8
    cloud.tofile(domain.index.root / "0.bin")
    np.array([24], np.uint8).tofile(domain.index.root / "0.label")
    np.testing.assert_array_equal(read(network, domain, [0], 1)[0], read(network, domain, [0])[0])


def test_a_network_without_batch_norm_is_refused():
    with pytest.raises(RunError, match="none"), adapted_norms(nn.Sequential(nn.Linear(2, 2))):
        pass
