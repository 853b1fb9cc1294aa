"""The end of an ablation that trained the full method: pictures of what it learned, drawn once."""

import json

import pytest
from xd3d.pipeline.ablation.plan import Benchmark, Request
from xd3d.pipeline.ablation.run import run_ablation
from xd3d.pipeline.ablation.variants import VARIANTS

QUICK = (
    "extract.image_size=[48,80]",
    "extract.taps=[up1,rgb]",
    "extract.agents.count=4",
    "extract.agents.rounds=1",
    "train.steps=2",
    "train.batch_size=1",
    "fusion.taps=null",
    "fusion.tokens=8",
    "fusion.rank=3",
    "fusion.query_channels=16",
    "data.validate_on=target",
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_results_show_what_was_learned_and_are_not_drawn_again(tmp_path, tiny_nuscenes_root):
    benchmark = Benchmark(
        source="usa",
        shifts={"city": "singapore", "night": "night"},
        development={"all": "all"},
        root=tiny_nuscenes_root,
        overrides=QUICK,
    )
    variants = [VARIANTS[name] for name in ("3d-only", "full", "no-truncation", "paper", "uda")]
    request = Request(variants=variants, shifts=["city", "night"], seeds=[1])
    done = run_ablation(tmp_path / "out", benchmark, request, processes=2, docs=tmp_path / "docs")
    assert done.exit_code == 0
    page = (tmp_path / "docs" / "results.md").read_text()
    pictures = ["attention-city", "attention-night", "spectrum", "errors", "ablation-scores"]
    for name in pictures:
        assert f"](images/{name}.png)" in page
        assert (tmp_path / "docs/images" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    learned = json.loads((tmp_path / "docs" / "results.json").read_text())["learned"]
    assert set(learned["agreement"]) == {"city", "night"}
    assert [name for name, *_ in learned["spectrum"]] == [
        "cached agents",
        "agent tokens before truncation, full",
        "agent tokens after it, full",
        "agent tokens, no-truncation",
        "Q_a, paper",
        "Q_b before the projection, paper",
        "Q_b after it, paper",
    ]
    facts = (tmp_path / "out/learned.json").stat().st_ino
    run_ablation(tmp_path / "out", benchmark, request, processes=2)
    assert (tmp_path / "out/learned.json").stat().st_ino == facts
