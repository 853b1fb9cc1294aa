"""Every published setting and task from its data root to its score, on synthetic twins."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from xd3d.pipeline import jobs
from xd3d.pipeline.config import load_config, preset_names
from xd3d.pipeline.pseudo_labels import pseudo_label
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.synthesize.synthesize import synthesize
from xd3d.stages.synthesize.twins import synthesize_twin
from xd3d.stages.train.run_log import read_log

#: Tasks of a published setting: generalisation, adaptation, with pseudo labels too, and without the source.
TASKS = ("dg", "uda", "uda_pl", "sfda")
SETTINGS = sorted({name.partition("/")[0] for name in preset_names() if name.endswith("/dg")})
#: together they read each data set
EVERY_DATASET = (
    "a2d2_semantic_kitti",
    "nuscenes_usa_singapore",
    "synlidar_semantic_stf",
    "virtual_kitti_semantic_kitti",
)
TINY = (
    "extract.model=tiny-street",
    "extract.taps=[up1,rgb]",
    "extract.image_size=[48,64]",
    "extract.image_sizes={a2d2: [48, 64]}",
    "extract.agents.count=4",
    "model.preset=slim",
    "model.voxel_size=0.2",
    "fusion.tokens=4",
    "fusion.query_channels=16",
    "fusion.image_channels=8",
    "train.batch_size=1",
    "train.workers=0",
    "train.milestones=[1]",
)


class Bench:
    """A workspace that prepares and extracts a data set when a setting first asks for it."""

    def __init__(self, home: Path, roots: Callable[[str], Path], changes: tuple[str, ...]) -> None:
        self.workspace, self._changes = Workspace(home=home), changes
        self._roots = roots
        self._prepare, self._extracted = cache(self._prepare_once), set()

    def _prepare_once(self, dataset: str) -> bool:
        """Index a data set; whether it has images."""
        done = jobs.prepare(dataset, self._roots(dataset), version=None, cameras=None, workspace=self.workspace)
        assert done.exit_code == 0, done.text
        return done.result["images"] > 0

    def prepare(self, dataset: str, name: str) -> None:
        """Index a data set, and extract its features at the size of images that the preset ``name`` asks for."""
        size = load_config(name, self._changes).config.extract.for_dataset(dataset).image_size
        if not self._prepare(dataset) or (dataset, size) in self._extracted:
            return
        done = jobs.extract_features(dataset, name, self._changes, None, retry_failed=False, workspace=self.workspace)
        assert done.exit_code == 0, done.text
        self._extracted.add((dataset, size))

    def walk(self, setting: str, tasks: Sequence[str], steps: int) -> dict[str, dict]:
        """The tasks that ``setting`` has, in the order in which they build on each other: the score of each."""
        scores, runs = {}, {}
        for task in [task for task in tasks if f"{setting}/{task}" in preset_names()]:
            name = f"{setting}/{task}"
            changes = [*self._changes, f"train.steps={steps}", f"train.validate_every={steps}"]
            config = load_config(name).config
            if config.augment.crop and self._changes is TINY:
                changes.append("augment.crop=[38,25]")
            for side in (config.data.source, config.data.target):
                self.prepare(side.dataset, name)
            if task == "uda_pl":
                pseudo_label(Path(runs["uda"]), workspace=self.workspace)
            if task == "sfda":
                changes.append(f"train.init={Path(runs['uda']).name}")
            trained = jobs.train(name, changes, cached=True, run=None, workspace=self.workspace).result
            runs[task] = trained["run"]
            scores[task] = jobs.evaluate(
                None, split=None, domain="target", absent=None, workspace=self.workspace
            ).result
            assert scores[task]["protocol"]["checkpoint"] == runs[task]
            assert trained["best"] is None or (scores[task]["miou"]["xm"] is None) == ("3d" in trained["best"])
            terms = read_log(Path(runs[task]))[0].keys()
            assert ("xm_2d_target" in terms, "pl_3d" in terms) == (task != "dg", task in ("uda_pl", "sfda"))
        return scores


@pytest.fixture(scope="module")
def bench(twin_of, tmp_path_factory) -> Bench:
    """Twins of a few frames."""
    return Bench(tmp_path_factory.mktemp("settings"), twin_of, TINY)


@pytest.mark.parametrize(
    "setting", [name if name in EVERY_DATASET else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]
)
def test_every_task_of_a_setting_goes_from_its_root_to_a_score(bench, setting):
    tested_without_a_camera = setting.endswith("semantic_stf")
    scores = bench.walk(setting, TASKS[:3], steps=1)
    assert set(scores) >= ({"dg"} if tested_without_a_camera else {"dg", "uda", "uda_pl"})
    for score in scores.values():
        assert score["points"] > 100
        assert score["miou"]["3d"] is not None
        assert (score["miou"]["xm"] is None) == tested_without_a_camera


@pytest.fixture(scope="module")
def large_bench(tmp_path_factory) -> Bench:
    """Larger twins, images of the published sizes and the published crops; the slim network."""
    changes = ("extract.model=tiny-street", "model.preset=slim", "train.batch_size=2", "train.milestones=[3]")
    folder = tmp_path_factory.mktemp("settings in full")

    def root(dataset: str) -> Path:
        if dataset == "nuscenes":
            return synthesize(folder / dataset, frames=48, seed=0, cameras="CAM_FRONT")
        return synthesize_twin(folder / dataset, dataset=dataset, frames=16)

    return Bench(folder / "work", root, changes)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_task_of_a_setting_in_full(large_bench, setting):
    for score in large_bench.walk(setting, TASKS, steps=4).values():
        assert score["points"] > 1000
        assert score["miou"]["3d"] > 0
