"""Every code block of the documentation: commands have the options and settings that they name, Python blocks run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from xd3d.pipeline.config import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
}
#: Pages whose Python blocks run elsewhere.
TESTED_IN = {
    "docs/caches.md": "tests/cache/test_loader.py",
    "docs/cluster.md": "tests/test_cluster_docs.py",
    "docs/predict.md": "tests/pipeline/test_predict_sweeps.py",
    "docs/python.md": "tests/test_api.py",
    "CONTRIBUTING.md": "tests/test_recipes.py",
}
TESTED_HERE = {"docs/first-hour.md", "docs/tiny-street.md"}
MAIN = "from xd3d.pipeline.cli import main; main()"
#: A long training is cut short, and the city is small.
SHORT = {"120": "24"}
QUICK = ["--set", "train.steps=2", "--set", "train.milestones=[2]"]


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", PAGES[page], flags=re.DOTALL | re.MULTILINE)


def commands(text):
    """The ``xd3d`` commands of blocks, without comments and the brackets around what may be left out."""
    fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        fenced ^= line.lstrip().startswith("```")
        found = re.match(r"(torchrun .* -m )?(xd3d .*)", line.strip())
        if found and (fenced or line.startswith("    ")):
            command = re.split(r" +#|  +(?![-'])", found[2])[0]
            yield from re.sub(r" \[([^]=]*)\]", r" \1", command).split(" && ")


def inline(text):
    """The commands within sentences."""
    return re.findall(r"`(xd3d(?: [^`\n]+)?)`", text)


def parsed(command, *, complete):
    """The parameters that the command line reads from ``command``, and the parts of its name."""
    import typer
    from xd3d.pipeline.cli import app

    found, words, names = typer.main.get_command(app), shlex.split(command)[1:], []
    while hasattr(found, "commands") and words and not words[0].startswith("-"):
        assert words[0] in found.commands, f"{command}: there is no command {words[0]}"
        names.append(words.pop(0))
        found = found.commands[names[-1]]
    if words == ["--help"] or hasattr(found, "commands"):
        return {}, names
    try:
        return found.make_context(names[-1], words).params, names
    except Exception as error:
        if complete or type(error).__name__ != "MissingParameter":
            raise AssertionError(f"{command}: {error}") from error
        return {}, names


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if [*commands(text), *inline(text)]])
def test_commands_have_the_options_and_settings_that_a_page_names(page):
    for command in commands(PAGES[page]):
        given, _ = parsed(command, complete=True)
        config = given.get("config", "...")
        if config != "..." and not config.endswith(".yaml"):  # such a file is one of the reader's
            changes = [re.sub(r"=N$", "=1", change) for change in given.get("overrides") or []]
            load_config(config, changes)
    for command in inline(PAGES[page]):
        parsed(command, complete=False)


def test_an_option_or_a_command_that_does_not_exist_is_found():
    for wrong in ("xd3d trian", "xd3d train --caches", "xd3d cache verify", "xd3d evaluate --split tset"):
        with pytest.raises(AssertionError, match=wrong):
            parsed(wrong, complete=True)


def test_every_python_block_runs_in_a_test():
    pages = {page for page in PAGES if python_blocks(page)}
    assert pages == {*TESTED_IN, *TESTED_HERE}
    for page, test in TESTED_IN.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")


def test_every_script_and_target_that_a_page_names_is_there():
    text = "\n".join(PAGES.values())
    scripts = set(re.findall(r"python (tests/[\w/]+\.py)", text))
    assert scripts
    assert [name for name in sorted(scripts) if not (ROOT / name).is_file()] == []
    targets = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([\w./-]+)`", text)) <= targets


def run(command, folder):
    environment = {**os.environ, "XD3D_HOME": str(folder / "xd3d-work"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_first_hour_runs_block_by_block(tmp_path):
    """The Python blocks go on in one session."""
    text, python = PAGES["docs/first-hour.md"], ""
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if language == "python":
            python += block
            assert run([sys.executable, "-c", python], tmp_path)
            continue
        for command in map(shlex.split, block.splitlines()):
            words = [SHORT.get(word, word) for word in command[1:]]
            run([sys.executable, "-c", MAIN, *words, *(QUICK if words[0] == "train" else [])], tmp_path)
    assert {"points.png", "report.html", "labels", "labels-alone"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_the_bundled_model_draws_a_picture(tmp_path):
    (block,) = python_blocks("docs/tiny-street.md")
    assert json.loads(run([sys.executable, "-c", block + "print([*image.size])"], tmp_path)) == [400, 224]


def test_the_notebook_holds_its_outputs_and_they_are_small():
    cells = json.loads((ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    assert (ROOT / "docs/tutorial.ipynb").stat().st_size < 1e6
    assert [cell["id"] for cell in cells[2:] if cell["cell_type"] == "code" and not cell["outputs"]] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_runs(tmp_path):
    from tutorial_notebook import execute

    outputs = [output for cell in execute(tmp_path).cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
