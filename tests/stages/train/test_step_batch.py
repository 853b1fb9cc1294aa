"""Training on source and target together, and on the target alone: what each gives, and what is never taken."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from xd3d.errors import ConfigError, DataError, RunError
from xd3d.stages.adapt.pseudo_labels import candidates, make_pseudo_labels
from xd3d.stages.evaluate.scores import FramePrediction
from xd3d.stages.predict.inference import predict_batch
from xd3d.stages.train.label_choice import UNSURE, LabelRule, thresholds
from xd3d.stages.train.loader import training_batch
from xd3d.stages.train.located_agents import strongest_agents
from xd3d.stages.train.log import read_log
from xd3d.stages.train.loop import train
from xd3d.stages.train.losses import target_losses
from xd3d.stages.train.record import describe_domain
from xd3d.stages.train.settings import AugmentSettings, FusionSettings, ModelSettings, TrainSettings
from xd3d.stages.train.step_batch import StepBatch, StepMaker, step_losses
from xd3d.stages.train.teacher import Teacher

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = ModelSettings(preset="slim", backend="torch")


def label(network, batch):
    return candidates(predict_batch(network, batch, fusion="product-prior"), LabelRule(), what="of a batch")


@pytest.fixture
def adapt(small_fusion, train_settings):
    """Train two steps on a source and a target; keyword arguments replace settings or, as ``fusion``, the variant."""

    def run(folder, source, target, *, init=None, fusion=None, **values):
        values = {"steps": 2, "lam_trg": 0.5, "source_free": source is None, **values}
        settings = train_settings(**values, init=str(init) if init else None)
        train(
            run=folder,
            source=source,
            target=target,
            validation=None,
            init=init,
            model=MODEL,
            fusion=fusion or small_fusion(),
            augment=AugmentSettings(),
            settings=settings,
            label=label,
        )
        return load_file(folder / f"checkpoints/step-{settings.steps:08d}/model.safetensors")

    return run


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_labels_of_the_target_are_never_read(make_domain, adapt, tmp_path):
    source, target = make_domain(frames=3, points=80), make_domain(frames=3, points=80, seed=9)
    clean = adapt(tmp_path / "clean", source, target)
    for frame in range(3):
        np.full(80, 200, np.uint8).tofile(target.index.root / f"{frame}.label")
    with pytest.raises(DataError, match="Label 200"):
        target.load(0)
    assert equal(clean, adapt(tmp_path / "poisoned", source, target))
    for frame in range(3):
        (target.index.root / f"{frame}.label").unlink()
    assert equal(clean, adapt(tmp_path / "gone", source, target))
    alone = adapt(tmp_path / "alone", source, None, lam_trg=0.0)
    assert not equal(clean, alone), "the target should have taught something"


TARGET = {"xm_2d_target", "xm_3d_target"}


def test_the_log_names_the_losses_of_both_sides(make_domain, adapt, tmp_path):
    domains = make_domain(frames=2, points=80), make_domain(frames=2, points=80, seed=9)
    adapt(tmp_path / "run", *domains)
    record = read_log(tmp_path / "run")[0]
    assert {"ce_2d", "ce_3d", "ce_lidar", "xm_2d", "xm_3d"} <= record.keys()
    assert {name for name in record if name.endswith("_target")} == TARGET


def test_one_step_adds_the_losses_of_both_sides_and_gives_their_gradients(
    make_domain, make_network, train_settings, tiny_domains
):
    source, target = make_domain(frames=2, points=80), make_domain(frames=2, points=80, seed=9)
    network = make_network(source, drop_path=0.0, camera_dropout=0.0)
    settings = train_settings(lam_trg=0.25)
    make = StepMaker(
        source=source,
        target=target.unlabelled(),
        plan=network.plan,
        augment=AugmentSettings(),
        settings=settings,
        device=network.device,
    )
    batch = make(0, 0)
    assert (batch.target.labels == -100).all()
    assert batch.keys == batch.source.keys + batch.target.keys
    both = step_losses(network, batch, torch.ones(6), settings)
    alone = step_losses(network, type(batch)(source=batch.source, target=None), torch.ones(6), settings)
    added = 0.25 * sum(both.terms[name] for name in TARGET)
    assert both.total.item() == pytest.approx(alone.total.item() + added.item(), rel=1e-5)
    torch.autograd.backward(added)
    for name in ("auxiliary_2d", "auxiliary_3d"):
        assert getattr(network, name).weight.grad.any(), name
    for head in (network.head_2d, network.head_3d, network.lidar_branch.head):
        assert head.weight.grad is None, "a teacher is not taught"


def test_source_and_target_are_drawn_independently(make_domain, make_network, train_settings):
    domain = make_domain(frames=6, points=80)
    plan = make_network(domain).plan
    settings = train_settings(lam_trg=1.0, batch_size=3)
    make = StepMaker(
        source=domain,
        target=domain,
        plan=plan,
        augment=AugmentSettings(),
        settings=settings,
        device=torch.device("cpu"),
    )
    steps = [make(step, 0) for step in range(4)]
    assert [step.source.keys for step in steps] != [step.target.keys for step in steps]
    for half in (steps[:2], steps[2:]):
        assert len({key for step in half for key in step.target.keys}) == 6, "an epoch sees each frame of the target"
    again = make(1, 0)
    assert again.target.keys == steps[1].target.keys
    assert torch.equal(again.target.voxels.indices, steps[1].target.voxels.indices)


@pytest.mark.parametrize(
    ("values", "error", "named"),
    [
        ({"lam_trg": 0.0}, ConfigError, r"train\.lam_trg"),
        ({"fusion": FusionSettings(variant="3d-only")}, ConfigError, r"fusion\.variant=3d-only"),
    ],
    ids=str,
)
def test_a_target_that_teaches_nothing_is_refused(make_domain, adapt, tmp_path, values, error, named):
    domain = make_domain(frames=2, points=80)
    with pytest.raises(error, match=named):
        adapt(tmp_path / "run", domain, domain, **values)


def test_a_target_that_does_not_fit_the_source_is_refused(make_domain, adapt, small_fusion, tmp_path, tiny_domains):
    source = make_domain(frames=2, points=80)
    with pytest.raises(ConfigError, match=r"train\.lam_trg or"):
        adapt(tmp_path / "run", source, None)
    more = make_domain(frames=2, points=80, cameras=2)
    with pytest.raises(RunError, match=r"1 camera.*target 2"):
        adapt(tmp_path / "run", source, more, fusion=small_fusion(queries="agents"))
    adapt(tmp_path / "any cameras", source, more)  # only the paper's queries tell cameras apart
    with pytest.raises(RunError, match="no features"):
        adapt(tmp_path / "run", source, tiny_domains.open_domain(source.index.root, frames=2, lidar_only=True))
    with pytest.raises(ConfigError, match="has 1"):
        adapt(tmp_path / "run", source, make_domain(frames=1, points=80))


@pytest.fixture
def trained(make_domain, adapt, tmp_path):
    """A run on a source that is gone since."""
    source = make_domain(frames=3, points=80)
    adapt(tmp_path / "trained", source, None, lam_trg=0.0)
    shutil.rmtree(source.index.root)
    return tmp_path / "trained"


def norms(tensors):
    return {name: value for name, value in tensors.items() if name.rpartition(".")[2].startswith("running")}


def test_a_trained_network_adapts_to_the_target_alone(make_domain, adapt, trained, tmp_path):
    target = make_domain(frames=3, points=80, seed=9)
    for frame in range(3):
        (target.index.root / f"{frame}.label").unlink()
    before = load_file(trained / "checkpoints/step-00000002/model.safetensors")
    # a rate too small to move a weight shows where the run begins
    still = adapt(tmp_path / "still", None, target, init=trained, lr=1e-30)
    for name in before.keys() - norms(before).keys():
        if "num_" not in name:
            torch.testing.assert_close(still[name], before[name], rtol=0, atol=1e-20, msg=name)
    assert not equal(norms(still), norms(before)), "the statistics should follow the target"
    adapted = adapt(tmp_path / "adapted", None, target, init=trained, target_norms="source")
    assert equal(norms(adapted), norms(before))
    assert not torch.equal(adapted["auxiliary_3d.weight"], before["auxiliary_3d.weight"])
    log = read_log(tmp_path / "adapted")[0]
    assert {name for name in log if name.startswith(("xm", "ce", "fused"))} == TARGET
    statistics = [name for name in before if name.startswith("image_statistics.")]
    assert statistics
    assert all(torch.equal(adapted[name], before[name]) for name in statistics), "they are the source's"
    records = [json.loads((run / "run.json").read_text()) for run in (trained, tmp_path / "adapted")]
    assert records[1]["source"] is None
    assert records[1]["class_counts"] == records[0]["class_counts"]
    assert records[1]["init"]["run"] == "trained"


def test_running_statistics_are_the_sources_alone_where_the_target_is_normalised_with_them(
    make_domain, adapt, tmp_path
):
    source, *targets = (make_domain(frames=3, points=80, seed=seed) for seed in (1, 8, 9))
    found = {
        choice: [
            adapt(tmp_path / f"{choice}{place}", source, target, target_norms=choice, lr=1e-30)
            for place, target in enumerate(targets)
        ]
        for choice in ("own", "source")
    }
    assert equal(*map(norms, found["source"]))
    assert not equal(*map(norms, found["own"]))


def test_source_free_training_resumes_where_it_stopped(make_domain, adapt, trained, tmp_path):
    target = make_domain(frames=3, points=80, seed=9)
    options = {"init": trained, "steps": 4, "checkpoint_every": 2}
    unbroken = adapt(tmp_path / "unbroken", None, target, **options)
    read, calls = target.features.read, []

    def tired(rows):
        calls.append(rows)
        if len(calls) > 3:
            raise OSError("the disk went away")
        return read(rows)

    target.features.read = tired
    with pytest.raises(OSError, match="went away"):
        adapt(tmp_path / "stopped", None, target, **options)
    target.features.read = read
    assert equal(unbroken, adapt(tmp_path / "stopped", None, target, **options, workers=2))


def test_weights_of_another_network_are_refused_by_name(make_domain, adapt, trained, small_fusion, tmp_path):
    target = make_domain(frames=2, points=80)
    with pytest.raises(RunError, match=r"(?s)trained.*fusion\.query_channels: expected 16, found 24"):
        adapt(tmp_path / "run", None, target, init=trained, fusion=small_fusion(query_channels=24, rank=2))
    with pytest.raises(RunError, match="is not a run"):
        adapt(tmp_path / "run", None, target, init=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"train\.init=RUN"):
        adapt(tmp_path / "run", None, target)


def test_a_run_begun_from_other_weights_is_not_gone_on_with(make_domain, adapt, trained, tmp_path):
    target = make_domain(frames=2, points=80)
    adapt(tmp_path / "run", None, target, init=trained)
    other = adapt(tmp_path / "other", None, target, init=trained)
    assert other
    with pytest.raises(RunError, match=r"init\.checkpoint.*(?s:.*)init\.run"):
        adapt(tmp_path / "run", None, target, init=tmp_path / "other")


@pytest.fixture
def with_pseudo_labels(tmp_path):
    """The domain with pseudo labels that say class 1 to the 2D head and class 2 to the 3D head, surely."""

    def add(domain, *, heads=2, name="pl"):
        def predict(first):
            for position in range(first, len(domain)):
                points = len(domain.load(position).points)
                yield FramePrediction(
                    labels=np.full(points, -100),
                    probabilities_2d=np.eye(6)[np.full(points, 1)] if heads == 2 else None,
                    probabilities_3d=np.eye(6)[np.full(points, 2)],
                )

        made = make_pseudo_labels(
            tmp_path / name,
            identity={"run": "one", "target": describe_domain(domain)},
            frames=len(domain),
            classes=domain.merge.classes,
            predict=predict,
        )
        return dataclasses.replace(domain, pseudo=made)

    return add


def test_each_head_learns_its_own_pseudo_labels(make_domain, make_network, train_settings, with_pseudo_labels):
    domain = make_domain(frames=2, points=80)
    network = make_network(domain, drop_path=0.0)
    settings = train_settings(lam_pl=0.5)
    make = StepMaker(
        source=None,
        target=with_pseudo_labels(domain).unlabelled(),
        plan=network.plan,
        augment=AugmentSettings(),
        settings=settings,
        device=network.device,
    )
    batch = make(0, 0).target
    assert batch.pseudo_labels.shape == (len(batch.labels), 2)
    assert (batch.pseudo_labels == torch.tensor([1, 2])).all()
    batch.pseudo_labels[: len(batch.labels) // 2, 0] = -100
    output = network(batch)
    losses = target_losses(output, batch.pseudo_labels, settings)
    heads = ((0, "pl_2d", output.logits_2d), (1, "pl_3d", output.logits_3d), (1, "pl_lidar", output.logits_lidar))
    for column, name, logits in heads:
        kept = batch.pseudo_labels[:, column] != -100
        by_hand = -logits.double().log_softmax(1)[kept, column + 1].mean()
        assert losses.terms[name].item() == pytest.approx(by_hand.item(), rel=1e-5), (
            "the mean over points that are kept"
        )
    assert losses.total.item() == pytest.approx(0.5 * sum(losses.terms[name] for _, name, _ in heads).item(), rel=1e-5)
    losses.total.backward()
    assert all(head.weight.grad.any() for head in (network.head_2d, network.head_3d, network.lidar_branch.head))


def test_pseudo_labels_follow_their_points_through_augmentation(make_domain, make_network, tmp_path):
    """Labels of the true classes, given as pseudo labels, must stay with their points when some are dropped."""
    domain = make_domain(frames=2, points=300)
    made = make_pseudo_labels(
        tmp_path / "true",
        identity={"target": describe_domain(domain)},
        frames=2,
        classes=domain.merge.classes,
        predict=lambda first: (
            FramePrediction(labels=truth, probabilities_2d=None, probabilities_3d=np.eye(6)[truth.clip(0)])
            for truth in (domain.load(position).labels for position in range(first, 2))
        ),
    )
    plan = make_network(domain).plan
    small = dataclasses.replace(plan, model=plan.model.model_copy(update={"full_scale": 100}))
    batch = training_batch(
        dataclasses.replace(domain, pseudo=made), small, AugmentSettings(), batch_size=2, seed=1, step=0
    )
    assert len(batch.labels) < 2 * 300 * 0.9, "the cube should be too small for all points"
    assert torch.equal(batch.pseudo_labels[:, 1], batch.labels.clamp(min=0))


def test_training_with_pseudo_labels_is_recorded_and_others_are_refused(
    make_domain, adapt, with_pseudo_labels, trained, small_fusion, tmp_path
):
    target = make_domain(frames=2, points=80)
    labelled = with_pseudo_labels(target)
    options = {"init": trained, "lam_trg": 0.0, "lam_pl": 1.0}
    adapt(tmp_path / "run", None, labelled, **options)
    assert json.loads((tmp_path / "run/run.json").read_text())["pseudo_labels"]["run"] == "one"
    assert {"pl_2d", "pl_3d"} <= read_log(tmp_path / "run")[0].keys()
    other = with_pseudo_labels(target, name="other", heads=1)
    with pytest.raises(RunError, match="found no 2d"):
        adapt(tmp_path / "run", None, other, **options)
    with pytest.raises(RunError, match=r"(?s)target\.frames: expected 3, found 2.*target\.index"):
        adapt(tmp_path / "run", None, dataclasses.replace(make_domain(frames=3), pseudo=labelled.pseudo), **options)
    with pytest.raises(ConfigError, match=r"lam_pl.*none"):
        adapt(tmp_path / "run", None, target, **options)
    with pytest.raises(RunError, match=r"(?s)rule: expected \[\"agree\"\].*xd3d pseudo-label --agree"):
        adapt(tmp_path / "run", None, labelled, **options, pl_agree=True)
    with pytest.raises(ConfigError, match=r"lam_pl.*some"):
        adapt(tmp_path / "run", None, labelled, **{**options, "lam_pl": 0.0, "lam_trg": 0.1})


def test_statistics_of_images_are_those_of_the_source_alone(make_domain, make_network, make_batch):
    domain, other = make_domain(frames=2), make_domain(frames=2, seed=5)
    network = make_network(domain)
    sides = StepBatch(source=make_batch(domain, network), target=make_batch(other, network))
    step_losses(network, sides, torch.ones(6), TrainSettings(lam_trg=1.0))
    assert network.image_statistics.count == len(sides.source.images.sample)
    step_losses(network, StepBatch(source=None, target=sides.target), torch.ones(6), TrainSettings(lam_trg=1.0))
    assert network.image_statistics.count == len(sides.source.images.sample)


def test_a_teacher_is_the_average_of_the_weights_and_has_the_statistics_of_the_network(make_domain, make_network):
    network = make_network(make_domain(frames=2))
    teacher = Teacher(network, label, 0.9)
    expected = {name: values.clone() for name, values in network.named_parameters()}
    for step in range(3):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(step + 1.0)
            for buffer in network.buffers():
                buffer.add_(1)
        teacher.update(network)
        expected = {name: 0.9 * expected[name] + 0.1 * values for name, values in network.named_parameters()}
    torch.testing.assert_close(dict(teacher.network.named_parameters()), expected)
    assert equal(dict(teacher.network.named_buffers()), dict(network.named_buffers()))
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_labels_a_batch_by_the_rule_of_stored_labels(make_domain, make_network, make_batch, awake):
    domain = make_domain(frames=4, points=120)
    network = awake(make_network(domain))
    batches = [make_batch(domain, network, step=step) for step in range(2)]
    teacher = Teacher(network, label, 0.5)
    network.eval()
    made = [label(network, batch) for batch in batches]
    counts = np.zeros_like(made[0].histogram(6), float)
    for batch, found in zip(batches, made, strict=True):
        counts = 0.5 * counts + found.histogram(6)
        expected = found.confident(thresholds(counts)).astype(np.int64)
        labels = teacher.label(batch).numpy()
        np.testing.assert_array_equal(labels, np.where(expected == UNSURE, -100, expected))
        assert 0.2 < (labels >= 0).mean() < 1


def test_training_with_a_teacher_resumes_where_it_stopped_and_learns_from_it(make_domain, adapt, trained, tmp_path):
    target = make_domain(frames=3, points=80, seed=9)
    options = {"init": trained, "steps": 4, "checkpoint_every": 2, "lam_trg": 0.0, "lam_pl": 1.0, "teacher": "ema"}
    unbroken = adapt(tmp_path / "unbroken", None, target, **options, pl_weigh=True, pl_agree=True)
    assert {"pl_2d", "pl_3d", "pl_lidar"} <= read_log(tmp_path / "unbroken")[0].keys()
    read, calls = target.features.read, []

    def tired(rows):
        calls.append(rows)
        if len(calls) > 3:
            raise OSError("the disk went away")
        return read(rows)

    target.features.read = tired
    with pytest.raises(OSError, match="went away"):
        adapt(tmp_path / "stopped", None, target, **options, pl_weigh=True, pl_agree=True)
    target.features.read = read
    assert equal(unbroken, adapt(tmp_path / "stopped", None, target, **options, pl_weigh=True, pl_agree=True))
    teachers = [
        load_file(tmp_path / run / "checkpoints/step-00000004/teacher.safetensors") for run in ("unbroken", "stopped")
    ]
    assert equal(*teachers)
    assert not torch.equal(teachers[0]["network.head_3d.weight"], unbroken["head_3d.weight"])
    assert teachers[0]["confidences"].sum() > 0


def test_a_teacher_needs_a_trained_network_and_a_weight(make_domain, adapt, trained, small_fusion, tmp_path):
    source, target = make_domain(frames=2, points=80), make_domain(frames=2, points=80)
    with pytest.raises(ConfigError, match=r"train\.init=RUN"):
        adapt(tmp_path / "run", source, target, lam_pl=1.0, teacher="ema")
    with pytest.raises(ValueError, match="lam_pl"):
        adapt(tmp_path / "run", source, target, teacher="ema")
    blind = small_fusion(context="none")
    with pytest.raises(ConfigError, match=r"fusion\.context=agents"):
        adapt(tmp_path / "run", None, target, init=trained, fusion=blind, lam_pl=1.0, teacher="ema", pl_vote=True)
    options = {"init": trained, "lam_trg": 0.0, "lam_pl": 1.0, "fusion": FusionSettings(variant="3d-only")}
    options["teacher"] = "ema"
    with pytest.raises(ConfigError, match=r"fusion\.variant=3d-only"):
        adapt(tmp_path / "run", None, target, **options, pl_agree=True)


def test_the_agent_of_a_point_is_the_strongest_at_its_pixel_unless_it_is_large(make_domain, make_network, make_batch):
    domain = make_domain(frames=2, cameras=2)
    batch = make_batch(domain, make_network(domain))
    images = batch.images
    found = strongest_agents(images, most=0.5)
    expected = np.full(len(batch.labels), -1)
    for point, view, (u, v) in zip(
        images.projection_point.tolist(), images.projection_view.tolist(), images.projection_uv.tolist(), strict=True
    ):
        row, column = int(v * 5.625), int(u * 10)  # the extent of the grid, in cells
        shares = images.membership[view, :, row, column]
        agent = int(images.assignment[view, shares.argmax(), row, column])
        if images.geometry[view, agent, 0] <= 0.5:
            expected[point] = max(expected[point], view * 7 + agent)
    np.testing.assert_array_equal(found, expected)
    assert (expected < 0).any()
    assert (expected >= 0).any()
    assert (strongest_agents(images, most=0.0) == -1).all()
    assert strongest_agents(dataclasses.replace(images, membership=None), most=0.5) is None
