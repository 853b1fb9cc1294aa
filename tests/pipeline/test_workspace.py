"""What the workspace remembers, and how it is told of roots and runs."""

from pathlib import Path

import pytest
from xd3d.errors import ConfigError, DataError, MissingDataError
from xd3d.pipeline.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    return Workspace(home=tmp_path / "my work")


def test_the_home_comes_from_the_environment_else_from_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XD3D_HOME", str(tmp_path / "elsewhere"))
    assert Workspace.current().home == tmp_path / "elsewhere"
    monkeypatch.delenv("XD3D_HOME")
    monkeypatch.chdir(tmp_path)
    assert Workspace.current().home == tmp_path / "xd3d-work"


def test_a_root_is_the_given_one_then_the_environments_the_configured_and_the_remembered(workspace, monkeypatch):
    with pytest.raises(MissingDataError, match="--root"):
        workspace.root("nuscenes")
    workspace.remember_root("nuscenes", Path("/remembered"))
    assert workspace.root("nuscenes") == Path("/remembered")
    assert workspace.root("nuscenes", configured=Path("/configured")) == Path("/configured")
    monkeypatch.setenv("XD3D_NUSCENES_ROOT", "/environment")
    assert workspace.root("nuscenes", configured=Path("/configured")) == Path("/environment")
    assert workspace.root("nuscenes") == Path("/environment")
    assert workspace.root("nuscenes", Path("/given")) == Path("/given")


def test_a_second_root_of_a_data_set_is_told_with_the_first_and_the_way_to_keep_both(workspace, tmp_path, caplog):
    (tmp_path / "one").mkdir()
    (tmp_path / "link").symlink_to("one")
    for root in (tmp_path / "one", tmp_path / "one", tmp_path / "link"):
        workspace.remember_root("folder", root)
    workspace.remember_root("nuscenes", tmp_path / "two")
    assert caplog.messages == []
    workspace.remember_root("folder", tmp_path / "two")
    (message,) = caplog.messages
    assert str(tmp_path / "link") in message
    assert "XD3D_HOME" in message


def test_the_last_run_is_remembered_beside_the_roots(workspace):
    with pytest.raises(MissingDataError, match="xd3d train --cached"):
        workspace.last_run()
    workspace.run("first").mkdir(parents=True)
    workspace.remember_root("nuscenes", Path("/data"))
    workspace.remember_run(workspace.run("first"))
    assert workspace.last_run() == workspace.run("first")
    assert workspace.roots() == {"nuscenes": "/data"}


def test_a_run_elsewhere_is_remembered_from_a_workspace_behind_a_link(workspace, tmp_path):
    (tmp_path / "disk/work").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    workspace.home.symlink_to(tmp_path / "disk/work")
    workspace.remember_run(tmp_path / "run")
    assert workspace.last_run().samefile(tmp_path / "run")
    workspace.run("mine").mkdir(parents=True)
    workspace.remember_run(workspace.run("mine"))
    assert workspace.last_run() == workspace.run("mine")


def test_a_run_is_a_name_in_the_workspace_or_a_path(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert workspace.find_run(Path("mine")) == workspace.run("mine")
    assert workspace.find_run(Path("here")) == tmp_path / "here"
    assert workspace.find_run(Path("a/b")) == tmp_path / "a" / "b"
    monkeypatch.chdir(tmp_path / "here")
    assert workspace.find_run(Path("..")) == tmp_path


def test_a_cache_is_a_name_in_the_workspace_or_a_location(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert workspace.find_cache("mine") == str(workspace.home / "cache" / "mine")
    assert workspace.find_cache("here") == str(tmp_path / "here")
    assert workspace.find_cache("s3://bucket/mine") == "s3://bucket/mine"
    monkeypatch.setenv("XD3D_CACHES", "s3://bucket/caches")
    assert workspace.find_cache("mine") == "s3://bucket/caches/mine"


@pytest.mark.parametrize("content", ['{"roots": [1]}', "{", "[]", '{"last_run": 5}', "[" * 200_000])
def test_a_damaged_memory_is_an_error_that_names_the_file(workspace, content):
    workspace.home.mkdir(parents=True)
    (workspace.home / "workspace.json").write_text(content)
    with pytest.raises(DataError, match=r"workspace\.json"):
        workspace.roots()


def test_commands_that_end_at_the_same_time_all_remember_their_root(workspace):
    from concurrent.futures import ThreadPoolExecutor

    names = [f"set-{number}" for number in range(24)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: workspace.remember_root(name, Path("/data") / name), names))
    assert sorted(workspace.roots()) == sorted(names)


def test_caches_are_kept_where_the_environment_or_a_config_says_else_in_the_workspace(workspace, monkeypatch, tmp_path):
    monkeypatch.delenv("XD3D_CACHES", raising=False)
    assert workspace.cache("nuscenes", 64 * "a") == workspace.home / "cache" / "nuscenes-aaaaaaaaaaaa"
    monkeypatch.chdir(tmp_path)
    assert workspace.cache("nuscenes", 64 * "a", "there") == tmp_path / "there" / "nuscenes-aaaaaaaaaaaa"
    assert workspace.cache("nuscenes", 64 * "a", "s3://bucket/x/") == "s3://bucket/x/nuscenes-aaaaaaaaaaaa"
    monkeypatch.setenv("XD3D_CACHES", "s3://bucket/env")
    assert workspace.cache("nuscenes", 64 * "a", "there") == "s3://bucket/env/nuscenes-aaaaaaaaaaaa"


def test_a_workspace_that_cannot_be_written_is_reported_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="XD3D_HOME"):
        Workspace(home=tmp_path / "file/work").require_writable()
    Workspace(home=tmp_path / "new/work").require_writable()
    assert (tmp_path / "new/work").is_dir()
