"""The options that share the work of stage one out."""

import pytest
from xd3d.errors import ConfigError
from xd3d.pipeline import extraction
from xd3d.pipeline.console import Outcome
from xd3d.pipeline.sharing import Sharing


def read(workers=None, scheduler=None, shard=None, dry_run=False):
    return Sharing.from_options(workers, scheduler, shard, dry_run=dry_run)


def test_a_part_counts_from_one():
    assert read(shard="1/4").part == (1, 4)
    assert read(shard="4/4").part == (4, 4)
    assert read() == Sharing()
    assert read(workers=3).workers == 3


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "1/", "a/b", "-1/4", "1/0", "1/4/2", "", "1 / 4", "1/99999999"])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="such as 2/8"):
        read(shard=text)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"workers": 2, "shard": "1/2"}, "--workers and --shard"),
        ({"workers": 2, "scheduler": "tcp://x:1"}, "--workers and --scheduler"),
        ({"scheduler": "tcp://x:1", "shard": "1/2"}, "--scheduler and --shard"),
        ({"workers": 2, "dry_run": True}, "--dry-run"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, names):
    with pytest.raises(ConfigError, match=names):
        read(**options)


@pytest.mark.parametrize(
    "options",
    [("--workers", "0"), ("--shard", "3/2"), ("--workers", "2", "--shard", "1/2"), ("--shard", "1/2", "--dry-run")],
)
def test_wrong_use_ends_with_2_before_any_work(xd3d, options):
    done = xd3d("extract-features", *options)
    assert done.returncode == 2
    assert options[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_the_next_command_of_a_part_waits_for_the_other_parts(monkeypatch, tmp_path):
    done = Outcome(result={}, text="8 of 8 images.")
    monkeypatch.setattr(extraction, "_extract", lambda *_, **__: done)
    said = {
        part: extraction.extract_features("nuscenes", sharing=Sharing(part=part), workspace=tmp_path).text
        for part in (None, (1, 1), (1, 2))
    }
    assert said[None] == said[1, 1] == "8 of 8 images. Next: xd3d train --cached"
    assert said[1, 2] == "8 of 8 images. Next, when the other parts are done: xd3d train --cached"
