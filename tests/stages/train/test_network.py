import dataclasses
import math

import numpy as np
import pytest
import torch
from xd3d.errors import ConfigError, RunError
from xd3d.stages.train.losses import source_losses
from xd3d.stages.train.network import choose_taps
from xd3d.stages.train.norms import frozen_statistics
from xd3d.stages.train.settings import FusionSettings, TrainSettings
from xd3d.stages.train.sparse import DownConv3d, InverseConv3d, SubMConv3d

pytestmark = pytest.mark.usefixtures("one_thread")

#: The paper's form: nothing but the queries joins image and cloud.
PAPER = {"inject": "none", "context": "none", "decoupling": "loss"}
VARIANTS = [
    {"variant": "3d-only"},
    {"variant": "image"},
    {"queries": "voxels", "inject": "none", "context": "none"},
    {"queries": "agents", "head": "refine", **PAPER},
    {"queries": "agents", "head": "distil", **PAPER},
    {"queries": "agents", "keys": "features", **PAPER},
    {},
    {"queries": "agents", "locate_queries": True, "lidar_stages": 0},
    {"depth": "sparse", "depth_dropout": 0.0},
    {"taps": ("up2",)},
    {"taps": ("rgb", "up1")},
    {"normalise": False},
    {"rank": 1000},
]


def total(network, batch):
    return source_losses(network(batch), batch.labels, torch.ones(6), TrainSettings()).total


@pytest.mark.parametrize("values", VARIANTS, ids=str)
def test_every_ablation_is_one_setting_and_trains_all_that_it_has(make_domain, make_network, make_batch, values, awake):
    domain = make_domain(frames=2)
    network = awake(make_network(domain, **values, drop_path=0.0, camera_dropout=0.0))
    total(network, make_batch(domain, network)).backward()
    dead = [
        name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    # a key's bias shifts all logits of a softmax alike, which cannot change it
    assert [name for name in dead if not name.endswith("key.bias")] == []


def test_the_default_network_has_no_dead_parameter(make_domain, make_network, make_batch, awake):
    domain = make_domain(frames=2, cameras=2)
    network = awake(make_network(domain))
    for step in range(3):  # camera dropout leaves a sample out now and then, not six times
        total(network, make_batch(domain, network, step=step)).backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_outputs_have_a_row_a_point(make_domain, make_network, make_batch):
    domain = make_domain(frames=2)
    network = make_network(domain, queries="agents", head="distil", decoupling="loss")
    batch = make_batch(domain, network)
    output = network(batch)
    points = len(batch.labels)
    assert points == sum(len(domain.load(position).points) for position in range(2))
    heads = (output.logits_3d, output.auxiliary_3d, output.logits_2d, output.auxiliary_2d, output.logits_lidar)
    for logits in (*heads, output.teacher):
        assert logits.shape == (points, 6)
    assert output.image_weight.shape == (points,)
    assert [tuple(own.shape) for own, _ in output.refined] == [tuple(met.shape) for _, met in output.refined]
    assert len(output.refined) == 4
    assert [part.shape for part in output.queries] == [(2, 6, 16), (2, 6, 16)]


@pytest.mark.parametrize("values", VARIANTS, ids=str)
def test_forward_writes_to_no_parameter_no_buffer_outside_batch_norm_and_not_to_its_batch(
    make_domain, make_network, make_batch, values
):
    domain = make_domain(frames=2, points=150)
    network = make_network(domain, **values)
    batch = make_batch(domain, network)
    given = [value.clone() for value in tensors_of(batch)]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(batch)
    changed = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
    assert changed, "BatchNorm should have counted the batch"
    assert all(name.rsplit(".", 1)[1] in {"running_mean", "running_var", "num_batches_tracked"} for name in changed)
    network.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(batch)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(map(torch.equal, given, tensors_of(batch)))


def tensors_of(batch):
    images = [] if batch.images is None else [batch.images.geometry, *batch.images.maps.values()]
    agents = [] if batch.images is None else [*batch.images.agents.values(), batch.images.projection_uv]
    return [batch.voxels.features, batch.voxels.indices, batch.point_to_voxel, batch.labels, *images, *agents]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("values", VARIANTS[:9], ids=str)
def test_no_sample_sees_another(make_domain, make_network, make_batch, values, training, awake):
    """Another cloud with other images takes the place of one; in training only BatchNorm may notice, so it is held."""
    domain = make_domain(frames=4, cameras=2, points=150)
    network = awake(make_network(domain, drop_path=0.0, camera_dropout=0.0, **values)).train(training)
    batches = [
        make_batch(dataclasses.replace(domain, frames=np.array(frames)), network, frames=3)
        for frames in ([0, 1, 2], [0, 3, 2])
    ]
    place = next(place for place, pair in enumerate(zip(*(b.keys for b in batches), strict=True)) if len(set(pair)) > 1)
    with frozen_statistics(network):
        outputs = [network(batch) for batch in batches]
    for name in ("logits_3d", "auxiliary_3d", "logits_2d", "auxiliary_2d", "logits_lidar", "teacher"):
        one, other = (getattr(output, name) for output in outputs)
        if one is None:
            continue
        kept = [values[batch.sample != place] for values, batch in zip((one, other), batches, strict=True)]
        torch.testing.assert_close(*kept, rtol=1e-4, atol=1e-5, msg=name)
        changed = [values[batch.sample == place] for values, batch in zip((one, other), batches, strict=True)]
        assert changed[0].shape != changed[1].shape or not torch.allclose(*changed), name
    if outputs[0].queries is not None:
        others = [number for number in range(3) if number != place]
        for one, other in zip(outputs[0].queries, outputs[1].queries, strict=True):
            torch.testing.assert_close(one[others], other[others], rtol=1e-4, atol=1e-5)
            assert not torch.allclose(one[place], other[place])


@pytest.mark.parametrize("values", VARIANTS[:9], ids=str)
def test_in_evaluation_a_frame_scores_the_same_alone_in_a_batch_and_in_any_order(
    make_domain, make_network, make_batch, values
):
    domain = make_domain(frames=3, cameras=2, points=150)
    network = make_network(domain, **values).eval()

    def logits(*frames):
        batch = make_batch(dataclasses.replace(domain, frames=np.array(frames)), network, frames=len(frames))
        output = network(batch)
        parts = {"2d": output.logits_2d, "3d": output.logits_3d}
        return {
            (key, head): values[batch.sample == place]
            for place, key in enumerate(batch.keys)
            for head, values in parts.items()
            if values is not None
        }

    together = logits(0, 1, 2)
    for others in (logits(1), logits(2, 0, 1)):
        for name, found in others.items():
            torch.testing.assert_close(found, together[name], rtol=1e-4, atol=1e-5, msg=str(name))


def test_distil_predicts_without_a_camera_exactly_what_it_predicts_with_one(make_domain, make_network, make_batch):
    domain = make_domain(frames=2)
    network = make_network(domain, queries="agents", head="distil", **PAPER).eval()
    batch = make_batch(domain, network)
    blind = type(batch)(**{**vars(batch), "images": None})
    output = network(blind)
    assert torch.equal(output.logits_3d, network(batch).logits_3d)
    assert output.logits_2d is None


def test_refine_without_a_camera_is_refused_with_the_remedy(make_domain, make_network, make_batch):
    domain = make_domain(frames=2)
    network = make_network(domain, queries="agents", head="refine")
    batch = make_batch(domain, network)
    with pytest.raises(RunError, match="distil"):
        network(type(batch)(**{**vars(batch), "images": None}))


def test_the_image_reaches_the_3d_prediction_through_the_interface_alone(make_domain, make_network, make_batch):
    domain = make_domain(frames=2)
    for values, reaches in (
        ({"queries": "agents", "head": "refine"}, True),
        ({"queries": "agents", "head": "distil"}, False),
        ({"queries": "voxels"}, False),
    ):
        network = make_network(domain, **values, **PAPER).eval()
        batch = make_batch(domain, network)
        before = network(batch).logits_3d
        for agents in batch.images.agents.values():
            agents.copy_(agents.flip(2))
        assert torch.equal(before, network(batch).logits_3d) != reaches, values


def test_points_of_one_voxel_share_their_3d_prediction(make_domain, make_network, make_batch):
    domain = make_domain(frames=1)
    network = make_network(domain, variant="3d-only").eval()
    batch = make_batch(domain, network, frames=1)
    logits = network(batch).logits_3d
    first = {}
    for row, voxel in enumerate(batch.point_to_voxel.tolist()):
        assert torch.equal(logits[row], logits[first.setdefault(voxel, row)])


def test_an_all_ignored_batch_trains_without_nan(make_domain, make_network, make_batch):
    domain = make_domain(frames=2)
    network = make_network(domain)
    batch = make_batch(domain, network)
    batch.labels.fill_(-100)
    loss = total(network, batch)
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_unknown_and_useless_taps_are_named(tiny_domains):
    with pytest.raises(ConfigError, match=r"up9.*up2"):
        choose_taps(FusionSettings(taps=("up9",)), tiny_domains.SPECS)
    with pytest.raises(ConfigError, match=r"fusion\.variant=image"):
        choose_taps(FusionSettings(taps=("rgb",)), tiny_domains.SPECS)
    assert list(choose_taps(FusionSettings(taps=("rgb",), variant="image"), tiny_domains.SPECS)) == ["rgb"]
    assert choose_taps(FusionSettings(variant="3d-only"), tiny_domains.SPECS) == {}


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "values", [{"head": "distil"}, {"head": "distil", "locate_queries": True}, {"keys": "features"}], ids=str
)
def test_low_precision_is_for_products_in_training_alone(
    make_domain, make_network, make_batch, precision, values, awake
):
    domain = make_domain(points=200)
    queries = {"queries": "agents", "decoupling": "loss", "camera_dropout": 0.0}
    network = awake(make_network(domain, drop_path=0.0, **queries, **values))
    network.model = network.model.model_copy(update={"voxel_size": 0.5})  # neighbours: nothing but noise without
    batch, seen = make_batch(domain, network), set()
    for module in network.modules():
        if isinstance(module, SubMConv3d | DownConv3d | InverseConv3d):
            module.register_forward_hook(lambda _, __, output: seen.add(output.features.dtype))
    exact = network(batch)
    network.precision = precision
    seen.clear()
    low = network(batch)
    assert seen == {torch.float16 if precision == torch.float16 else torch.float32}
    assert {low.logits_3d.dtype, low.auxiliary_2d.dtype, low.queries[0].dtype, low.refined[0][0].dtype} == {
        torch.float32
    }
    assert 1e-6 < (low.logits_3d - exact.logits_3d).abs().max() < 0.1
    source_losses(low, batch.labels, torch.ones(6), TrainSettings()).total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())
    seen.clear()
    network.eval()(batch)
    assert seen == {torch.float32}
