"""Presets, files and overrides: what is merged, where it came from, and how every fault is named."""

import pytest
from xd3d.errors import ConfigError
from xd3d.pipeline.config import Config, dotted_values, load_config, preset_names


@pytest.mark.parametrize("name", preset_names())
def test_every_shipped_preset_is_valid(name):
    assert load_config(name).name == name


@pytest.mark.parametrize("name", [name for name in preset_names() if not name.startswith("ablation/")])
def test_a_preset_differs_from_its_parent_by_25_lines_at_most(name):
    from importlib.resources import files

    lines = files("xd3d.configs").joinpath(f"{name}.yaml").read_text().splitlines()
    assert len([line for line in lines if line.strip() and not line.startswith("#")]) <= 26


def test_a_file_extends_a_preset_and_an_override_wins_over_both(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: nuscenes_day_night/dg\ntrain: {batch_size: 2}\n")
    resolved = load_config(str(mine), ["train.lr=0.5"])
    assert resolved.name == "mine"
    assert (resolved.config.train.batch_size, resolved.config.train.lr) == (2, 0.5)
    assert resolved.config.data.target.domain == "night"
    assert resolved.origins["train.batch_size"] == str(mine)
    assert resolved.origins["train.steps"] == "nuscenes_day_night/dg"
    assert resolved.origins["extract.model"] == "nuscenes"
    assert resolved.origins["train.lr"] == "--set train.lr=0.5"


def test_a_file_extends_another_file_beside_it(tmp_path):
    (tmp_path / "base.yaml").write_text("train: {steps: 7}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\n")
    assert load_config(str(tmp_path / "mine.yaml")).config.train.steps == 7


def test_presets_that_extend_each_other_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml -> .*b\.yaml"):
        load_config(str(tmp_path / "a.yaml"))


def test_a_file_that_extends_itself_by_another_path_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text(f"extends: ../{tmp_path.name}/a.yaml\n")
    with pytest.raises(ConfigError, match="in a cycle"):
        load_config(str(tmp_path / "a.yaml"))


def test_all_faults_are_named_at_once_with_the_nearest_key():
    with pytest.raises(ConfigError) as caught:
        load_config("default", ["train.batchsize=4", "fusoin.head=distil", "train.lr=-1", "data.merge=nuscenes"])
    message = str(caught.value)
    assert "4 fault(s)" in message
    assert "train.batchsize: unknown key; did you mean 'train.batch_size'?" in message
    assert "fusoin: unknown key; did you mean 'fusion'?" in message
    assert "train.lr:" in message
    assert "data.merge:" in message


def test_an_unknown_preset_names_the_nearest_one():
    with pytest.raises(ConfigError, match="'nuscenes_usa_singapore/dg'"):
        load_config("nuscenes_usa_singapor/dg")


@pytest.mark.parametrize(
    "text", ["train.lr", "=3", "train.lr=[", "train.seed=2024-13-45", "train.seed=" + 5000 * "1", ""]
)
def test_a_malformed_override_says_what_it_should_look_like(text):
    with pytest.raises(ConfigError, match="--set"):
        load_config("default", [text])


@pytest.mark.parametrize(
    "content",
    [
        *("- a\n- b\n", "a: [\n", "extends: [x]\n", "!!python/object:os.system {}\n"),
        *("train: {seed: 2024-13-45}\n", "[" * 1500, "name: Stra\udcdfe\n"),
    ],
)
def test_a_malformed_file_is_a_config_error(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_text(content, errors="surrogateescape")  # the last one is Latin-1
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(str(path))


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_every_setting_has_a_description():
    def undescribed(model, prefix=""):
        for name, field in model.model_fields.items():
            yield from [] if field.description else [prefix + name]
            if hasattr(field.annotation, "model_fields"):
                yield from undescribed(field.annotation, f"{prefix}{name}.")

    assert list(undescribed(Config)) == []


def test_show_lists_every_value_with_its_origin(xd3d):
    done = xd3d("config", "show", "nuscenes_usa_singapore/dg", "--set", "train.seed=3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(list(dotted_values(load_config("default").config)))
    assert "train.seed: 3    # --set train.seed=3" in lines
    assert any(line.startswith("extract.model: sd21-base") and line.endswith("# nuscenes") for line in lines)


def test_validate_ends_with_code_2_and_no_traceback_on_a_fault(xd3d):
    done = xd3d("config", "validate", "default", "nowhere.yaml", "--set", "nonsense=1")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "nowhere.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_data_set_does_not_inherit_a_domain_that_a_preset_named(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "extends: default\ndata: {merge: semantickitti-19, source: {dataset: semantickitti, domain: official}}\n"
    )
    data = load_config(str(mine), ["data.target.dataset=semanticstf"]).config.data
    assert (data.target.dataset, data.target.domain) == ("semanticstf", "all")
    for order in (1, -1):
        changes = ["data.target.domain=rain", "data.target.dataset=semanticstf"][::order]
        assert load_config(str(mine), changes).config.data.target.domain == "rain"
    assert load_config("default", ["data.target.dataset=nuscenes"]).config.data.target.domain == "singapore"


SETTINGS = {
    "nuscenes_usa_singapore": (60_000, (40_000, 50_000), 1.0, 0.1),
    "nuscenes_singapore_usa": (60_000, (40_000, 50_000), 1.0, 0.1),
    "nuscenes_day_night": (100_000, (80_000, 90_000), 1.0, 0.1),
    "a2d2_semantic_kitti": (100_000, (80_000, 90_000), 0.1, 0.01),
    "a2d2_nuscenes": (100_000, (80_000, 90_000), 0.1, 0.01),
    "virtual_kitti_semantic_kitti": (30_000, (25_000, 28_000), 0.1, 0.01),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_schedules_and_weights_are_the_published_ones(setting):
    for task in ("dg", "uda", "uda_pl"):
        train = load_config(f"{setting}/{task}").config.train
        lam_trg = 0.0 if task == "dg" else train.lam_trg
        assert (train.steps, train.milestones, train.lam_src, lam_trg or SETTINGS[setting][3]) == SETTINGS[setting]
        assert (train.batch_size, train.lr, train.lam_pl) == (8, 1e-3, 1.0 if task == "uda_pl" else 0.0)


def test_image_sizes_and_crops_are_the_published_ones():
    sizes = {
        "nuscenes_day_night": {"nuscenes": (225, 400)},
        "a2d2_nuscenes": {"a2d2": (302, 480), "nuscenes": (302, 480)},
        "a2d2_semantic_kitti": {"a2d2": (302, 480), "semantickitti": (375, 1242)},
        "virtual_kitti_semantic_kitti": {"virtualkitti": (375, 1242), "semantickitti": (375, 1242)},
    }
    for setting, expected in sizes.items():
        config = load_config(f"{setting}/uda").config
        assert {name: config.extract.for_dataset(name).image_size for name in expected} == expected
        assert config.augment.crop == ((302, 480) if "kitti" in setting else None)
        assert config.augment.flip == ("x" if setting == "nuscenes_day_night" else "y")


def test_settings_without_images_at_test_need_none():
    for setting in ("semantic_kitti_semantic_stf", "synlidar_semantic_stf"):
        config = load_config(f"{setting}/dg").config
        assert config.fusion.lidar_branch or not config.fusion.image
        assert config.data.points == "all"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("train: {steps: 5}\nfusion: {}\ntrain: {lr: 1}\n", r"found the key 'train' twice[\s\S]*line 3"),
        ("train:\n  steps: 5\n  steps: 6\n", "found the key 'steps' twice"),
        ("train: &a {lr: *a}\n", "YAML alias"),
        ("train: {lr: .inf}\n", r"train\.lr: .*finite"),
    ],
)
def test_what_yaml_lets_pass_but_means_something_else_is_refused(tmp_path, text, fault):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=fault):
        load_config(str(tmp_path / "mine.yaml"))


def test_anchors_and_merge_keys_of_yaml_may_be_used(tmp_path):
    (tmp_path / "mine.yaml").write_text("train: &t {lr: 0.5, steps: 9}\n")
    assert load_config(str(tmp_path / "mine.yaml")).config.train.steps == 9
    (tmp_path / "mine.yaml").write_text("data:\n  source: &s {domain: day}\n  target: {<<: *s, domain: night}\n")
    data = load_config(str(tmp_path / "mine.yaml")).config.data
    assert (data.source.domain, data.target.domain) == ("day", "night")
