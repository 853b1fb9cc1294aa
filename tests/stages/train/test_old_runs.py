"""Runs of the versions before injection: their settings had other names, and their weights no statistics of images."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from xd3d.errors import RunError
from xd3d.stages.predict.inference import predict_frames
from xd3d.stages.train.checkpoint import TrainState, save_checkpoint
from xd3d.stages.train.initial import InitialCheckpoint
from xd3d.stages.train.record import make_record, open_record, read_record, write_record
from xd3d.stages.train.settings import AugmentSettings, FusionSettings, TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")

#: The fusion settings and the parts of a network that there were.
SETTINGS = {
    *("variant", "head", "keys", "taps", "normalise", "tokens", "query_channels", "rank"),
    *("interface_scale", "image_channels", "drop_path"),
}
PARTS = {
    *("unet", "head_3d", "image_branch", "head_2d", "auxiliary_2d", "auxiliary_3d"),
    *("voxel_queries", "refiners", "image_queries", "interface"),
}
#: What was the form of each variant then is said like this now, with what every old run has.
THEN = {"inject": "none", "context": "none", "camera_dropout": 0.0, "lidar_stages": 0, "decoupling": "loss"}
VARIANTS = [
    ("3d-only", {"variant": "3d-only"}),
    ("image", {"variant": "image"}),
    ("no-interface", {"queries": "voxels"}),
    ("full", {"queries": "agents", "head": "refine"}),
    ("full", {"queries": "agents", "head": "distil", "keys": "features", "taps": ("up1", "rgb"), "normalise": False}),
]


@pytest.fixture
def old_run(make_network, make_batch, train_settings, tmp_path):
    """Call it with a domain, an old variant and its form in words of today: the old run, its network and its record."""

    def make(domain, variant, values):
        network = make_network(domain, **values, **THEN)
        network(make_batch(domain, network))  # BatchNorm's statistics are no longer those of a new network
        record = {
            **make_record(
                model=network.model,
                fusion=network.fusion,
                augment=AugmentSettings(),
                settings=train_settings(),
                source=domain,
                target=None,
                validation=domain,
                init=None,
                taps={tap: domain.features.taps[tap] for tap in network.tap_channels},
                facts={},
            ),
            "class_counts": [5, 4, 3, 2, 1, 0],
        }
        fusion = {name: value for name, value in record["fusion"].items() if name in SETTINGS}
        write_record(tmp_path / "run", {**record, "fusion": {**fusion, "variant": variant}})
        optimiser = torch.optim.Adam(network.parameters())
        state = TrainState(network=network, optimiser=optimiser, scaler=torch.amp.GradScaler("cpu"))
        save_checkpoint(tmp_path / "run", state, step=2, best=None)
        folder = tmp_path / "run/checkpoints/step-00000002"
        weights = load_file(folder / "model.safetensors")
        kept = {name: values for name, values in weights.items() if not name.startswith("image_statistics.")}
        assert {name.partition(".")[0] for name in kept} <= PARTS
        save_file(kept, folder / "model.safetensors")
        facts = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({name: facts[name] for name in ("step", "best", "scaler")}))
        return tmp_path / "run", network, record

    return make


@pytest.mark.parametrize(("variant", "values"), VARIANTS, ids=str)
def test_an_old_run_predicts_bit_for_bit_what_its_network_does(make_domain, old_run, load_run, variant, values):
    domain = make_domain(frames=2, cameras=2)
    run, network, _ = old_run(domain, variant, values)
    loaded = load_run(run)
    assert loaded.fusion == network.fusion
    network.prior = loaded.prior
    for one, other in zip(predict_frames(loaded, domain), predict_frames(network, domain), strict=True):
        for name in ("probabilities_2d", "probabilities_3d", "probabilities_fused"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize(("variant", "values"), VARIANTS, ids=str)
def test_an_old_run_is_gone_on_with_and_begun_from(make_domain, old_run, variant, values):
    run, _, record = old_run(make_domain(frames=2), variant, values)
    assert read_record(run)["fusion"].keys() == FusionSettings().model_dump().keys()
    assert open_record(run, record) is not None
    InitialCheckpoint.open(run).require_same_network(record)


def test_the_loggers_of_an_old_run_are_read_and_may_change(make_domain, old_run):
    run, _, record = old_run(make_domain(frames=2), *VARIANTS[0])
    stored = json.loads((run / "run.json").read_text())
    del stored["train"]["loggers"]
    stored["train"] |= {"tensorboard": False, "wandb": True}
    (run / "run.json").write_text(json.dumps(stored))
    assert TrainSettings(**read_record(run)["train"]).loggers == ("wandb",)
    assert open_record(run, record) is not None


@pytest.mark.parametrize("part", ["model", "fusion", "train", "taps", "facts"])
def test_a_record_whose_parts_are_no_objects_is_damaged(tmp_path, part):
    whole = {key: {} for key in ("augment", "fusion", "model", "train", "taps", "facts")}
    others = dict.fromkeys(("code", "classes", "source", "target", "class_counts"))
    write_record(tmp_path, {**whole, **others, part: []})
    with pytest.raises(RunError, match=rf"run\.json is damaged.*{part}"):
        read_record(tmp_path)
