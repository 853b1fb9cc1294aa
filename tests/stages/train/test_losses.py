import numpy as np
import pytest
import torch
from xd3d.stages.train.losses import (
    agreement_loss,
    cross_modal_loss,
    source_losses,
    target_losses,
    weighted_cross_entropy,
)
from xd3d.stages.train.network import NetworkOutput
from xd3d.stages.train.settings import TrainSettings

LABELS = torch.tensor([0, 2, -100, 1, 2])
WEIGHTS = torch.tensor([1.0, 2.5, 0.5], dtype=torch.float64)


def logits(seed):
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def log_softmax(x):
    x = x.detach().numpy()
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def cross_entropy(x):
    kept = LABELS.numpy() >= 0
    labels = LABELS.numpy()[kept]
    weights = WEIGHTS.numpy()[labels]
    return -(weights * log_softmax(x)[kept, labels]).sum() / weights.sum()


def kl(student, teacher):
    p, q = log_softmax(teacher), log_softmax(student)
    return (np.exp(p) * (p - q)).sum(1).mean()


def test_cross_entropy_by_hand_with_weights_and_ignored_points():
    x = logits(0)
    assert weighted_cross_entropy(x, LABELS, WEIGHTS).item() == pytest.approx(cross_entropy(x), rel=1e-12)


@pytest.mark.parametrize("points", [0, 4])
def test_nothing_labelled_costs_nothing_and_gives_no_nan(points):
    x = torch.randn(points, 3, requires_grad=True)
    loss = weighted_cross_entropy(x, torch.full((points,), -100), torch.ones(3))
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()


def test_cross_modal_loss_by_hand_moves_the_student_alone():
    student, teacher = logits(1), logits(2)
    loss = cross_modal_loss(student, teacher)
    assert loss.item() == pytest.approx(kl(student, teacher), rel=1e-12)
    loss.backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert cross_modal_loss(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0


@pytest.mark.parametrize("standardise", [False, True])
def test_agreement_is_smooth_l1_by_hand_averaged_over_stages(standardise):
    torch.manual_seed(0)
    pairs = [(3 * torch.randn(n, c).double(), 3 * torch.randn(n, c).double()) for n, c in ((4, 2), (9, 5))]
    by_stage = []
    for own, met in pairs:
        sides = [side.numpy() for side in (own, met)]
        if standardise:
            sides = [(x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) for x in sides]
        gap = np.abs(sides[0] - sides[1])
        by_stage.append(np.where(gap < 1, gap**2 / 2, gap - 0.5).mean())
    loss = agreement_loss(pairs, detach_refined=False, standardise=standardise)
    assert loss.item() == pytest.approx(np.mean(by_stage), rel=1e-12)


def test_standardised_agreement_does_not_grow_with_the_features():
    own, met = torch.randn(2, 9, 8)
    losses = [agreement_loss([(size * own, size * met)], detach_refined=True, standardise=True) for size in (1, 100)]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-3)


@pytest.mark.parametrize("held", [True, False])
def test_a_held_teacher_gets_no_gradient_from_the_agreement(held):
    own, met = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    agreement_loss([(own, met)], detach_refined=held, standardise=True).backward()
    assert own.grad.abs().sum() > 0
    assert (met.grad is None) == held


def output(**parts):
    empty = dict.fromkeys(("auxiliary_3d", "logits_2d", "auxiliary_2d", "teacher", "queries"))
    return NetworkOutput(**{"logits_3d": logits(0), "refined": (), **empty, **parts})


def test_the_sum_of_every_term_with_its_weight():
    settings = TrainSettings(lam_src=0.5, lam_dec=0.25, lam_sup=2.0, lam_teacher=0.75)
    pair, queries = (logits(5), logits(6)), (logits(7)[None], logits(8)[None])
    whole = output(
        auxiliary_3d=logits(1),
        logits_2d=logits(2),
        auxiliary_2d=logits(3),
        teacher=logits(4),
        refined=(pair,),
        queries=queries,
    )
    losses = source_losses(whole, LABELS, WEIGHTS, settings)
    terms = {name: value.item() for name, value in losses.terms.items()}
    assert terms["ce_3d"] == pytest.approx(cross_entropy(logits(0)))
    assert terms["ce_2d"] == pytest.approx(cross_entropy(logits(2)))
    assert terms["ce_teacher"] == pytest.approx(cross_entropy(logits(4)))
    assert terms["xm_2d"] == pytest.approx(kl(logits(3), logits(0)))
    assert terms["xm_3d"] == pytest.approx(kl(logits(1), logits(2)))
    expected = (
        terms["ce_3d"]
        + terms["ce_2d"]
        + 0.5 * (terms["xm_2d"] + terms["xm_3d"])
        + 0.25 * terms["decoupling"]
        + 2 * terms["agreement"]
        + 0.75 * terms["ce_teacher"]
    )
    assert losses.total.item() == pytest.approx(expected)


@pytest.mark.parametrize(("lam_trg", "lam_pl"), [(0.1, 0.0), (0.3, 2.0), (0.0, 1.0)])
def test_the_losses_of_the_target_by_hand(lam_trg, lam_pl):
    whole = output(auxiliary_3d=logits(1), logits_2d=logits(2), auxiliary_2d=logits(3), logits_lidar=logits(9))
    labels = torch.tensor([[0, 1], [-100, 2], [1, -100], [2, 2], [-100, -100]])
    pseudo = labels if lam_pl else None
    losses = target_losses(whole, pseudo, TrainSettings(lam_trg=lam_trg, lam_pl=lam_pl))
    expected = {"xm_2d_target": kl(logits(3), logits(0)), "xm_3d_target": kl(logits(1), logits(2))}
    if lam_pl:
        for column, name, seed in ((0, "pl_2d", 2), (1, "pl_3d", 0), (1, "pl_lidar", 9)):
            mine = labels[:, column].numpy()
            kept = mine >= 0
            expected[name] = -log_softmax(logits(seed))[kept, mine[kept]].mean()
    assert {name: value.item() for name, value in losses.terms.items()} == pytest.approx(expected, rel=1e-12)
    total = sum((lam_trg if name.startswith("xm") else lam_pl) * value for name, value in expected.items())
    assert losses.total.item() == pytest.approx(total, rel=1e-12)
    losses.total.backward()
    taught = {"auxiliary_2d": lam_trg, "auxiliary_3d": lam_trg, "logits_2d": lam_pl, "logits_3d": lam_pl}
    taught["logits_lidar"] = lam_pl
    for name, weight in taught.items():
        gradient = getattr(whole, name).grad
        assert (gradient is not None and bool(gradient.any())) == (weight > 0), name


def test_the_lidar_only_head_has_a_cross_entropy_of_its_own():
    terms = source_losses(output(logits_lidar=logits(9)), LABELS, WEIGHTS, TrainSettings()).terms
    assert terms["ce_lidar"].item() == pytest.approx(cross_entropy(logits(9)))


def test_a_lidar_only_network_has_one_loss():
    assert set(source_losses(output(), LABELS, WEIGHTS, TrainSettings()).terms) == {"ce_3d"}


def test_a_weight_of_zero_leaves_a_term_out_of_the_gradient_and_in_the_log():
    queries = (logits(7)[None].detach().requires_grad_(), logits(8)[None].detach().requires_grad_())
    losses = source_losses(output(queries=queries), LABELS, WEIGHTS, TrainSettings(lam_dec=0))
    losses.total.backward()
    assert queries[0].grad is None
    assert losses.terms["decoupling"].item() > 0


def test_points_that_no_image_shows_count_in_the_losses_of_the_cloud_alone():
    shown = torch.tensor([True, False, True, True, False])
    parts = {"auxiliary_3d": logits(1), "logits_2d": logits(2), "auxiliary_2d": logits(3)}
    some = output(**{name: value[shown] for name, value in parts.items()}, logits_3d=logits(0)[shown])
    part = source_losses(some, LABELS[shown], WEIGHTS, TrainSettings()).terms
    whole = source_losses(output(**parts), LABELS, WEIGHTS, TrainSettings(), shown).terms
    assert whole["ce_3d"].item() == pytest.approx(cross_entropy(logits(0)))
    for name in ("ce_2d", "xm_2d", "xm_3d"):
        assert whole[name].item() == pytest.approx(part[name].item())
    settings = TrainSettings(lam_trg=0.1)
    target = target_losses(output(**parts), None, settings, shown).terms
    assert {k: v.item() for k, v in target.items()} == pytest.approx(
        {k: v.item() for k, v in target_losses(some, None, settings).terms.items()}
    )


@pytest.mark.parametrize("shown", [None, torch.tensor([True, False, True, True, False])])
def test_a_pseudo_label_weighs_what_the_heads_agree(shown):
    whole = output(auxiliary_3d=logits(1), logits_2d=logits(2), auxiliary_2d=logits(3), logits_lidar=logits(9))
    labels = torch.tensor([[0, 1], [-100, 2], [1, -100], [2, 2], [-100, 0]])
    losses = target_losses(whole, labels, TrainSettings(lam_pl=2.0, pl_weigh=True), shown)
    images, cloud = log_softmax(logits(2)), log_softmax(logits(0))
    weight = np.exp(-(np.exp(images) * (images - cloud)).sum(1))
    if shown is not None:
        weight[~shown.numpy()] = 1
    for column, name, seed in ((0, "pl_2d", 2), (1, "pl_3d", 0), (1, "pl_lidar", 9)):
        mine = labels[:, column].numpy()
        kept = mine >= 0
        expected = -(weight[kept] * log_softmax(logits(seed))[kept, mine[kept]]).mean()
        assert losses.terms[name].item() == pytest.approx(expected, rel=1e-12)
    losses.terms["pl_lidar"].backward()
    assert whole.logits_2d.grad is None, "the weight is not learned"
    assert target_losses(output(), labels, TrainSettings(lam_pl=1.0, pl_weigh=True)).terms.keys() == {"pl_3d"}
