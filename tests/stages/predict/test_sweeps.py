"""Label files for sweeps: the network's own answer at every point, whatever the file's format, and what is refused."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from xd3d.errors import ConfigError, MissingDataError, RunError
from xd3d.stages.predict import sweeps
from xd3d.stages.predict.inference import predict_frames
from xd3d.stages.predict.label_form import CLOUD_SUFFIX, LabelForm
from xd3d.stages.predict.sweeps import find_sweeps, label_path, label_sweeps, read_labels

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def network(make_domain, make_network):
    """A network with a camera branch and a LiDAR-only one."""
    return make_network(make_domain(frames=1)).eval()


@pytest.fixture
def write_sweeps(tmp_path):
    """Write clouds as ``.bin`` files of one folder; the folder."""

    def write(*clouds):
        folder = tmp_path / "sweeps"
        folder.mkdir(exist_ok=True)
        for number, cloud in enumerate(clouds):
            np.column_stack([cloud, np.zeros(len(cloud))]).astype(np.float32).tofile(folder / f"{number:06d}.bin")
        return folder

    return write


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    return folder


def cloud(seed, points=200):
    """All around the sensor, behind it too."""
    return np.random.default_rng(seed).uniform([-9, -9, -1.5], [9, 9, 1.5], (points, 3)).astype(np.float32)


@pytest.mark.parametrize("form", ["default", "paper"])
def test_labels_are_those_that_evaluation_predicts_without_images(
    make_domain, make_network, tiny_domains, paper, out, form
):
    domain = make_domain(frames=2)  # its camera sees every point
    blind = tiny_domains.open_domain(domain.index.root, frames=2, lidar_only=True)
    network = make_network(domain, **({"head": "distil", **paper} if form == "paper" else {})).eval()
    sweeps = [domain.index.root / f"{number}.bin" for number in range(2)]
    done = label_sweeps(network, sweeps, out, columns=5)
    assert (done.labelled, done.kept, done.points, done.failed) == (2, 0, 600, ())
    # what the paper's form predicts needs no image even where there is one
    for sweep, expected in zip(sweeps, predict_frames(network, domain if form == "paper" else blind), strict=True):
        content = label_path(out, sweep).read_bytes()
        np.testing.assert_array_equal(np.frombuffer(content, "<u4"), expected.probabilities_3d.argmax(1) + 1)


def test_every_point_around_the_sensor_has_a_label_in_the_order_of_the_file(network, write_sweeps, out):
    points = cloud(0)
    order = np.random.default_rng(1).permutation(len(points))
    folder = write_sweeps(points, points[order])
    label_sweeps(network, find_sweeps(folder), out)
    first, second = (read_labels(out / f"{number:06d}.label") for number in range(2))
    assert len(first) == len(points)
    assert set(first.tolist()) <= set(range(1, 7))
    assert (first[order] == second).mean() > 0.99  # sums in another order may tip a point between two classes


@pytest.mark.parametrize("name", ["a.pcd.bin", "a.npy", "a.ply"])
def test_the_format_of_the_file_makes_no_difference(network, write_sweeps, out, tmp_path, name):
    points = cloud(2)
    sweep = tmp_path / name
    if name == "a.ply":
        head = "ply\nformat binary_little_endian 1.0\nelement vertex 200\n"
        sweep.write_bytes((head + "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n").encode())
        sweep.write_bytes(sweep.read_bytes() + points.tobytes())
    elif name == "a.npy":
        np.save(sweep, points)
    else:
        np.column_stack([points, np.ones((200, 2), np.float32)]).tofile(sweep)
    label_sweeps(network, [*find_sweeps(write_sweeps(points)), *find_sweeps(sweep)], out)
    assert (out / "a.label").read_bytes() == (out / "000000.label").read_bytes()


def test_a_point_without_coordinates_has_label_0_and_the_others_do_not_notice(network, write_sweeps, out, caplog):
    points = cloud(3)
    holes = np.insert(points, [5, 60, 200], [[np.nan, 0, 0], [0, 0, 0], [0, -np.inf, np.nan]], axis=0)
    done = label_sweeps(network, find_sweeps(write_sweeps(points, holes)), out)
    assert done.dropped == 3
    assert "3 of 403 points" in caplog.text
    plain, holed = read_labels(out / "000000.label"), read_labels(out / "000001.label")
    assert np.flatnonzero(holed == 0).tolist() == [5, 61, 202]
    np.testing.assert_array_equal(holed[holed > 0], plain)


def test_a_point_beyond_the_training_cube_is_labelled_where_it_is(make_domain, make_network, write_sweeps, out):
    domain = make_domain(frames=1)
    network = make_network(domain, variant="3d-only").eval()
    points = cloud(4)
    near = np.concatenate([points, cloud(5, 50) + np.float32([120, 0, 0])])
    far = np.concatenate([points, cloud(5, 50) + np.float32([2000, 0, 0])])
    label_sweeps(network, find_sweeps(write_sweeps(near, far)), out)
    first, second = read_labels(out / "000000.label"), read_labels(out / "000001.label")
    assert (first == second).mean() > 0.95


def test_a_raw_file_of_other_columns_has_a_label_for_each_point(network, out, tmp_path, caplog):
    points = cloud(3, points=2000)
    rng = np.random.default_rng(0)
    rows = np.column_stack([points, rng.uniform(0, 255, 2000), rng.integers(0, 32, 2000)]).astype(np.float32)
    rows.tofile(tmp_path / "a.bin")
    rows.tofile(tmp_path / "b.pcd.bin")
    label_sweeps(network, find_sweeps(tmp_path), out)
    assert (out / "a.label").read_bytes() == (out / "b.label").read_bytes()
    assert len(read_labels(out / "a.label")) == 2000
    assert "--columns" in caplog.text


def test_finished_files_are_kept_and_those_older_than_their_sweep_are_not(network, write_sweeps, out):
    folder = write_sweeps(cloud(6), cloud(7), cloud(8), cloud(9))
    sweeps = find_sweeps(folder)
    (folder / "old").write_bytes(sweeps[0].read_bytes())
    os.utime(folder / "old", (0, 0))
    label_sweeps(network, sweeps[:3], out)
    kept = label_path(out, sweeps[0]).stat()
    later = label_path(out, sweeps[1]).stat().st_mtime_ns + 1
    os.utime(sweeps[1], ns=(later, later))
    (folder / "old").replace(sweeps[2])
    done = label_sweeps(network, sweeps, out)
    assert (done.labelled, done.kept) == (3, 1)
    assert label_path(out, sweeps[0]).stat() == kept


def test_a_sweep_that_cannot_be_read_is_reported_and_the_others_are_done(network, write_sweeps, out):
    folder = write_sweeps(cloud(9), cloud(10), np.full((4, 3), np.nan))
    (folder / "000000.bin").write_bytes(b"\0" * 19)
    done = label_sweeps(network, find_sweeps(folder), out)
    assert done.labelled == 1
    assert [fault.path.name for fault in done.failed] == ["000000.bin", "000002.bin"]
    assert "19 bytes" in done.failed[0].reason
    assert "not one of its 4 points" in done.failed[1].reason
    assert [path.name for path in out.glob("*.label")] == ["000001.label"]


def test_a_sweep_whose_labels_have_no_place_is_reported_and_the_others_are_done(network, write_sweeps, out):
    folder = write_sweeps(cloud(9), cloud(10))
    (folder / "loop.bin").symlink_to("loop.bin")
    (folder / "below.bin").symlink_to(folder / "000000.bin" / "below")
    (folder / ("x" * 251 + ".bin")).write_bytes((folder / "000000.bin").read_bytes())
    (out / "000000.label").mkdir()
    done = label_sweeps(network, find_sweeps(folder), out)
    assert (done.labelled, len(done.failed)) == (1, 4)
    assert len(read_labels(out / "000001.label")) == 200


def test_labels_of_a_folder_that_was_exchanged_for_another_are_not_kept(network, write_sweeps, out, tmp_path):
    folder = write_sweeps(cloud(9))
    second = tmp_path / "second"
    folder.rename(second)
    write_sweeps(cloud(10, points=77))
    label_sweeps(network, find_sweeps(second), out)
    folder.rename(tmp_path / "third")
    second.rename(folder)
    assert label_sweeps(network, find_sweeps(folder), out).kept == 1
    folder.rename(second)
    (tmp_path / "third").rename(folder)
    done = label_sweeps(network, find_sweeps(folder), out)
    assert (done.labelled, len(read_labels(out / "000000.label"))) == (1, 77)


def test_a_coloured_cloud_of_an_earlier_sweep_is_made_again(network, write_sweeps, out):
    sweeps = find_sweeps(write_sweeps(cloud(9)))
    plain = LabelForm.of(network.classes)
    coloured = replace(plain, palette=np.zeros((len(plain.numbers), 3), np.uint8))
    label_sweeps(network, sweeps, out, form=coloured)
    write_sweeps(cloud(10, points=77))
    label_sweeps(network, sweeps, out, form=plain)
    assert label_sweeps(network, sweeps, out, form=plain).kept == 1
    label_sweeps(network, sweeps, out, form=coloured)
    assert b"element vertex 77" in label_path(out, sweeps[0]).with_suffix(CLOUD_SUFFIX).read_bytes()
    assert label_sweeps(network, sweeps, out, form=coloured).kept == 1


def test_a_note_that_a_kill_cut_short_costs_one_sweep(network, write_sweeps, out):
    sweeps = find_sweeps(write_sweeps(cloud(9), cloud(10), cloud(11)))
    label_sweeps(network, sweeps, out)
    notes = out / "labelled.jsonl"
    notes.write_bytes(notes.read_bytes()[:-9])
    assert label_sweeps(network, sweeps, out).kept == 2
    assert label_sweeps(network, sweeps, out).kept == 3


@pytest.mark.parametrize("suffix", [".npy", ".ply"])
def test_a_cloud_of_doubles_far_from_its_origin_has_the_labels_of_the_same_cloud_at_home(
    network, write_sweeps, out, tmp_path, suffix
):
    points = cloud(12).round(3)
    far = points.astype(np.float64) + np.array([500_000, 5_400_000, 100])
    sweep = tmp_path / f"far{suffix}"
    if suffix == ".npy":
        np.save(sweep, far)
    else:
        head = "ply\nformat ascii 1.0\nelement vertex 200\n" + "".join(f"property double {a}\n" for a in "xyz")
        sweep.write_text(head + "end_header\n" + "\n".join(" ".join(map(repr, row)) for row in far.tolist()))
    label_sweeps(network, [*find_sweeps(write_sweeps(points)), sweep], out)
    assert (read_labels(out / "far.label") == read_labels(out / "000000.label")).mean() > 0.99


def test_a_cloud_that_lost_its_precision_to_its_origin_is_reported(network, out, tmp_path):
    np.save(tmp_path / "far.npy", cloud(12) + np.float32([5e5, 5.4e6, 100]))
    (fault,) = label_sweeps(network, find_sweeps(tmp_path), out).failed
    assert "5.4e+06 m in float32, in steps of 0.5 m" in fault.reason


def test_a_network_that_needs_images_is_refused_with_the_remedy(make_domain, make_network, write_sweeps, out):
    network = make_network(make_domain(frames=1), queries="agents", head="refine")
    with pytest.raises(RunError, match=r"fusion\.head=distil"):
        label_sweeps(network, find_sweeps(write_sweeps(cloud(0))), out)


def test_a_diverged_network_writes_nothing(network, write_sweeps, out):
    with torch.no_grad():
        network.lidar_branch.head.bias[0] = torch.nan
    with pytest.raises(RunError, match=r"000000\.bin"):
        label_sweeps(network, find_sweeps(write_sweeps(cloud(0))), out)
    assert not list(out.iterdir())


def test_two_sweeps_that_would_share_a_label_file_are_named(tmp_path):
    for name in ("a.bin", "a.ply", "b.bin", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"a\.bin and a\.ply"):
        find_sweeps(tmp_path)


def test_a_sweep_and_a_cloud_of_a_bag_that_would_share_a_label_file_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "list_clouds", lambda _: ["top-1", "top-2"])
    for name in ("drive.mcap", "drive.bin", "drive-top-3.bin"):
        (tmp_path / name).touch()
    assert len(find_sweeps(tmp_path)) == 4
    (tmp_path / "drive-top-2.bin").touch()
    with pytest.raises(ConfigError, match=r"drive-top-2\.bin and .*top-2"):
        find_sweeps(tmp_path)


def test_hidden_files_and_copies_are_no_sweeps(tmp_path, caplog):
    for name in ("a.bin", "._a.bin", "a (1).bin", "b (1).bin", ".hidden.ply"):
        (tmp_path / name).touch()
    assert [path.name for path in find_sweeps(tmp_path)] == ["a.bin", "b (1).bin"]
    assert "a (1).bin" in caplog.text


def test_a_link_to_nowhere_is_found_and_reported(network, out, tmp_path):
    (tmp_path / "a.bin").symlink_to(tmp_path / "gone.bin")
    done = label_sweeps(network, find_sweeps(tmp_path), out, workers=0)
    assert [fault.path.name for fault in done.failed] == ["a.bin"]


def test_nothing_to_label_is_an_error(tmp_path):
    with pytest.raises(MissingDataError, match="no sweep and no folder"):
        find_sweeps(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(MissingDataError, match=r"\.pcd\.bin"):
        find_sweeps(tmp_path)


LABEL_300K = """
import resource, sys
from pathlib import Path
import torch
from xd3d.cache.schema import TapSpec
from xd3d.stages.train.network import Network
from xd3d.stages.train.settings import FusionSettings, ModelSettings
from xd3d.stages.predict.sweeps import label_sweeps
network = Network(
    model=ModelSettings(preset="full", backend="torch"),
    fusion=FusionSettings(),
    classes=tuple("abcdef"),
    taps={"up1": TapSpec(name="up1", channels=8, height=6, width=10, extent=(6.0, 10.0))},
    cameras=1,
    device=torch.device("cpu"),
).eval()
done = label_sweeps(network, [Path(sys.argv[1])], Path(sys.argv[2]))
print(done.points, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_of_300k_points_is_labelled_within_4_gb(tmp_path, out):
    rng = np.random.default_rng(0)
    reach, angle = np.repeat(np.geomspace(2, 80, 128), 2344), np.tile(np.linspace(0, 2 * np.pi, 2344), 128)
    rings = np.stack([reach * np.cos(angle), reach * np.sin(angle), np.full(len(reach), -1.8)], 1)
    np.save(tmp_path / "large.npy", (rings + rng.normal(0, 0.02, rings.shape)).astype(np.float32))
    command = [sys.executable, "-c", LABEL_300K, str(tmp_path / "large.npy"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    points, kilobytes = map(int, done.stdout.split())
    assert points == len(read_labels(out / "large.label")) == 300_032
    assert kilobytes < 4_000_000
