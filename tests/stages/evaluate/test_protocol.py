"""The protocol of a score: code version and values that survive JSON."""

import re

from xd3d import __version__
from xd3d.stages.evaluate import protocol


def test_code_version_names_release_and_source():
    assert re.fullmatch(re.escape(__version__) + r"\+[0-9a-f]{8}", protocol.code_version())


def test_code_version_follows_the_source(tmp_path, monkeypatch):
    (tmp_path / "stages").mkdir()
    source = tmp_path / "stages" / "a.py"
    monkeypatch.setattr(protocol, "_PACKAGE", tmp_path)
    seen = set()
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        source.write_text(text)
        protocol.code_version.cache_clear()
        seen.add(protocol.code_version())
    protocol.code_version.cache_clear()
    assert len(seen) == 2
