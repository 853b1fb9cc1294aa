"""Files that appear whole: two writers never share a partial file, on one machine or on several."""

import os
import threading
from pathlib import Path

import pytest
from xd3d import files
from xd3d.files import parse_yaml, unique_name, write_atomic, write_bytes


def test_two_hosts_with_one_process_id_write_one_file_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 7)
    both_write, path, names = threading.Barrier(2), tmp_path / "results.json", set()

    def slowly(content):
        def write(file):
            names.add(Path(file.name).name)
            file.write(content[:3])
            both_write.wait(10)
            file.write(content[3:])

        write_atomic(path, write)

    hosts = [threading.Thread(target=slowly, args=(content,)) for content in (b"one, whole", b"the other, whole")]
    for host in hosts:
        host.start()
    for host in hosts:
        host.join()
    assert len(names) == 2
    assert all(name.startswith("results.json.") and name.endswith(".partial") for name in names)
    assert path.read_bytes() in (b"one, whole", b"the other, whole")
    assert list(tmp_path.iterdir()) == [path]


def test_a_unique_name_says_host_and_process_and_has_no_dot(monkeypatch):
    monkeypatch.setattr(files.socket, "gethostname", lambda: "node-3.cluster.example")
    first, second = unique_name(), unique_name()
    assert first != second
    assert first.startswith(f"node-3-cluster-example~{os.getpid()}-")
    assert "." not in first


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127])
def test_a_file_whose_name_is_as_long_as_names_may_be_is_written(tmp_path, name):
    write_bytes(tmp_path / name, b"content")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"content")]


@pytest.mark.parametrize("text", ["a: [1", "a: 1\na: 2", "!!bool maybe", "!!int ''", "!!timestamp soon", "2024-13-01"])
def test_invalid_yaml_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_yaml(text)
