import json
import shutil
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest
from xd3d.errors import ConfigError
from xd3d.pipeline import jobs
from xd3d.pipeline.ablation.plan import CAMERAS, FEW_STREETS, STREETS, Request, plan_trainings, variant_digest
from xd3d.pipeline.ablation.run import run_ablation
from xd3d.pipeline.ablation.variants import PRETRAININGS, VARIANTS, choose_variants
from xd3d.pipeline.cli_ablate import ablate
from xd3d.pipeline.config import preset_names
from xd3d.pipeline.jobs import synthesize
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.datasets.index import FrameIndex
from xd3d.stages.synthesize.synthesize import root_facts


def request(*names, shifts=("city", "fog"), seeds=(1, 2), **options):
    return Request(variants=[VARIANTS[name] for name in names], shifts=shifts, seeds=seeds, **options)


def test_every_preset_of_the_ablation_is_a_variant_and_the_other_way_round():
    presets = {name for name in preset_names() if name.startswith("ablation/")}
    variants = {variant.preset for variant in (*VARIANTS.values(), *PRETRAININGS.values())}
    assert presets == variants | {"ablation/base"}


def test_the_published_rows_are_those_of_the_present_settings_and_data():
    """A new setting without its mark, another default or other data would orphan every row."""
    data = root_facts(STREETS.frames, seed=0, cameras=CAMERAS, plan="benchmark")
    identity = json.dumps(data, sort_keys=True)
    published = json.loads((Path(__file__).parents[3] / "docs/results.json").read_text(encoding="utf-8"))
    digests = {row["variant"]: row["digest"] for row in (*published["rows"], *published["development"])}
    assert "full" in digests
    for name, digest in digests.items():
        assert variant_digest(STREETS, VARIANTS[name], STREETS.overrides, identity) == digest, name


def test_one_training_a_seed_serves_all_shifts_and_the_oracle_needs_one_for_each():
    planned = plan_trainings(STREETS, request("full", "oracle"), "index", ())
    assert [(p.variant.name, p.seed, p.target, p.shifts) for p in planned] == [
        ("full", 1, None, ("city", "fog")),
        ("full", 2, None, ("city", "fog")),
        ("oracle", 1, "city", ("city",)),
        ("oracle", 1, "fog", ("fog",)),
        ("oracle", 2, "city", ("city",)),
        ("oracle", 2, "fog", ("fog",)),
    ]
    assert len({p.run for p in planned}) == len(planned)


def test_only_the_oracle_gets_labels_of_the_target():
    trainings = plan_trainings(STREETS, Request(variants=list(VARIANTS.values()), shifts=["fog"], seeds=[1]), "i", ())
    for training in trainings:
        data = training.resolved.config.data
        source = "streets-fog" if training.variant.name == "oracle" else "streets"
        assert data.source.domain == source, training.title
        assert data.validate_on == ("none" if training.variant.name.startswith("uda") else "source")


def test_reported_targets_choose_nothing_of_a_training_that_serves_all():
    for training in plan_trainings(STREETS, request("full"), "index", ()):
        assert training.resolved.config.data.target.domain == "streets-development"


def test_adaptation_begins_with_the_run_of_the_same_seed_that_serves_all_shifts():
    planned = plan_trainings(STREETS, request("full", "uda"), "index", ())
    (one, other) = [training for training in planned if training.variant.name == "full"]
    adapted = [training for training in planned if training.variant.name == "uda"]
    assert len(adapted) == 4
    assert all(training.init.run == (one if training.seed == 1 else other).run for training in adapted)
    assert all(training.resolved.config.train.lam_pl > 0 for training in adapted)
    places = {training.run: place for place, training in enumerate(planned)}
    assert all(places[training.init.run] < places[training.run] for training in adapted)


def test_a_test_with_adapted_normalisation_reads_the_other_run_and_has_rows_of_its_own():
    full, adapted = plan_trainings(STREETS, request("full", "full-norm", seeds=(1,)), "index", ())
    assert (full.variant.name, adapted.variant.name) == ("full", "full-norm")
    assert adapted.run == adapted.init.run == full.run
    assert adapted.digest != full.digest


def test_a_pretrained_variant_starts_from_a_run_of_its_seed_on_all_domains_or_the_source():
    names = ("pretrain", "pretrain-frozen", "pretrain-source")
    starts = {
        each.variant.name: each.init for each in plan_trainings(STREETS, request(*names, seeds=(1,)), "index", ())
    }
    assert starts["pretrain"].run == starts["pretrain-frozen"].run
    seen = starts["pretrain"].resolved.config
    assert (seen.data.target.domain, seen.train.uses_target) == ("all", True)
    assert not starts["pretrain-source"].resolved.config.train.uses_target
    assert len({each.run for each in starts.values()}) == 2
    (other, *_) = plan_trainings(
        STREETS, request("pretrain", seeds=(1,), overrides=("fusion.taps=[up1]",)), "index", ()
    )
    assert other.init.digest != starts["pretrain"].digest


def test_rows_of_an_adaptation_depend_on_what_it_begins_with():
    (one,) = plan_trainings(STREETS, request("uda", shifts=("city",), seeds=(1,)), "index", ())
    (other,) = plan_trainings(
        STREETS, request("uda", shifts=("city",), seeds=(1,), overrides=("fusion.rank=3",)), "index", ()
    )
    assert one.digest != other.digest
    assert one.init.digest != other.init.digest


def test_rows_that_are_there_are_not_made_again():
    (first, _) = plan_trainings(STREETS, request("full"), "index", ())
    done = {("city", "full", 1, first.digest), ("city", "full", 2, first.digest), ("fog", "full", 2, first.digest)}
    (left,) = plan_trainings(STREETS, request("full"), "index", done)
    assert (left.seed, left.shifts, left.run) == (1, ("fog",), first.run)


def test_the_digest_stands_for_settings_and_data_and_not_for_what_moves_work():
    def digest(*overrides, index="index", name="full"):
        return variant_digest(STREETS, VARIANTS[name], overrides, index)

    assert digest() == digest("train.workers=1") == digest("train.seed=5")
    assert len({digest(), digest("train.lr=0.1"), digest(index="other"), digest(name="rank-4")}) == 4


def test_a_command_names_just_one_row_and_the_changed_settings():
    asked = request("full", short=True, overrides=("train.milestones=[2, 3]",))
    command = asked.command("full", "fog", 2)
    assert command == "xd3d ablate --only full --shifts fog --seeds 2 --short --set 'train.milestones=[2, 3]'"


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="full-rgb-only"):
        choose_variants(["full-rgb-onl"], short=False)
    with pytest.raises(ConfigError, match="night"):
        STREETS.choose(["nigth"])


def test_the_short_form_is_tested_on_old_and_new_shifts_unless_others_are_named():
    some = FEW_STREETS.choose([])
    assert set(some) < set(STREETS.choose([]))
    assert 0 < len(set(some) & set(STREETS.fresh)) < len(some)
    assert FEW_STREETS.choose(["fog", "development"]) == ["fog", "development"]


def test_the_short_form_has_the_variants_of_the_tables_and_no_sweep():
    names = {variant.name for variant in choose_variants([], short=True)}
    main = {"3d-only", "image", "full", "full-random-weights", "full-rgb-only", "paper", "uda", "oracle"}
    assert names == main
    pretraining = {"pretrain-source", "pretrain-frozen", "pretrain-linear"}
    named = {"depth-400", "mix-400", "laser-400", "beams-400", "returns-400", *pretraining}
    assert {variant.name for variant in choose_variants([], short=False)} == {
        name for name in VARIANTS if name not in named and not name.startswith("network-")
    }


def test_an_option_that_names_nothing_is_not_taken_for_all():
    with pytest.raises(ConfigError, match="--only names nothing"):
        ablate(only=[" , "])


@pytest.mark.parametrize("faulty", [{"overrides": ["train.stepz=1"]}, {"seeds": [2**70]}])
def test_a_faulty_setting_is_found_before_any_work(tmp_path, faulty):
    asked = replace(request("full", "uda"), **faulty)
    with pytest.raises(ConfigError, match=r"train\.(stepz|seed)"):
        run_ablation(tmp_path / "out", STREETS, asked, processes=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("variant", "change"),
    [
        ("no-truncation", "fusion.decoupling=truncate"),
        ("full-400", "train.steps=9"),
        ("uda", "train={lam_pl: 0}"),
        ("rank-4", "fusion.rank=8"),
        ("full", "train.seed=9"),
        ("full", "train.init=another"),
        ("full", "data.target.domain=streets-fog"),
    ],
)
def test_what_makes_a_variant_or_a_run_what_it_is_cannot_be_set_for_all(tmp_path, variant, change):
    asked = request(variant, overrides=(change,))
    with pytest.raises(ConfigError, match=f"'{variant}'"):
        run_ablation(tmp_path / "out", STREETS, asked, processes=1)
    request("full", overrides=("fusion.rank=8", "train.steps=3")).check(STREETS)


@pytest.mark.parametrize("seeds", ["1,1", "one", "-1", ",", ""])
def test_seeds_that_are_no_different_whole_numbers_are_refused(seeds):
    with pytest.raises(ConfigError, match="--seeds"):
        ablate(seeds=seeds)


def test_a_synthetic_city_with_other_last_bits_is_the_same_benchmark(tmp_path, city, monkeypatch):
    def synthesized(out, **options):
        assert signature(synthesize).bind(out, **options).arguments["plan"] == "benchmark"
        shutil.copytree(city, out, dirs_exist_ok=True)

    monkeypatch.setattr(jobs, "synthesize", synthesized)
    few, workspace = replace(STREETS, frames=16), Workspace(home=tmp_path / "work")
    data = few.prepare(tmp_path, workspace)
    folder = workspace.index("nuscenes")
    index = FrameIndex.load(folder)
    images = replace(index.images, camera_from_lidar=index.images.camera_from_lidar * (1 + 1e-15))
    replace(index, images=images).save(folder)
    assert FrameIndex.load(folder).digest != index.digest
    assert few.prepare(tmp_path, workspace) == data
