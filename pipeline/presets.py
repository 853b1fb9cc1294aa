"""Lists the presets: published settings and tasks, and whether their data are prepared in the workspace."""

from typing import Any

from .config import load_config, preset_names
from .console import Outcome
from .workspace import Workspace

__all__ = ["TASKS", "list_presets"]

#: Generalisation, adaptation, adaptation with pseudo labels, and adaptation without the source.
TASKS = ("dg", "uda", "uda_pl", "sfda")


def list_presets(workspace: Workspace) -> Outcome:
    """Returns all presets by name; for published settings also the shift and which data sets are prepared."""
    names = sorted(preset_names(), key=lambda name: (name.startswith("ablation/"), "/" in name, name))
    settings = [_describe(workspace, name) for name in names if _is_setting(name, names)]
    notes = {setting["name"]: _note(setting["prepared"]) for setting in settings}
    width = max(map(len, names))
    lines = [f"{name:{width}}  {notes.get(name, '')}".rstrip() for name in names]
    return Outcome(result={"presets": names, "settings": settings}, text="\n".join(lines))


def _is_setting(name: str, names: list[str]) -> bool:
    setting, _, task = name.partition("/")
    return task in TASKS and f"{setting}/dg" in names


def _describe(workspace: Workspace, name: str) -> dict[str, Any]:
    setting, _, task = name.partition("/")
    data = load_config(name).config.data
    sides = {side.dataset: workspace.index(side.dataset) for side in (data.source, data.target)}
    return {
        "name": name,
        "setting": setting,
        "task": task,
        "source": data.source.model_dump(),
        "target": data.target.model_dump(),
        "merge": data.merge,
        "prepared": {dataset: (index / "index.json").is_file() for dataset, index in sides.items()},
    }


def _note(prepared: dict[str, bool]) -> str:
    missing = [dataset for dataset, there in prepared.items() if not there]
    return f"not prepared: {', '.join(missing)}" if missing else "prepared"
