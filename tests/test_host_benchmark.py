"""The script behind "The host beside a GPU" in docs/speed.md: one JSON object has every figure by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "benchmarks" / "host.py"


@pytest.mark.slow
def test_every_figure_of_the_docs_is_there_and_the_parts_are_those_of_the_whole(tmp_path):
    command = [sys.executable, SCRIPT, "--images", "12", "--rounds", "1", "--folder", tmp_path, "--scaled"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["images"], told["decoding"]) == (12, "scaled")
    for profile in ("exact", "compact"):
        facts = told["milliseconds_an_image"][profile]
        assert {"whole", "without_decoding", "decode", "assemble", "checksum", "write"} <= facts.keys()
        assert facts["whole"]["cpu"] > facts["without_decoding"]["cpu"]
        assert facts["whole"]["ratio_to_limit"] > 0
    assert not list(tmp_path.iterdir())
