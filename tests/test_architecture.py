"""Imports follow the table in docs/architecture.md, and no modules import each other in a circle."""

import ast
from pathlib import Path

import xd3d

ROOT = Path(xd3d.__file__).resolve().parent
#: Package -> the packages that it may import, beside itself and the modules at the top.
ALLOWED = {
    "cache": set(),
    "stages.datasets": set(),
    "stages.synthesize": {"stages.datasets", "stages.extract"},
    "stages.extract": {"cache", "stages.datasets"},
    "stages.train": {"cache", "stages.datasets"},
    "stages.evaluate": {"stages.datasets"},
    "stages.predict": {"cache", "stages.datasets", "stages.train", "stages.evaluate"},
    "stages.adapt": {"stages.datasets", "stages.train", "stages.evaluate"},
}


def modules(*, lazy):
    """Dotted name of every module -> the imported names; with ``lazy`` also those in functions and conditions."""
    found = {}
    for package in ("", "cache", "stages", "pipeline"):
        for path in (ROOT / package).rglob("*.py") if package else ROOT.glob("*.py"):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: sorted(set(imported(name, path, found.keys(), lazy))) for name, path in found.items()}


def imported(name, path, known, lazy):
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    tree = ast.parse(path.read_text())
    later = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.If)]
    skipped = set() if lazy else {id(inner) for node in later for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in skipped:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                full = ".".join([*base, alias.name])
                yield full if full in known else ".".join(base)


def package_of(module):
    return next((package for package in [*ALLOWED, "pipeline"] if f"{module}.".startswith(f"{package}.")), "")


def test_packages_import_only_what_the_table_allows():
    found = [
        f"{name} imports {other}"
        for name, others in modules(lazy=True).items()
        for other in others
        if (ours := package_of(name)) in ALLOWED
        and (theirs := package_of(other)) not in {ours, ""}
        and theirs not in ALLOWED[ours]
    ]
    assert found == []


def test_no_modules_import_each_other_in_a_circle():
    graph, done, circles = modules(lazy=False), set(), []

    def visit(name, above):
        if name in above:
            circles.append(" -> ".join([*above[above.index(name) :], name]))
        elif name not in done:
            for other in graph.get(name, ()):
                if other and other != name:
                    visit(other, [*above, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    assert circles == []


def test_the_docs_name_every_package():
    text = (ROOT / "docs/architecture.md").read_text()
    for package in ALLOWED:
        assert f"`{package}`" in text
