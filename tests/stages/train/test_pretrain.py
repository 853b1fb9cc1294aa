"""Pretraining on tiny domains: its loss by hand, that it reads no label, and what a training takes from it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from xd3d.errors import ConfigError, RunError
from xd3d.stages.datasets.labels import NO_CLASSES
from xd3d.stages.train.distil import PretrainingNetwork, feature_distance
from xd3d.stages.train.loop import train
from xd3d.stages.train.monitor import TIMING_KEYS
from xd3d.stages.train.network import choose_taps
from xd3d.stages.train.pretrain import pretrain
from xd3d.stages.train.record import read_record
from xd3d.stages.train.run_log import read_log
from xd3d.stages.train.settings import AugmentSettings, FusionSettings, ModelSettings

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = ModelSettings(preset="slim", backend="torch", voxel_size=0.2)
IMAGES = FusionSettings(variant="image", image_channels=8)
LIDAR = FusionSettings(variant="3d-only")
# One of two processes that pretrain together.
SCRIPT = """
import importlib.util, sys
import torch
from pathlib import Path
from xd3d.stages.train.parallel import distributed
from xd3d.stages.train.pretrain import pretrain
from xd3d.stages.train.settings import *
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("tiny_domains", sys.argv[1])
tiny_domains = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_domains)
domain = tiny_domains.open_domain(Path(sys.argv[2]), frames=4)
with distributed("cpu"):
    pretrain(run=Path(sys.argv[3]), source=domain, target=None, augment=AugmentSettings(),
             model=ModelSettings.model_validate_json(sys.argv[4]),
             fusion=FusionSettings.model_validate_json(sys.argv[5]),
             settings=TrainSettings.model_validate_json(sys.argv[6]))
"""


@pytest.fixture
def run_pretraining(train_settings):
    def run(folder, source, *, target=None, model=MODEL, fusion=IMAGES, **values):
        return pretrain(
            run=folder,
            source=source,
            target=target,
            model=model,
            fusion=fusion,
            augment=AugmentSettings(),
            settings=train_settings(**{"steps": 2, **values}),
        )

    return run


@pytest.fixture
def run_training(train_settings):
    def run(folder, source, init, *, model=MODEL, fusion=LIDAR, **values):
        return train(
            run=folder,
            source=source,
            validation=None,
            init=init,
            model=model,
            fusion=fusion,
            augment=AugmentSettings(),
            settings=train_settings(**{"steps": 1, **values}),
        )

    return run


def weights(run):
    (folder,) = (run / "checkpoints").iterdir()
    return load_file(folder / "model.safetensors")


def unet(run):
    return {name: value for name, value in weights(run).items() if name.startswith("unet.")}


def by_hand(batch, predicted, taps, *, normalise):
    """The mean distance in float64, point by point: ``predicted`` are all points' features in the network's order."""
    images, distances = batch.images, []
    for point in range(len(batch.labels)):
        seen = (images.projection_point == point).nonzero().flatten().tolist()
        if not seen:
            continue
        features = []
        for tap in taps:
            spec, views = images.specs[tap], []
            height, width = spec.extent
            for row in seen:
                values = images.maps[tap][images.projection_view[row]].numpy().astype(np.float64)
                values = values / 255 if spec.dtype == "uint8" else values
                if normalise:
                    share = np.outer(
                        np.clip(height - np.arange(spec.height), 0, 1), np.clip(width - np.arange(spec.width), 0, 1)
                    )
                    mean = (values * share).sum((1, 2), keepdims=True) / share.sum()
                    values = (values - mean) / np.sqrt(((values - mean) ** 2 * share).sum((1, 2)) / share.sum())[
                        :, None, None
                    ]
                u, v = images.projection_uv[row].numpy().astype(np.float64)
                x = min(max(u * width - 0.5, 0), spec.width - 1)
                y = min(max(v * height - 0.5, 0), spec.height - 1)
                left, top = int(x), int(y)
                right, bottom = min(left + 1, spec.width - 1), min(top + 1, spec.height - 1)
                upper = (1 - x + left) * values[:, top, left] + (x - left) * values[:, top, right]
                lower = (1 - x + left) * values[:, bottom, left] + (x - left) * values[:, bottom, right]
                views.append((1 - y + top) * upper + (y - top) * lower)
            features.append(np.mean(views, 0))
        actual, guess = np.concatenate(features), predicted[point]
        distances.append(np.linalg.norm(guess / np.linalg.norm(guess) - actual / np.linalg.norm(actual)))
    return np.mean(distances), len(distances)


@pytest.mark.parametrize(
    ("cameras", "fusion"),
    [(2, IMAGES), (6, IMAGES.model_copy(update={"taps": ("rgb", "up1")})), (2, FusionSettings(normalise=False))],
)
def test_the_loss_is_the_mean_distance_of_unit_vectors_at_the_points_that_a_camera_sees(
    make_domain, make_batch, cameras, fusion
):
    domain = make_domain(frames=2, cameras=cameras, points=120)
    for name in domain.index.frames.sweep:
        points = np.fromfile(domain.index.root / name, np.float32).reshape(-1, 5)
        points[::3, 2] = 40  # above every image
        points.tofile(domain.index.root / name)
    domain = replace(domain, every_point=True, merge=NO_CLASSES, labelled=False)
    taps = choose_taps(fusion, domain.features.taps)
    torch.manual_seed(0)
    network = PretrainingNetwork(model=MODEL, fusion=fusion, taps=taps, device=torch.device("cpu")).eval()
    batch = make_batch(domain, network)
    loss = feature_distance(*network(batch))
    voxels = network.unet(batch.voxels).features[batch.point_to_voxel].detach().double()
    predicted = voxels @ network.project.weight.double().T + network.project.bias.double()
    expected, seen = by_hand(batch, predicted.detach().numpy(), taps, normalise=fusion.normalise)
    assert 0 < seen < len(batch.labels), "some points must lie outside every image"
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_nothing_that_a_camera_sees_is_no_loss_and_no_gradient():
    predicted = torch.zeros(0, 4, requires_grad=True)
    loss = feature_distance(predicted, torch.zeros(0, 4))
    loss.backward()
    assert loss.item() == 0


def test_it_learns_the_features_and_logs_like_a_training(make_domain, run_pretraining, tmp_path):
    domain = make_domain(frames=2, points=100)
    done = run_pretraining(tmp_path / "run", domain, target=domain, steps=30, lr=1e-2, checkpoint_every=30)
    records = read_log(tmp_path / "run")
    assert records[0].keys() == {"step", "loss", "distance", "distance_target", "lr", *TIMING_KEYS}
    assert records[0]["loss"] == pytest.approx(records[0]["distance"] + records[0]["distance_target"])
    assert records[-1]["distance"] < 0.9 * records[0]["distance"]
    assert (done.steps, done.best) == (30, None)
    assert read_record(tmp_path / "run")["kind"] == "pretrain"


def test_the_statistics_are_the_sources_alone_where_the_target_is_normalised_with_them(
    make_domain, run_pretraining, tmp_path
):
    source, *targets = (make_domain(frames=3, points=80, seed=seed) for seed in (1, 8, 9))

    def statistics(choice, source, target):
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        run_pretraining(folder, source, target=target, target_norms=choice, lr=1e-30)
        return {name: value for name, value in unet(folder).items() if "running" in name}

    def equal(first, second):
        return all(torch.equal(first[name], second[name]) for name in first)

    assert equal(*(statistics("source", source, target) for target in targets))
    assert not equal(*(statistics("own", source, target) for target in targets))
    assert equal(*(statistics(choice, None, targets[0]) for choice in ("own", "source"))), "there is no source"


@pytest.mark.slow
def test_two_processes_pretrain_as_one_with_twice_the_batch(
    make_domain, run_pretraining, train_settings, together, tmp_path
):
    domain = make_domain(frames=4, points=80)
    run_pretraining(tmp_path / "one", domain)
    settings = train_settings(steps=2, batch_size=1)
    files = (Path(__file__).parents[1] / "tiny_domains.py", domain.index.root, tmp_path / "two")
    dumped = (each.model_dump_json() for each in (MODEL, IMAGES, settings))
    together.outputs(together.start(SCRIPT, *map(str, files), *dumped))
    one, two = ([record["distance"] for record in read_log(tmp_path / name)] for name in ("one", "two"))
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    assert two[1] == pytest.approx(one[1], rel=1e-3)


def test_label_files_are_not_opened(make_domain, run_pretraining, tmp_path):
    domain, other = (make_domain(frames=2, points=80, seed=seed) for seed in (1, 2))
    run_pretraining(tmp_path / "labelled", domain, target=other)
    for side in (domain, other):
        for name in side.index.frames.labels:
            (side.index.root / name).unlink()
    run_pretraining(tmp_path / "unlabelled", domain, target=other)
    ours, theirs = weights(tmp_path / "labelled"), weights(tmp_path / "unlabelled")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert read_record(tmp_path / "labelled")["class_counts"] == []


def test_a_training_takes_the_network_without_its_head_and_tunes_it_at_its_own_rate(
    make_domain, run_pretraining, run_training, tmp_path
):
    domain = make_domain(frames=2, points=100)
    run_pretraining(tmp_path / "pretrained", domain)
    start = unet(tmp_path / "pretrained")
    for name, rate, moved in (("whole", 1.0, 1e-3), ("tenth", 0.1, 1e-4)):
        run_training(tmp_path / name, domain, tmp_path / "pretrained", backbone_rate=rate)
        tensors = weights(tmp_path / name)
        assert "project.weight" not in tensors
        steps = [(tensors[key] - start[key]).abs().max() for key in start if key.endswith("conv.weight")]
        assert max(steps) == pytest.approx(moved, rel=1e-2), "Adam's first step is the learning rate"


@pytest.mark.parametrize("fusion", [LIDAR, FusionSettings(image_channels=8)], ids=["3d-only", "full"])
def test_a_frozen_network_keeps_weights_and_statistics_under_heads_that_learn(
    make_domain, run_pretraining, run_training, tmp_path, fusion
):
    domain = make_domain(frames=2, points=100)
    run_pretraining(tmp_path / "pretrained", domain)
    start = unet(tmp_path / "pretrained")
    model = MODEL.model_copy(update={"head": "mlp"})
    options = {"model": model, "fusion": fusion, "backbone_rate": 0.0}
    run_training(tmp_path / "run", domain, tmp_path / "pretrained", steps=3, checkpoint_every=5, **options)
    tensors = weights(tmp_path / "run")
    assert all(torch.equal(tensors[name], start[name]) for name in start)
    if fusion is not LIDAR:
        decoder = {name: value for name, value in tensors.items() if name.startswith("lidar_branch.decoder.0.")}
        assert decoder
        assert all(torch.equal(value, start[f"unet.decoder.3{name[22:]}"]) for name, value in decoder.items())
    losses = [record["ce_3d"] for record in read_log(tmp_path / "run")]
    assert losses[0] != losses[-1]
    assert tensors["head_3d.0.weight"].shape[0] == 4 * tensors["head_3d.2.weight"].shape[1] / 4


def test_a_training_resumes_though_the_pretraining_that_it_starts_from_has_gone_on(
    make_domain, run_pretraining, run_training, failing_disk, tmp_path
):
    domain, run = make_domain(frames=2, points=80), tmp_path / "pretrained"
    with failing_disk(domain, reads=1):
        run_pretraining(run, domain, steps=2, checkpoint_every=1)
    shutil.copytree(run, tmp_path / "then" / "pretrained")
    options = {"fusion": FusionSettings(image_channels=8), "steps": 2, "checkpoint_every": 1}
    run_training(tmp_path / "unbroken", domain, tmp_path / "then" / "pretrained", **options)
    with failing_disk(domain, reads=1):
        run_training(tmp_path / "stopped", domain, run, **options)
    run_pretraining(run, domain, steps=2, checkpoint_every=1)
    run_training(tmp_path / "stopped", domain, run, **options)
    ours, theirs = weights(tmp_path / "stopped"), weights(tmp_path / "unbroken")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert read_record(tmp_path / "stopped")["init"]["step"] == 1


def test_another_network_is_refused_by_the_settings_that_differ(make_domain, run_pretraining, run_training, tmp_path):
    domain = make_domain(frames=2, points=80)
    run_pretraining(tmp_path / "pretrained", domain, steps=1)
    model = ModelSettings(preset="slim", backend="torch", voxel_size=0.1, norm="layer", head="mlp")
    with pytest.raises(RunError, match=r"(?s)model\.norm.*model\.voxel_size") as refused:
        run_training(tmp_path / "run", domain, tmp_path / "pretrained", model=model)
    assert "model.head" not in str(refused.value)


def test_what_cannot_be_learned_from_is_refused(
    make_domain, run_pretraining, run_training, failing_disk, tmp_path, train_settings
):
    blind, domain = make_domain(frames=2, lidar_only=True), make_domain(frames=2, points=80)
    with pytest.raises(RunError, match="--cameras"):
        run_pretraining(tmp_path / "run", blind)
    with failing_disk(domain, reads=0):
        run_pretraining(tmp_path / "begun", domain, steps=1)
    with pytest.raises(RunError, match=r"begun has no checkpoint yet; let the command .*train\.init"):
        run_training(tmp_path / "early", domain, tmp_path / "begun")
    run_pretraining(tmp_path / "run", domain, steps=1)
    with pytest.raises(RunError, match="kind"):
        run_training(tmp_path / "run", domain, None, fusion=IMAGES)
    with pytest.raises(ConfigError, match=r"train\.backbone_rate=0 .*--set train\.init=RUN"):
        run_training(tmp_path / "frozen", domain, None, backbone_rate=0.0)
    for needs, values in (("source_free", {"lam_trg": 0.1}), ("teacher=ema", {"lam_pl": 1.0, "teacher": "ema"})):
        free = needs == "source_free"
        with pytest.raises(ConfigError, match=rf"train\.{needs} .*'xd3d pretrain', run,.*--set train\.init=RUN"):
            train(
                run=tmp_path / "adapted",
                source=None if free else domain,
                target=domain,
                validation=None,
                init=tmp_path / "run",
                model=MODEL,
                fusion=IMAGES,
                augment=AugmentSettings(),
                settings=train_settings(source_free=free, **values),
            )
