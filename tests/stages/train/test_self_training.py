"""Training with pseudo labels: stored ones, and those of a teacher that learns."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from xd3d.errors import ConfigError, RunError
from xd3d.stages.adapt.pseudo_labels import candidates, make_pseudo_labels
from xd3d.stages.datasets.labels import IGNORE
from xd3d.stages.evaluate.scores import FramePrediction
from xd3d.stages.predict.inference import predict_batch
from xd3d.stages.train.loader import training_batch
from xd3d.stages.train.located_agents import strongest_agents
from xd3d.stages.train.losses import target_losses
from xd3d.stages.train.pseudo_label_choice import UNSURE, Candidates, LabelRule, thresholds
from xd3d.stages.train.record import describe_domain
from xd3d.stages.train.run_log import read_log
from xd3d.stages.train.settings import AugmentSettings, FusionSettings
from xd3d.stages.train.step_batch import StepMaker
from xd3d.stages.train.teacher import Teacher

pytestmark = pytest.mark.usefixtures("one_thread")
NO_RULE = LabelRule()
STILL = {"rotation_noise": 0.0, "flip": "none", "rotate": False, "translate": False}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def with_pseudo_labels(tmp_path):
    """The domain with pseudo labels that say class 1 to the 2D head and class 2 to the 3D head, surely.

    With a ``rule`` both heads say class 2.
    """

    def add(domain, *, heads=2, name="pl", rule=NO_RULE):
        seen = 2 if rule.names else 1

        def predict(first):
            for position in range(first, len(domain)):
                points = len(domain.load(position).points)
                yield FramePrediction(
                    labels=np.full(points, -100),
                    probabilities_2d=np.eye(6)[np.full(points, seen)] if heads == 2 else None,
                    probabilities_3d=np.eye(6)[np.full(points, 2)],
                )

        made = make_pseudo_labels(
            tmp_path / name,
            identity={"run": "one", "target": describe_domain(domain), "rule": rule.names},
            frames=len(domain),
            classes=domain.merge.classes,
            predict=predict,
            rule=rule,
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
        rule=NO_RULE,
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
    with pytest.raises(ConfigError, match=r"lam_pl.*no pseudo labels are given"):
        adapt(tmp_path / "run", None, target, **options)
    with pytest.raises(RunError, match=r"(?s)rule: expected \[\"agree\"\].*xd3d pseudo-label --agree"):
        adapt(tmp_path / "run", None, labelled, **options, pl_agree=True)
    with pytest.raises(ConfigError, match=r"lam_pl=0 .*and pseudo labels are given"):
        adapt(tmp_path / "run", None, labelled, **{**options, "lam_pl": 0.0, "lam_trg": 0.1})


def test_a_network_without_images_learns_labels_on_which_heads_and_agents_agreed(
    make_domain, adapt, with_pseudo_labels, tmp_path
):
    source = make_domain(frames=2, points=80)
    labelled = with_pseudo_labels(make_domain(frames=2, points=80), rule=LabelRule(agree=True, vote=True))
    options = {"fusion": FusionSettings(variant="3d-only"), "lam_trg": 0.0, "lam_pl": 1.0}
    options |= {"pl_agree": True, "pl_vote": True}
    adapt(tmp_path / "run", source, labelled, **options)
    assert read_log(tmp_path / "run")[0]["pl_3d"] > 0
    with pytest.raises(ConfigError, match=r"pl_weigh.*fusion\.variant=3d-only"):
        adapt(tmp_path / "weighed", source, labelled, **options, pl_weigh=True)


@pytest.mark.parametrize("made_with", ["seen", "all"])
def test_labels_of_the_points_that_images_show_do_not_suit_all_points_nor_the_reverse(
    make_domain, adapt, with_pseudo_labels, tmp_path, made_with
):
    seen = make_domain(frames=2, points=80)
    seen.index.images.intrinsics[:, 0, 0] *= 4  # a narrow view: some points lie beside the image
    every = dataclasses.replace(seen, every_point=True)
    ours, other = (seen, every) if made_with == "seen" else (every, seen)
    labelled = with_pseudo_labels(ours)
    options = {"lam_trg": 0.0, "lam_pl": 1.0}
    with pytest.raises(RunError, match=rf"made with data\.points={made_with} .*xd3d pseudo-label"):
        adapt(tmp_path / "run", seen, dataclasses.replace(other, pseudo=labelled.pseudo), **options)
    assert adapt(tmp_path / "run", seen, labelled, **options)


def test_a_teacher_is_the_average_of_the_weights_and_has_the_statistics_of_the_network(
    make_domain, make_network, label_batch
):
    network = make_network(make_domain(frames=2))
    teacher = Teacher(network, label_batch, 0.9)
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


def test_a_teacher_labels_a_batch_by_the_rule_of_stored_labels(
    make_domain, make_network, make_batch, awake, label_batch
):
    domain = make_domain(frames=4, points=120)
    network = awake(make_network(domain))
    batches = [make_batch(domain, network, step=step) for step in range(2)]
    teacher = Teacher(network, label_batch, 0.5)
    network.eval()
    made = [label_batch(network, batch) for batch in batches]
    counts = np.zeros_like(made[0].histogram(6), float)
    for batch, found in zip(batches, made, strict=True):
        counts = 0.5 * counts + found.histogram(6)
        expected = found.confident(thresholds(counts)).astype(np.int64)
        labels = teacher.label(batch).numpy()
        np.testing.assert_array_equal(labels, np.where(expected == UNSURE, -100, expected))
        assert 0.2 < (labels >= 0).mean() < 1


def test_a_simulated_drop_has_no_label_no_vote_and_no_share_in_the_thresholds(
    make_domain, make_network, make_batch, awake
):
    domain = make_domain(frames=2, points=150, cameras=2)
    network = awake(make_network(domain)).eval()
    wet = AugmentSettings(**{**STILL, "early_returns": 1.0})
    batch = make_batch(domain.unlabelled(), network, augment=wet)
    dry, labelled = (make_batch(domain, network, augment=each).labels for each in (AugmentSettings(**STILL), wet))
    drops = ((labelled == IGNORE) & (dry != IGNORE)).numpy()
    others = (labelled != IGNORE).numpy()
    assert drops.sum() > 20
    rule = LabelRule(agree=True, vote=True)

    def label(network, batch):
        return candidates(predict_batch(network, batch, fusion="product-prior"), rule, what="of a batch")

    teacher = Teacher(network, label, 0.0)
    assert (teacher.label(batch)[drops] == IGNORE).all()
    assert (teacher.confidences.sum((1, 2)) <= len(drops) - drops.sum()).all()
    every = predict_batch(network, dataclasses.replace(batch, classless=None), fusion="product-prior")
    kept = ~batch.classless.numpy()
    assert kept[others].all()
    expected = Candidates.of(
        every.probabilities_2d[kept],
        every.probabilities_3d[kept],
        fused=every.probabilities_fused[kept],
        agents=every.agents[kept],
        rule=rule,
    )
    found = label(network, batch)
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name)[kept], values, err_msg=name)
    assert not expected.eligible.all()


def test_training_with_a_teacher_resumes_where_it_stopped_and_learns_from_it(
    make_domain, adapt, trained, failing_disk, tmp_path
):
    target = make_domain(frames=3, points=80, seed=9)
    options = {"init": trained, "steps": 4, "checkpoint_every": 2, "lam_trg": 0.0, "lam_pl": 1.0, "teacher": "ema"}
    unbroken = adapt(tmp_path / "unbroken", None, target, **options, pl_weigh=True, pl_agree=True)
    assert {"pl_2d", "pl_3d", "pl_lidar"} <= read_log(tmp_path / "unbroken")[0].keys()
    with failing_disk(target, reads=3):
        adapt(tmp_path / "stopped", None, target, **options, pl_weigh=True, pl_agree=True)
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
