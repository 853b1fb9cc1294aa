from pathlib import Path

import numpy as np
from xd3d.stages.synthesize.style_sampling import city_style, random_style
from xd3d.stages.synthesize.tiny_pipeline import pictures as pictures_module
from xd3d.stages.synthesize.tiny_pipeline.pictures import Recipe, render_pictures, render_view


def test_a_picture_depends_on_seed_and_number_alone_and_held_out_worlds_differ() -> None:
    recipe = Recipe(seed=5)
    picture = render_view(recipe, 3)
    assert picture.shape == (225, 400, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, render_view(Recipe(seed=5, pictures=9), 3))
    for other in (render_view(recipe, 2), render_view(Recipe(seed=6), 3), render_view(recipe, 3, held_out=True)):
        assert not np.array_equal(picture, other)


def test_rendering_resumes_after_a_break_and_keeps_what_was_there(tmp_path: Path) -> None:
    recipe = Recipe(pictures=3)
    (tmp_path / "train-000000.npy").parent.mkdir(exist_ok=True)
    kept = np.full((3, 225, 400, 3), 7, np.uint8)
    np.save(tmp_path / "train-000000.npy", kept)
    assert np.array_equal(render_pictures(recipe, tmp_path, workers=1), kept)
    assert [file.name for file in tmp_path.iterdir()] == ["train.npy"]


def test_no_world_of_the_training_pictures_is_one_of_the_cities() -> None:
    rng = np.random.default_rng(0)
    streams = {random_style(rng).stream, random_style(rng, day_only=True).stream}
    for location in ("boston", "singapore"):
        assert city_style(location, rng=rng).stream not in streams
    assert Recipe().pictures < pictures_module.HELD_OUT_WORLDS


def test_day_only_pictures_are_bright_and_clear() -> None:
    brightness = [render_view(Recipe(day_only=True), number).mean() for number in range(0, 12, 2)]
    assert min(brightness) > 30
