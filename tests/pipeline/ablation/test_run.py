"""The ablation as processes: killed, damaged and taken up again, it ends with the rows of an unbroken one."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from xd3d.errors import DataError
from xd3d.pipeline.ablation.plan import STREETS, Benchmark, Request, plan_trainings
from xd3d.pipeline.ablation.results import publish
from xd3d.pipeline.ablation.rows import RowFile
from xd3d.pipeline.ablation.run import _Child, _next_ready, _steps, run_ablation
from xd3d.pipeline.ablation.variants import VARIANTS
from xd3d.pipeline.workspace import Workspace

QUICK = (
    "extract.image_size=[48,80]",
    "extract.taps=[up1]",
    "extract.agents.count=4",
    "extract.agents.rounds=1",
    "model.preset=slim",
    "train.steps=3",
    "train.batch_size=1",
    "train.validate_every=3",
    "train.checkpoint_every=1",
    "fusion.tokens=8",
    "fusion.query_channels=16",
    "data.validate_on=target",
)


def benchmark(root: Path) -> Benchmark:
    shifts = {"city": "singapore", "night": "night"}
    return Benchmark(source="usa", shifts=shifts, development={"all": "all"}, root=root, overrides=QUICK)


def ablate(out: Path, root: Path):
    request = Request(variants=[VARIANTS["3d-only"]], shifts=["city", "night"], seeds=[1, 2])
    return run_ablation(out, benchmark(root), request, processes=2)


def rows_of(out: Path) -> list[dict]:
    """The finished rows in a fixed order, without what two runs differ in."""
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return sorted(kept, key=lambda row: (row["seed"], row["shift"]))


def start_and_kill(out: Path, root: Path) -> None:
    """Start the ablation in a process and kill it with SIGKILL as soon as both runs began and one has a checkpoint."""
    code = (
        "import sys, importlib.util, pathlib;"
        f"spec = importlib.util.spec_from_file_location('again', {__file__!r});"
        "again = importlib.util.module_from_spec(spec); spec.loader.exec_module(again);"
        "again.ablate(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(out), str(root)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    try:
        while not (
            list(out.glob("work/runs/*/checkpoints/step-*")) and len(list(out.glob("work/runs/*/run.json"))) == 2
        ):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        code = process.wait()
    assert code == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_damaged_and_resumed_it_ends_with_the_rows_of_an_unbroken_one(tmp_path, tiny_nuscenes_root):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert ablate(unbroken, tiny_nuscenes_root).exit_code == 0
    start_and_kill(broken, tiny_nuscenes_root)
    assert json.loads((broken / "results.json").read_text())["rows"] == []
    (record,) = broken.glob("work/runs/3d-only-seed2-*/run.json")
    whole = record.read_bytes()
    record.write_bytes(whole[:-40])

    partly = ablate(broken, tiny_nuscenes_root)
    assert partly.exit_code == 1
    ((name, reason),) = partly.result["failed"].items()
    assert (name, "damaged" in reason) == (record.parent.name, True)
    assert [row["seed"] for row in rows_of(broken)] == [1, 1]
    assert name in (broken / "results.md").read_text()

    record.write_bytes(whole)
    assert ablate(broken, tiny_nuscenes_root).exit_code == 0
    assert rows_of(broken) == rows_of(unbroken)
    assert [(row["seed"], row["shift"]) for row in rows_of(broken)] == [
        (1, "city"),
        (1, "night"),
        (2, "city"),
        (2, "night"),
    ]
    before = (broken / "rows.jsonl").read_bytes()
    assert ablate(broken, tiny_nuscenes_root).exit_code == 0
    assert (broken / "rows.jsonl").read_bytes() == before


def test_trainings_that_start_from_one_run_wait_only_until_it_is_trained(tmp_path):
    request = Request(variants=[VARIANTS["uda"]], shifts=["city", "night"], seeds=[1])
    one, other = plan_trainings(STREETS, request, "data", ())
    workspace, process = Workspace(home=tmp_path), get_context("spawn").Process()
    active = [_Child(training=one, process=process, result=tmp_path / "result", log=tmp_path / "log")]
    assert one.init.run == other.init.run
    assert _next_ready(workspace, [other], active) is None
    (workspace.run(one.init.run) / "checkpoints" / "step-00001200").mkdir(parents=True)
    assert _next_ready(workspace, [one, other], active) is other
    assert _steps(one) == {one.run: 400, one.init.run: 1200}


FIRST, SECOND = (Request(variants=[VARIANTS["3d-only"]], shifts=["city"], seeds=[seed]) for seed in (1, 2))


@pytest.fixture(scope="module")
def ablated(tmp_path_factory, tiny_nuscenes_root):
    """Ablations of one row: ``one`` with its published ``docs``, and ``two`` of another seed. Read only."""
    folder = tmp_path_factory.mktemp("ablated")
    run_ablation(folder / "one", benchmark(tiny_nuscenes_root), FIRST, processes=1, docs=folder / "docs")
    shutil.copytree(folder / "one/work", folder / "two/work", ignore=shutil.ignore_patterns("runs"))
    run_ablation(folder / "two", benchmark(tiny_nuscenes_root), SECOND, processes=1)
    return folder


@pytest.fixture
def copied(ablated, tmp_path):
    """A copy of these to work in."""
    return Path(shutil.copytree(ablated, tmp_path / "copied"))


def test_another_machine_resumes_from_the_published_rows(copied, tiny_nuscenes_root):
    docs, there = copied / "docs", copied / "there"
    (published,) = json.loads((docs / "results.json").read_text())["rows"]
    run_ablation(there, benchmark(tiny_nuscenes_root), FIRST, processes=1, docs=docs)
    assert not list(there.glob("work/runs/*"))
    shutil.copytree(copied / "two/work", there / "work", dirs_exist_ok=True)
    run_ablation(there, benchmark(tiny_nuscenes_root), SECOND, processes=1, docs=docs)
    assert [row["seed"] for row in rows_of(there)] == [1, 2]
    assert json.loads((docs / "results.json").read_text())["rows"][0] == published


def test_published_rows_of_other_settings_are_not_thrown_away(copied, tiny_nuscenes_root):
    docs = copied / "docs"
    published = (docs / "results.json").read_bytes(), (docs / "results.md").read_bytes()
    others = replace(FIRST, overrides=("train.lr=0.01",))
    with pytest.raises(DataError, match=r"holds 1 rows.*settings.*another --docs"):
        run_ablation(copied / "one", benchmark(tiny_nuscenes_root), others, processes=1, docs=docs)
    assert ((docs / "results.json").read_bytes(), (docs / "results.md").read_bytes()) == published


def test_rows_that_another_ablation_publishes_meanwhile_stay(copied, tiny_nuscenes_root):
    docs, out, plan = copied / "docs", copied / "two", benchmark(tiny_nuscenes_root)
    rows, data = RowFile(out / "rows.jsonl"), plan.prepare(out, Workspace(home=out / "work"))
    assert len(publish(plan, SECOND, data, rows, {}, out=out, docs=docs).rows) == 2
    assert [row["seed"] for row in json.loads((docs / "results.json").read_text())["rows"]] == [1, 2]


@pytest.mark.parametrize("damage", ["{", '{"rows": []}', '{"rows": [{"shift": "city"}], "development": []}'])
def test_published_results_that_are_damaged_are_named_and_stay(tmp_path, tiny_nuscenes_root, damage):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "results.json").write_text(damage)
    with pytest.raises(DataError, match=r"results\.json"):
        run_ablation(tmp_path / "out", benchmark(tiny_nuscenes_root), FIRST, processes=1, docs=docs)
    assert (docs / "results.json").read_text() == damage
