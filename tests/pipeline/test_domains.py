"""Which side of the shift chooses the checkpoint."""

import itertools
import shutil
from pathlib import Path

import pytest
from xd3d.errors import ConfigError, DataError, MissingDataError
from xd3d.pipeline.config import load_config
from xd3d.pipeline.domains import DomainOpener, open_index
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.datasets.prepare import prepare_dataset
from xd3d.stages.datasets.splits import split_counts


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


def test_the_command_that_prepares_a_data_set_can_be_pasted(tmp_path):
    workspace = Workspace(home=tmp_path)
    workspace.remember_root("nuscenes", Path("/data/of two words"))
    with pytest.raises(MissingDataError, match=r"xd3d prepare --dataset nuscenes --root '/data/of two words'$"):
        open_index(workspace, "nuscenes")


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


def test_pretraining_needs_no_validation_and_no_common_classes_and_training_does(twin_of, tmp_path):
    workspace, sets = Workspace(home=tmp_path), ("a2d2", "semantickitti", "nuscenes")
    for dataset in sets:
        prepare_dataset(dataset, twin_of(dataset), workspace.index(dataset))

    def opened(source, target, *changes, labels):
        shift = [f"data.source={{dataset: {source}, domain: all}}", f"data.target={{dataset: {target}, domain: all}}"]
        config = load_config("default", [*shift, "fusion.variant=3d-only", *changes], labels=labels).config
        return DomainOpener(workspace, config, cached=True), config.data

    for source, target in itertools.product(sets, sets):
        domains, data = opened(source, target, labels=False)
        for side in (data.source, data.target):
            found = domains.pretraining(side)
            assert len(found) == split_counts(domains.index(side.dataset))["all"]["train"]
            assert not found.labelled
            assert found.merge.classes == ()
    for source, target in (("semantickitti", "nuscenes"), ("a2d2", "semantickitti")):
        with pytest.raises(ConfigError, match="merge nuscenes-6 is for nuscenes"):
            opened(source, target, labels=True)
    domains, _ = opened("a2d2", "a2d2", "data.merge=a2d2-nuscenes-8", labels=True)
    with pytest.raises(ConfigError, match=r"data\.validate_on=none"):
        domains.source()
    domains, _ = opened("a2d2", "a2d2", "data.merge=a2d2-nuscenes-8", "data.validate_on=none", labels=True)
    assert domains.validation() is None
    assert domains.source().labelled


@pytest.fixture
def drive(twin_of, tmp_path) -> Workspace:
    """A workspace with SemanticKITTI and, as a folder, the same files without labels and without a val split."""
    root = shutil.copytree(twin_of("semantickitti"), tmp_path / "root")
    (root / "dataset.yaml").write_text("sweeps: dataset/sequences/{scene}/velodyne/{frame}.bin\n")
    workspace = Workspace(home=tmp_path / "work")
    for dataset in ("semantickitti", "folder"):
        prepare_dataset(dataset, root, workspace.index(dataset))
    return workspace


def domains_of(workspace, source, *changes):
    sides = [f"data.source.dataset={source}", "data.target.dataset=folder", "data.merge=semantickitti-19"]
    config = load_config("default", [*sides, "fusion.variant=3d-only", "train.lam_pl=1", "train.teacher=ema", *changes])
    return DomainOpener(workspace, config.config, cached=True)


def test_a_source_without_labels_is_refused_before_it_is_read(drive):
    with pytest.raises(DataError, match="xd3d pretrain"):
        domains_of(drive, "folder").source()


def test_a_drive_without_labels_and_val_is_a_target_with_the_classes_of_the_source(drive, caplog):
    domains = domains_of(drive, "semantickitti")
    source, target = domains.source(), domains.target()
    assert target.merge.classes == source.merge.classes
    assert not target.labelled
    assert domains.validation() is None
    assert "data.validate_on=source" in caplog.text
    assert len(domains_of(drive, "semantickitti", "data.validate_on=source").validation()) == 1


def test_no_checkpoint_is_chosen_on_test_frames_of_the_target(twin_of, tmp_path):
    workspace = Workspace(home=tmp_path)
    prepare_dataset("semantickitti", twin_of("semantickitti"), workspace.index("semantickitti"))
    sides = ["data.source={dataset: semantickitti, domain: official}", "data.target.dataset=semantickitti"]
    shift = [*sides, "data.merge=semantickitti-19", "fusion.variant=3d-only", "data.validate_on=source"]

    def validation(target):
        config = load_config("default", [*shift, f"data.target.domain={target}"]).config
        return DomainOpener(workspace, config, cached=True).validation()

    counts = split_counts(open_index(workspace, "semantickitti"))
    shared = counts["official"]["val"]
    assert shared == counts["all"]["test"] > 0
    with pytest.raises(ConfigError, match=rf"{shared} val frames of 'official'.* target 'all'.*validate_on"):
        validation("all")
    assert len(validation("official")) == shared
