import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "cache.py"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_benchmark_of_reading_prints_its_ratios_as_one_json_object(tmp_path):
    options = ["--folder", tmp_path, "--images", "16", "--divide", "320", "--shard-mb", "1", "--rounds", "1"]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    ratios = [
        f"{state}_random_over_{other}" for state in ("warm", "cold") for other in ("pread", "zarr", "hdf5", "npy")
    ]
    assert all(found[name] > 0 for name in [*ratios, "loader_over_pread", "checked_over_pread"])
    assert found["loader_over_pread"] == pytest.approx(
        found["loader_samples_per_second"] / found["pread_samples_per_second"], rel=0.02, abs=1e-3
    )
    assert not list(tmp_path.iterdir()), "it must leave nothing behind"
