"""Fixtures of the pipeline's tests: the command line in a process of its own, in an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def xd3d(tmp_path):
    """Run ``xd3d ARGS`` in an empty folder with no network to hubs, and return the finished process."""

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
