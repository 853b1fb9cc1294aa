"""What every data set keeps to: the index names each file, frames load, and the usual mistakes get a clear answer."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from xd3d.errors import ConfigError, DataError, MissingDataError
from xd3d.stages.datasets.catalogue import DOMAINS
from xd3d.stages.datasets.frames import count_labels, load_frame
from xd3d.stages.datasets.index import FrameIndex
from xd3d.stages.datasets.labels import IGNORE, index_merge
from xd3d.stages.datasets.prepare import prepare_dataset
from xd3d.stages.datasets.readers import READERS, Reader
from xd3d.stages.datasets.splits import domain_frames


def index_of(case, root: Path, **options) -> FrameIndex:
    return READERS[case.dataset].build_index(root, **options)


def merge_of(case, index: FrameIndex):
    return index_merge(case.merge, index)


def labelled_row(index: FrameIndex) -> int:
    return int(np.flatnonzero(index.frames.labels != "")[0])


def lose_coordinates(path: Path, count: int) -> None:
    """Make x of the first ``count`` points NaN."""
    if path.suffix == ".npz":
        with np.load(path) as stored:
            arrays = dict(stored)
        arrays["points"][:count, 0] = np.nan
        np.savez(path, **arrays)
    elif path.suffix == ".npy":
        cloud = np.load(path)
        cloud[:count, 0] = np.nan
        np.save(path, cloud)
    else:
        columns = 5 if path.name.endswith(".pcd.bin") or "STF" in str(path).upper() else 4
        cloud = np.fromfile(path, np.float32).reshape(-1, columns)
        cloud[:count, 0] = np.nan
        cloud.tofile(path)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 | 1])


class TestContract:
    def test_the_reader_has_every_function(self, case):
        assert isinstance(READERS[case.dataset], Reader)

    def test_a_whole_root_becomes_an_index_that_names_every_file_once(self, case, root_of, tmp_path):
        summary = prepare_dataset(case.dataset, root_of(case.dataset), tmp_path / "index")
        assert summary.missing == ()
        index = FrameIndex.load(tmp_path / "index")
        assert index.digest == index_of(case, root_of(case.dataset)).digest
        assert index.dataset == case.dataset
        assert index.cameras == (() if case.camera is None else (case.camera,))
        assert len(set(index.frames.key.tolist())) == len(index.frames.key) == summary.frames
        assert len(set(index.images.key.tolist())) == len(index.images.key) == summary.images
        assert set(index.frames.split.tolist()) <= {"train", "val", "test"}
        for path in (*index.frames.sweep, *index.images.path, *index.frames.labels):
            assert not str(path).startswith("/")
            assert (index.root / str(path)).exists()

    def test_every_frame_loads_with_labels_and_places_in_its_image(self, case, root_of):
        index = index_of(case, root_of(case.dataset))
        merge = merge_of(case, index)
        seen = set()
        for row in range(len(index.frames.key)):
            frame = load_frame(index, row, merge)
            assert len(frame.points) > 50
            assert np.isfinite(frame.points).all()
            assert np.all(np.diff(frame.source_rows) > 0)
            seen |= set(frame.labels.tolist())
            if not index.frames.labels[row]:
                assert set(frame.labels.tolist()) == {IGNORE}
            if case.camera is None:
                assert len(frame.projection_uv) == len(frame.image_rows) == 0
            else:
                np.testing.assert_array_equal(frame.projection_point, np.arange(len(frame.points)))
                assert len(frame.image_rows) == 1
                assert frame.projection_uv.min() > 0
                assert frame.projection_uv.max() < 1
        assert seen <= {IGNORE, *range(len(merge.classes))}
        assert len(seen - {IGNORE}) >= 4
        assert count_labels(index, [labelled_row(index)], merge).sum() > 0

    def test_what_the_camera_sees_lies_ahead_when_the_points_face_it(self, case, root_of):
        index = index_of(case, root_of(case.dataset))
        frame = load_frame(index, 0, merge_of(case, index))
        facing = frame.facing(index)
        np.testing.assert_allclose(np.linalg.norm(facing, axis=1), np.linalg.norm(frame.points, axis=1), rtol=1e-5)
        if case.camera is None:
            np.testing.assert_array_equal(facing[:, 1], frame.points[:, 0])
        else:
            x, y, _ = facing[frame.projection_point].T
            assert (y > 0).mean() > 0.98
            assert np.corrcoef(x / y, frame.projection_uv[:, 0])[0, 1] > 0.9

    def test_every_point_and_no_image_keep_the_whole_sweep(self, case, root_of):
        index = index_of(case, root_of(case.dataset))
        points = len(READERS[case.dataset].read_sweep(index, 0).points)
        whole = load_frame(index, 0, merge_of(case, index), every_point=True)
        np.testing.assert_array_equal(whole.source_rows, np.arange(points))
        seen = load_frame(index, 0, merge_of(case, index))
        np.testing.assert_array_equal(
            whole.source_rows[whole.projection_point], seen.source_rows[seen.projection_point]
        )
        without = index_of(case, root_of(case.dataset), cameras="none")
        assert without.cameras == ()
        assert len(without.images.key) == 0
        np.testing.assert_array_equal(load_frame(without, 0, merge_of(case, index)).points, whole.points)

    def test_some_domain_can_be_trained_on(self, case, root_of):
        index = index_of(case, root_of(case.dataset))
        assert len(domain_frames(index, "all", "train"))
        assert "all" in DOMAINS[case.dataset]

    def test_a_root_one_level_off_is_reported_the_right_one(self, case, copy_of):
        root = copy_of(case.dataset)
        for wrong in (root.parent, root / case.inner):
            with pytest.raises(MissingDataError, match="--root") as caught:
                index_of(case, wrong)
            assert str(root) in str(caught.value).partition("--root")[2]

    def test_an_empty_root_and_one_that_is_not_there_say_what_is_expected(self, case, tmp_path):
        with pytest.raises(MissingDataError, match="--root"):
            index_of(case, tmp_path / "nothing")
        (tmp_path / "empty").mkdir()
        with pytest.raises(MissingDataError, match=case.download):
            index_of(case, tmp_path / "empty")

    def test_an_unknown_camera_is_refused(self, case, root_of):
        with pytest.raises(ConfigError, match="--cameras"):
            index_of(case, root_of(case.dataset), cameras="CAM_SIDE")

    @pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
    @pytest.mark.parametrize("kind", ["sweep", "labels", "image"])
    def test_a_damaged_file_is_named_with_its_remedy(self, case, copy_of, tmp_path, kind, damage):
        root = copy_of(case.dataset)
        index = index_of(case, root)
        if kind == "image" and case.camera is None:
            pytest.skip("the data set has no images")
        row = labelled_row(index)
        column = {"sweep": index.frames.sweep, "labels": index.frames.labels, "image": index.images.path}[kind]
        path = root / str(column[row])
        if damage == "gone":
            path.unlink()
        elif damage == "cut":
            cut(path)
        else:
            path.write_bytes(b"")
        summary = prepare_dataset(case.dataset, root, tmp_path / "index")
        assert path in [fault.path for fault in summary.missing]
        assert all("again" in fault.reason for fault in summary.missing)
        assert summary.index is None
        assert not (tmp_path / "index").exists()
        if kind != "image":
            with pytest.raises((DataError, MissingDataError), match=path.name):
                load_frame(index, row, merge_of(case, index))

    def test_points_without_coordinates_are_counted_and_a_sweep_of_them_is_refused(
        self, case, copy_of, tmp_path, caplog
    ):
        root = copy_of(case.dataset)
        index = index_of(case, root)
        path = root / str(index.frames.sweep[0])
        points = len(READERS[case.dataset].read_sweep(index, 0).points)
        lose_coordinates(path, points // 50)
        assert prepare_dataset(case.dataset, root, tmp_path / "index").missing == ()
        assert re.search(rf"\b{points // 50} points .* in 1 files", caplog.text)
        whole = load_frame(index, 0, merge_of(case, index), every_point=True)
        assert (len(whole.points), whole.dropped) == (points - points // 50, points // 50)
        lose_coordinates(path, points - points // 3)
        (fault,) = prepare_dataset(case.dataset, root, tmp_path / "index").missing
        assert fault.path == path
        assert f"only {points // 3} of its {points} points" in fault.reason

    def test_an_image_of_another_size_is_named_with_both_sizes(self, case, copy_of, tmp_path):
        if case.camera is None:
            pytest.skip("the data set has no images")
        root = copy_of(case.dataset)
        index = index_of(case, root)
        path = root / str(index.images.path[1])
        Image.new("RGB", (40, 30)).save(path)
        faults = {fault.path: fault.reason for fault in prepare_dataset(case.dataset, root, tmp_path).missing}
        assert "40x30 pixels" in faults[path]
        assert "{}x{}".format(*index.images.size[1]) in faults[path]

    def test_hidden_files_and_copies_are_no_frames(self, case, copy_of, tmp_path, caplog):
        root = copy_of(case.dataset)
        digest = index_of(case, root).digest
        index = index_of(case, root)
        for path in [each for each in root.rglob("*") if each.is_file()]:
            (path.parent / f"._{path.name}").write_bytes(b"\0" * 4096)
        for column in (index.frames.sweep, index.images.path):
            if len(column):
                path = root / str(column[0])
                for name in ("{} (1)", "{} copy", "{} (conflicted copy 2024-05-01)", "{}.sync-conflict-20240501-1-AB"):
                    path.with_name(name.format(path.stem) + path.suffix).write_bytes(b"\0" * 17)
        summary = prepare_dataset(case.dataset, root, tmp_path / "index")
        assert summary.missing == ()
        assert FrameIndex.load(tmp_path / "index").digest == digest
        assert case.dataset == "nuscenes" or "copies" in caplog.text

    def test_a_download_without_labels_is_noticed(self, case, copy_of, tmp_path):
        root = copy_of(case.dataset)
        index = index_of(case, root)
        folder = (root / str(index.frames.labels[labelled_row(index)])).parent
        shutil.rmtree(folder)
        assert str(folder) in _complaint(case, root, tmp_path)


def _complaint(case, root: Path, folder: Path) -> str:
    """What ``prepare`` says of a root, as an error or as a list of faults."""
    try:
        return "\n".join(map(str, prepare_dataset(case.dataset, root, folder).missing))
    except MissingDataError as error:
        return str(error)
