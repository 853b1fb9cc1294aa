"""What may differ between runs is marked at the setting, and the mark alone decides."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import pytest
from pydantic import Field
from xd3d.errors import RunError
from xd3d.pipeline.config import Config, dotted_values, load_config
from xd3d.pipeline.domains import DomainOpener
from xd3d.pipeline.runs import run_facts, run_name
from xd3d.pipeline.workspace import Workspace
from xd3d.settings import Mark, Settings, marked, unmarked_values
from xd3d.stages.train.initial import InitialCheckpoint
from xd3d.stages.train.record import PRETRAINED, open_record, write_record

MARKED = {
    Mark.FREE: {
        *("data.pseudo_labels", "data.roots"),
        *("extract.batch_size", "extract.caches", "extract.compile", "extract.device", "extract.offline"),
        *("extract.shard_mb", "train.init", "train.workers", "train.device", "train.loggers"),
    },
    Mark.MACHINE: {
        *("extract.batch_size", "extract.caches", "extract.compile", "extract.device", "extract.offline"),
        *("model.backend", "train.device"),
    },
    Mark.TRAINING_ONLY: {
        *("fusion.camera_dropout", "fusion.depth_dropout", "fusion.drop_path", "fusion.interface_scale"),
    },
    Mark.ADDED: {
        *("augment.mix", "augment.mix_share", "augment.beam_drop", "augment.early_returns", "augment.jitter"),
        *("augment.scale", "augment.mount_height", "train.teacher", "train.teacher_decay"),
        *("train.pl_agree", "train.pl_vote", "train.pl_weigh"),
        *("extract.models", "extract.maps_only", "extract.decoding", "fusion.depth", "fusion.depth_dropout"),
        *("model.norm", "model.head", "train.backbone_rate"),
    },
    Mark.ABLATION: {
        *("train.seed", "train.init", "data.pseudo_labels", "data.source.domain", "data.target.domain"),
    },
}
RECORDED = ("model", "fusion", "augment", "train")
CHANGES = {
    "data.pseudo_labels": "other",
    "data.roots": "{nuscenes: /elsewhere}",
    "extract.batch_size": "3",
    "extract.caches": "/elsewhere",
    "extract.compile": "true",
    "extract.device": "cpu",
    "extract.offline": "true",
    "extract.shard_mb": "7",
    "model.backend": "torch",
    "train.init": "other",
    "train.workers": "7",
    "train.device": "cpu",
    "train.loggers": "[tensorboard, mlflow]",
}


class Inner(Settings):
    threads: Annotated[int, Mark.FREE] = Field(default=1, ge=0)
    width: int = 3


class Outer(Settings):
    inner: Inner = Inner()
    seed: Annotated[int, Mark.ABLATION, Mark.FREE] = 4


class Grown(Outer):
    depth: Annotated[int | None, Mark.ADDED] = None


def test_marks_are_found_in_groups_of_groups_and_what_bears_them_is_left_out():
    assert marked(Outer, Mark.FREE) == ("inner.threads", "seed")
    assert marked(Outer, Mark.ABLATION, Mark.MACHINE) == ("seed",)
    assert unmarked_values(Outer(), Mark.FREE) == {"inner": {"width": 3}}
    assert unmarked_values(Outer(), Mark.MACHINE) == Outer().model_dump()


def test_a_later_setting_is_written_where_it_is_not_its_default():
    assert Grown().model_dump() == Outer().model_dump()
    assert unmarked_values(Grown(depth=5), Mark.FREE) == {"inner": {"width": 3}, "depth": 5}
    assert Grown.model_validate_json(Grown(depth=5).model_dump_json()).depth == 5


@pytest.mark.parametrize("mark", Mark)
def test_the_marked_settings_are_these(mark):
    assert set(marked(Config, mark)) == MARKED[mark]


def record_of(config):
    return {
        **{group: getattr(config, group).model_dump(mode="json") for group in RECORDED},
        **{"code": "1", "classes": [], "taps": {}, "source": None, "target": None, "class_counts": [1]},
        "facts": {"caches": None},
    }


@pytest.mark.parametrize(
    "key", [f"{group}.{key}" for group in RECORDED for key, _ in dotted_values(getattr(Config(), group))]
)
def test_a_run_resumes_with_another_value_where_the_setting_is_marked_and_nowhere_else(tmp_path, key):
    record = record_of(Config())
    write_record(tmp_path, record)
    group, name = key.split(".")
    changed = {**record, "code": "2", group: {**record[group], name: "something else"}}
    if key in MARKED[Mark.FREE] | MARKED[Mark.MACHINE]:
        assert open_record(tmp_path, changed) is not None
    else:
        with pytest.raises(RunError, match=f'{key}: expected.*"something else"'):
            open_record(tmp_path, changed)


@pytest.mark.parametrize("name", [name for name, _ in dotted_values(Config().fusion)])
def test_a_run_begins_with_weights_of_other_settings_where_training_alone_reads_them(tmp_path, name):
    own = {**record_of(Config()), "source": {"cameras": ["CAM_FRONT"]}}
    other = {**own, "fusion": {**own["fusion"], name: "something else"}, "model": {**own["model"], "backend": "torch"}}
    start = InitialCheckpoint(run=tmp_path, step=1, record=own)
    if f"fusion.{name}" in MARKED[Mark.TRAINING_ONLY]:
        start.require_same_network(other)
    else:
        with pytest.raises(RunError, match=rf"fusion\.{name}"):
            start.require_same_network(other)


def test_a_setting_that_a_record_leaves_out_is_compared_by_its_default(tmp_path):
    own = {**record_of(Config()), "source": {"cameras": ["CAM_FRONT"]}}
    layer = {**own, "model": {**own["model"], "norm": "layer"}}
    with pytest.raises(RunError, match=r'model\.norm: expected "batch", found "layer"'):
        InitialCheckpoint(run=tmp_path, step=1, record=own).require_same_network(layer)
    with pytest.raises(RunError, match=r'model\.norm: expected "layer", found "batch"'):
        InitialCheckpoint(run=tmp_path, step=1, record={**layer, "kind": PRETRAINED}).require_same_network(own)
    write_record(tmp_path, layer)
    with pytest.raises(RunError, match=r'model\.norm: expected "layer", found "batch"'):
        open_record(tmp_path, own)


class NoData(DomainOpener):
    """Domains of an index that nobody opens, without the files that other settings name."""

    def __init__(self, config):
        super().__init__(Workspace(home=Path("nowhere")), config, cached=True)
        self.index = lambda _: SimpleNamespace(digest="index")

    def init(self):
        return None

    def pseudo_labels(self):
        return None


def test_the_name_and_the_facts_of_a_run_know_nothing_of_what_is_free():
    assert CHANGES.keys() == MARKED[Mark.FREE] | MARKED[Mark.MACHINE]

    def named(*overrides):
        resolved = load_config("default", overrides)
        facts = {**run_facts(resolved, cached=True), "caches": None}
        return run_name(resolved, NoData(resolved.config), cached=True), json.dumps(facts, sort_keys=True)

    for key, value in CHANGES.items():
        assert named(f"{key}={value}") == named(), key
    for change in ("train.seed=7", "fusion.camera_dropout=0.5", "data.source.domain=day", "extract.taps=[up1]"):
        assert named(change)[0] != named()[0], change
