"""The command line as a whole: what it imports, how fast it starts, what it prints and how it ends."""

import json
import os
import signal
import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "zarr", "spconv", "nuscenes", "cv2", "matplotlib", "numpy")


def test_help_imports_no_heavy_module():
    script = (
        "import sys\n"
        "from xd3d.pipeline.cli import app\n"
        "app(['--help'], standalone_mode=False)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")


def test_help_takes_half_a_processor_second_beyond_python_itself():
    def seconds(code: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    help_code = "from xd3d.pipeline.cli import app; app(['--help'], standalone_mode=False)"
    assert min(seconds(help_code) for _ in range(5)) - min(seconds("pass") for _ in range(5)) < 0.5


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "synthesize",
        "prepare",
        "extract-features",
        "train",
        "evaluate",
        "report",
        "doctor",
        "config show",
        "push",
        "pull",
    ],
)
def test_every_command_shows_an_example_in_its_help(xd3d, command):
    done = xd3d(*command.split(), "--help")
    assert done.returncode == 0
    assert f"xd3d {command}" in " ".join(done.stdout.split())


def test_a_mistyped_option_is_a_usage_error_with_code_2(xd3d):
    done = xd3d("train", "--cahced")
    assert done.returncode == 2
    assert "--cached" in done.stderr


def test_config_list_names_every_setting_and_task_on_the_last_line_of_stdout_and_what_is_prepared(xd3d, tmp_path):
    index = tmp_path / "xd3d-work/index/semantickitti/index.json"
    index.parent.mkdir(parents=True)
    index.write_text("{}")
    done = json.loads(xd3d("config", "list", "--json").stdout.splitlines()[-1])
    assert "default" in done["presets"]
    settings = {setting["name"]: setting for setting in done["settings"]}
    assert settings.keys() < set(done["presets"])
    assert {setting["setting"] for setting in settings.values()} == {
        "nuscenes_usa_singapore",
        "nuscenes_singapore_usa",
        "nuscenes_day_night",
        "virtual_kitti_semantic_kitti",
        "a2d2_semantic_kitti",
        "a2d2_nuscenes",
        "semantic_kitti_semantic_stf",
        "synlidar_semantic_stf",
    }
    assert settings["virtual_kitti_semantic_kitti/uda"]["task"] == "uda"
    assert settings["a2d2_semantic_kitti/uda_pl"]["prepared"] == {"a2d2": False, "semantickitti": True}


def test_without_a_root_the_error_names_every_way_to_give_one(xd3d):
    done = xd3d("prepare", "--dataset", "nuscenes")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for way in ("--root", "XD3D_NUSCENES_ROOT", "data.roots.nuscenes", "xd3d synthesize"):
        assert way in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_ends_with_its_signals_code_and_says_how_to_go_on(tmp_path, number, code):
    script = (
        "import time\nfrom xd3d.pipeline.console import run_command_line\n"
        "run_command_line(lambda: (print('ready'), time.sleep(60)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-uc", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "same command again" in errors
    assert "Traceback" not in errors
