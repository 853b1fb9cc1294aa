"""The code version names the release and follows the source."""

import re

from xd3d import __version__, version


def test_code_version_names_release_and_source():
    assert re.fullmatch(re.escape(__version__) + r"\+[0-9a-f]{8}", version.code_version())


def test_code_version_follows_the_source(tmp_path, monkeypatch):
    (tmp_path / "stages").mkdir()
    source = tmp_path / "stages" / "a.py"
    monkeypatch.setattr(version, "_PACKAGE", tmp_path)
    seen = set()
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        source.write_text(text)
        version.code_version.cache_clear()
        seen.add(version.code_version())
    version.code_version.cache_clear()
    assert len(seen) == 2
