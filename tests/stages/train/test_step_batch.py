"""Training on source and target together, and on the target alone: what each gives, and what is never taken."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from xd3d.errors import ConfigError, DataError, RunError
from xd3d.stages.train.norms import norm_momentum
from xd3d.stages.train.run_log import read_log
from xd3d.stages.train.settings import AugmentSettings, FusionSettings, TrainSettings
from xd3d.stages.train.step_batch import StepBatch, StepMaker, step_losses

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_running_statistics_continue_those_of_the_initial_checkpoint(make_domain, adapt, trained, tmp_path):
    target = make_domain(frames=3, points=80, seed=9)
    before = norms(load_file(trained / "checkpoints/step-00000002/model.safetensors"))
    after_2 = norms(adapt(tmp_path / "after 2", None, target, init=trained, steps=1, lr=1e-30))
    record = json.loads((trained / "run.json").read_text())
    record["train"]["accumulate"] = 1000  # so the statistics are those of 2000 micro-batches
    (trained / "run.json").write_text(json.dumps(record))
    after_2000 = norms(adapt(tmp_path / "after 2000", None, target, init=trained, steps=1, lr=1e-30))
    ratio = norm_momentum(2000) / norm_momentum(2)
    assert 0.01 < ratio < 0.02
    for name, old in before.items():
        torch.testing.assert_close(after_2000[name] - old, ratio * (after_2[name] - old), rtol=1e-3, atol=1e-6)
    options = {"steps": 1, "lr": 1e-30}
    third = norms(adapt(tmp_path / "third", None, target, init=tmp_path / "after 2000", **options))
    for name, old in after_2000.items():
        moved = (after_2000[name] - before[name]).abs().max()
        assert (third[name] - old).abs().max() < 2 * moved, "a run of one step has those of 2001 micro-batches"


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


def test_source_free_training_resumes_where_it_stopped_and_says_so_where_it_is_begun_from(
    make_domain, adapt, trained, failing_disk, tmp_path, caplog
):
    target = make_domain(frames=3, points=80, seed=9)
    options = {"init": trained, "steps": 4, "checkpoint_every": 2}
    unbroken = adapt(tmp_path / "unbroken", None, target, **options)
    with failing_disk(target, reads=3):
        adapt(tmp_path / "stopped", None, target, **options)
    adapt(tmp_path / "begun", None, target, init=tmp_path / "stopped")
    assert [record.getMessage() for record in caplog.records if "2 of 4 steps" in record.getMessage()]
    caplog.clear()
    assert equal(unbroken, adapt(tmp_path / "stopped", None, target, **options, workers=2))
    adapt(tmp_path / "begun-later", None, target, init=tmp_path / "stopped")
    assert "steps" not in "".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")


def test_weights_of_another_network_are_refused_by_name(make_domain, adapt, trained, small_fusion, tmp_path):
    target = make_domain(frames=2, points=80)
    with pytest.raises(RunError, match=r"(?s)trained.*fusion\.query_channels: expected 16, found 24"):
        adapt(tmp_path / "run", None, target, init=trained, fusion=small_fusion(query_channels=24, rank=2))
    with pytest.raises(RunError, match="is not a run"):
        adapt(tmp_path / "run", None, target, init=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"train\.init=RUN"):
        adapt(tmp_path / "run", None, target)


def test_weights_of_a_network_that_tells_no_cameras_apart_fit_any_number_of_them(
    make_domain, adapt, small_fusion, paper, tmp_path
):
    source, target = make_domain(frames=2, points=80), make_domain(frames=2, points=80, cameras=2)
    adapt(tmp_path / "uda", source, target)
    assert adapt(tmp_path / "free", None, target, init=tmp_path / "uda")
    fusion = small_fusion(**paper)
    adapt(tmp_path / "told", source, None, fusion=fusion, lam_trg=0.0)
    with pytest.raises(RunError, match="cameras: expected 1, found 2"):
        adapt(tmp_path / "told-free", None, target, fusion=fusion, init=tmp_path / "told")


def test_a_run_begun_from_other_weights_is_not_gone_on_with(make_domain, adapt, trained, tmp_path):
    target = make_domain(frames=2, points=80)
    adapt(tmp_path / "run", None, target, init=trained)
    other = adapt(tmp_path / "other", None, target, init=trained)
    assert other
    with pytest.raises(RunError, match=r"init\.checkpoint.*(?s:.*)init\.run"):
        adapt(tmp_path / "run", None, target, init=tmp_path / "other")


def test_statistics_of_images_are_those_of_the_source_alone(make_domain, make_network, make_batch):
    domain, other = make_domain(frames=2), make_domain(frames=2, seed=5)
    network = make_network(domain)
    sides = StepBatch(source=make_batch(domain, network), target=make_batch(other, network))
    step_losses(network, sides, torch.ones(6), TrainSettings(lam_trg=1.0))
    assert network.image_statistics.count == len(sides.source.images.sample)
    step_losses(network, StepBatch(source=None, target=sides.target), torch.ones(6), TrainSettings(lam_trg=1.0))
    assert network.image_statistics.count == len(sides.source.images.sample)
