"""Which side of the shift chooses the checkpoint."""

import pytest
from xd3d.pipeline.config import load_config
from xd3d.pipeline.domains import DomainOpener
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.datasets.prepare import prepare_dataset


@pytest.mark.parametrize(("side", "validated"), [("auto", "night"), ("target", "night"), ("source", "singapore")])
def test_the_side_that_was_asked_for_validates_and_lends_no_frame_to_training(
    tiny_nuscenes_root, tmp_path, side, validated
):
    workspace = Workspace(home=tmp_path)
    prepare_dataset("nuscenes", tiny_nuscenes_root, workspace.index("nuscenes"))
    shift = ["data.source.domain=singapore", "data.target.domain=night", "fusion.variant=3d-only", "train.lam_trg=0.1"]
    config = load_config("default", [*shift, f"data.validate_on={side}"]).config
    domains = DomainOpener(workspace, config, cached=True)
    validation = domains.validation()
    assert validation is not None
    expected = domains.open(config.data.source.model_copy(update={"domain": validated}), "val")
    assert validation.frames.tolist() == expected.frames.tolist()
    source, target = domains.source(), domains.target()
    assert source is not None
    assert target is not None
    assert not target.labelled
    assert not set(validation.frames) & {*source.frames, *target.frames}


def test_without_validation_the_last_checkpoint_counts_and_no_frame_is_held_out(tiny_nuscenes_root, tmp_path):
    workspace = Workspace(home=tmp_path)
    prepare_dataset("nuscenes", tiny_nuscenes_root, workspace.index("nuscenes"))
    shift = ["data.source.domain=singapore", "data.target.domain=night", "fusion.variant=3d-only", "train.lam_trg=0.1"]
    config = load_config("default", [*shift, "data.validate_on=none"]).config
    domains = DomainOpener(workspace, config, cached=True)
    assert domains.validation() is None
    target = domains.target()
    assert target is not None
    assert target.frames.tolist() == domains.open(config.data.target, "train").frames.tolist()
