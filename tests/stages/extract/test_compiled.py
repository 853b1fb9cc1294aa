"""A compiled model gives the features of the plain one to within rounding, and says at once when it cannot be had."""

import json
import subprocess
import sys

import pytest
import torch
from xd3d.errors import BackendError
from xd3d.stages.extract.extractor import FeatureExtractor

COMPARE = """
import json, sys
import numpy as np
from xd3d.stages.extract.extractor import FeatureExtractor
from xd3d.stages.extract.settings import ExtractSettings
settings = ExtractSettings.model_validate_json(sys.argv[1])
picture = np.random.default_rng(0).integers(0, 256, (1, 3, *settings.image_size), dtype=np.uint8)
runs = [FeatureExtractor(settings=settings.model_copy(update={"compile": on}))(picture, ["a"]) for on in (False, True)]
plain, compiled = (run.features().maps for run in runs)
spacings = {tap: np.abs(np.spacing(plain[tap])) for tap in plain}
print(json.dumps({tap: float((np.abs(plain[tap] - compiled[tap]) / spacings[tap]).max()) for tap in plain}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(" " in torch.__file__, reason="torch's compiler cannot work in a folder with a space")
def test_compiled_features_are_the_plain_ones_within_rounding(settings):
    chosen = settings(taps=("up0", "up1:residual", "up2"), batch_size=1)
    command = [sys.executable, "-c", COMPARE, chosen.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    differences = json.loads(done.stdout.splitlines()[-1])
    assert set(differences) == {"up0", "up1:residual", "up2"}
    assert max(differences.values()) <= 2, "spacings of float16"


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_without_a_compiler_it_is_said_before_the_first_image(settings, monkeypatch, tmp_path):
    from torch._inductor import cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(torch, "__file__", "/place/torch/__init__.py")
    with pytest.raises(BackendError, match=r"extract\.compile.*C\+\+ compiler.*extract\.compile=false"):
        FeatureExtractor(settings=settings(compile=True))


def test_a_folder_with_a_space_is_named_before_the_first_image(settings, monkeypatch):
    monkeypatch.setattr(torch, "__file__", "/some place/torch/__init__.py")
    with pytest.raises(BackendError, match=r"space.*/some place/torch.*extract\.compile=false"):
        FeatureExtractor(settings=settings(compile=True))
