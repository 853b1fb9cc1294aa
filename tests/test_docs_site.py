"""The documentation site builds without a warning, and its reference pages hold every command and setting."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from xd3d.pipeline.config import Config
from xd3d.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def words(page):
    """The text of a page without tags."""
    return re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8"))


def keys(settings, prefix=""):
    """The dotted keys of all settings."""
    for name, field in settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_setting_is_in_the_reference(site):
    text = words(site / "reference/settings/index.html")
    assert [key for key in keys(Config) if key not in text.split()] == []


@pytest.mark.parametrize(
    "command", ["prepare", "extract-features", "train", "evaluate", "cache verify", "models fetch"]
)
def test_commands_are_in_the_reference_with_their_options(site, command):
    assert f"xd3d {command}" in words(site / "reference/commands/index.html")


def test_the_python_functions_and_the_notebook_are_shown(site):
    import xd3d

    page = site / "python/index.html"
    for name in set(xd3d.__all__) - {"__version__"}:
        assert f'id="xd3d.{name}"' in page.read_text(encoding="utf-8")
    assert "camera_from_lidar [4, 4] maps points" in " ".join(words(page).split())
    notebook = (site / "tutorial/index.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<img [^>]*src="data:image/png', notebook)) == 3


def test_every_page_is_in_the_navigation_or_linked(site):
    html = "".join(page.read_text(encoding="utf-8") for page in site.rglob("*.html"))
    pages = [page.parent.name for page in site.rglob("index.html") if page.parent != site]
    assert [page for page in pages if f"{page}/" not in html] == []
