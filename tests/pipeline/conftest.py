"""Fixtures of the pipeline's tests: the command line in an empty folder."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from xd3d.pipeline.cli import main


@pytest.fixture
def xd3d(tmp_path, monkeypatch):
    """Run ``xd3d ARGS`` in this process, in an empty folder with no network to hubs; returns a finished process."""

    def run(*arguments: str, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        logger, handlers = logging.getLogger("xd3d"), logging.getLogger().handlers[:]
        level, handled = logger.level, {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with monkeypatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            for key in [key for key in os.environ if key.startswith("XD3D_") and "REAL" not in key]:
                patch.delenv(key)
            for key, value in {"COLUMNS": "200", "HF_HUB_OFFLINE": "1", **environment}.items():
                patch.setenv(key, value)
            patch.chdir(cwd)
            patch.setattr(sys, "argv", ["xd3d", *arguments])
            try:
                main()
            except SystemExit as ended:
                code = ended.code
        logging.getLogger().handlers[:] = handlers
        logger.setLevel(level)
        for number, handler in handled.items():
            signal.signal(number, handler)
        return subprocess.CompletedProcess(["xd3d", *arguments], code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def xd3d_process(tmp_path):
    """The same in a process of its own, for what a process ends with: signals, memory, precision, threads."""

    def run(*arguments: str, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("XD3D_") or "REAL" in key}
        return subprocess.run(
            [sys.executable, "-c", "from xd3d.pipeline.cli import main; main()", *arguments],
            cwd=cwd,
            env={**clean, "COLUMNS": "200", "HF_HUB_OFFLINE": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def city(made_once) -> Path:
    """A synthetic nuScenes root of 22 frames, in a folder whose name has spaces. Read only."""
    from xd3d.stages.synthesize.synthesize import synthesize

    return made_once("the city", partial(synthesize, frames=22, seed=7, image_size=(200, 112), workers=1))


@pytest.fixture(scope="session")
def twin_of(tiny_nuscenes_root, made_once) -> Callable[[str], Path]:
    """Call it with a data set's name for a root of a few frames with small images. Read only."""
    from xd3d.stages.synthesize.twins import synthesize_twin

    frames = {"semantickitti": 5, "semanticstf": 7, "synlidar": 3, "a2d2": 3, "virtualkitti": 2}

    def make(dataset: str) -> Path:
        if dataset == "nuscenes":
            return tiny_nuscenes_root
        write = partial(
            synthesize_twin,
            dataset=dataset,
            frames=frames[dataset],
            image_size=(124, 78) if dataset == "a2d2" else (124, 38),
            azimuth_steps=90,
            workers=1,
        )
        return made_once(f"twin of {dataset}", write)

    return make
