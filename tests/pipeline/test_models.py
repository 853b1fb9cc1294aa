"""``xd3d models`` says which models there are, and does not reach for the network when it is told not to."""

import json


def test_every_model_with_a_name_is_listed_with_its_place(xd3d, tmp_path):
    done = xd3d("models", "list", "--json", HF_HUB_CACHE=str(tmp_path / "hub"))
    models = {model["name"]: model for model in json.loads(done.stdout.splitlines()[-1])["models"]}
    assert models["tiny-street"]["here"]
    assert models["tiny-street"]["bytes"] > 1_000_000
    assert (models["sd21-base"]["here"], models["sd21-base"]["bytes"]) == (False, 5_159_966_792)
    assert models["cleandift-sd21"]["source"] == "CompVis/cleandift:cleandift_sd21_unet.safetensors"


def test_a_model_that_is_not_there_offline_is_refused_with_the_way_to_get_it(xd3d, tmp_path):
    done = xd3d("models", "fetch", "sd15", "--offline", HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="0")
    assert done.returncode == 1
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in done.stderr
    assert "xd3d models fetch" in done.stderr
    assert "did you mean 'sd21-base'" in xd3d("models", "fetch", "sd21base").stderr
