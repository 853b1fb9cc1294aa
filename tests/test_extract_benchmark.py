"""The script behind docs/speed.md: it ends with one JSON object that has every ratio by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "benchmarks" / "extract.py"
SMALL = ("--size", "64", "96", "--rounds", "1", "--images", "4", "--shard-mb", "1")
PEER = """
import numpy as np
import torch
from diffusers.models.unet_2d_condition import UNet2DConditionModel
from torchvision.transforms import PILToTensor


class MyUNet2DConditionModel(UNet2DConditionModel):
    def forward(self, sample, timestep, up_ft_indices, encoder_hidden_states):
        found = {}
        for i in up_ft_indices:
            self.up_blocks[i].register_forward_hook(lambda m, a, output, i=i: found.__setitem__(i, output))
        super().forward(sample, timestep, encoder_hidden_states)
        return {"up_ft": found}
"""


def told(*arguments):
    done = subprocess.run([sys.executable, SCRIPT, *SMALL, *arguments], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ours:" in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_without_the_peer_its_ratio_is_null_with_a_reason_and_the_rest_is_there():
    facts = told()
    assert facts["ratio_to_dift"] is None
    assert "--dift" in facts["dift_missing"]
    for name in ("ratio_to_hooks", "ratio_to_hooks_cpu", "ratio_to_peak", "ratio_to_bfloat16_peak", "ratio_memory"):
        assert facts[name] > 0, name
    shares = [facts[f"share_{activity}"] for activity in ("model", "agents", "decoding", "writing")]
    assert sum(shares) == pytest.approx(0.8, abs=0.2)
    assert facts["achieved_gflops"] == pytest.approx(1e3 * facts["tflop"] / facts["seconds"]["ours"])
    assert set(facts["gemm_gflops"]) == {"float32", "bfloat16"}


@pytest.mark.slow
def test_a_checkout_of_the_peer_takes_part(tmp_path):
    module = tmp_path / "src" / "models" / "dift_sd.py"
    module.parent.mkdir(parents=True)
    module.write_text(PEER)
    facts = told("--dift", str(tmp_path))
    assert facts["ratio_to_dift"] > 0
    assert set(facts["seconds"]) == {"ours", "hooks", "dift"}
