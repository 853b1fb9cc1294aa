from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from xd3d.errors import ConfigError
from xd3d.files import read_json
from xd3d.stages.synthesize.tiny_pipeline.__main__ import main, make_pipeline
from xd3d.stages.synthesize.tiny_pipeline.pictures import Recipe


@pytest.mark.slow
def test_a_budget_of_seconds_makes_a_whole_folder_and_a_second_call_changes_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    work, out = tmp_path / "work in progress", tmp_path / "out"
    work.mkdir()
    for name, count in (("train", 3), ("held_out", 1)):
        np.save(work / f"{name}.npy", rng.integers(0, 256, (count, 225, 400, 3), dtype=np.uint8))
    command = [str(out), "--minutes", "0.02", "--pictures", "3", "--held-out", "1", "--threads", "1"]

    main([*command, "--work", str(work)])
    weights = (out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    main([*command, "--work", str(work)])

    assert (out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    record = read_json(out / "training.json")
    assert record["recipe"]["pictures"] == 3
    assert record["vae"][-1][1] >= 1
    assert record["unet"][-1][1] >= 1
    pipeline = StableDiffusionPipeline.from_pretrained(out, local_files_only=True)
    scaled = pipeline.vae.config.scaling_factor * np.load(work / "latents.npy").astype(np.float32)
    assert scaled.std() == pytest.approx(1, abs=0.02)


def test_work_of_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(Recipe(seed=1).model_dump_json())
    with pytest.raises(ConfigError, match="expected 2, found 1"):
        make_pipeline(Recipe(seed=2), tmp_path / "out", work=tmp_path)
