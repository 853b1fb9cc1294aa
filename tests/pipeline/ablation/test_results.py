import json

import pytest
from xd3d.errors import DataError
from xd3d.pipeline.ablation.plan import Benchmark, Request, variant_digest
from xd3d.pipeline.ablation.results import Results, replace_blocks, write_results
from xd3d.pipeline.ablation.variants import VARIANTS

BENCHMARK = Benchmark(
    source="streets",
    shifts={"fog": "streets-fog", "night": "streets-night"},
    development={"development": "streets-development"},
)
REQUEST = Request(variants=[VARIANTS["full"]], shifts=["fog"], seeds=[1])


@pytest.fixture
def results(make_row):
    def digest(variant):
        return variant_digest(BENCHMARK, VARIANTS[variant], REQUEST.settings(BENCHMARK), "index")

    rows = [
        make_row("fog", "full", 1, three=60, xm=62, digest=digest("full")),
        make_row("fog", "3d-only", 1, three=50, digest=digest("3d-only")),
        make_row("fog", "3d-only", 2, three=51, digest="of other settings"),
        make_row("development", "full", 1, three=70, digest=digest("full")),
    ]
    return Results.select(BENCHMARK, REQUEST, "index", rows, {})


def test_only_rows_of_the_settings_in_force_and_of_reported_shifts_are_results(results):
    rows = results.to_json()["rows"]
    assert [(row["variant"], row["seed"]) for row in rows] == [("3d-only", 1), ("full", 1)]
    assert [row["shift"] for row in results.to_json()["development"]] == ["development"]
    assert {"shift", "variant", "seed", "miou", "command"} <= set(rows[0])
    assert set(rows[0]["miou"]) == {"2d", "3d", "3d_lidar_only", "xm", "fused"}


def test_text_around_the_generated_parts_survives(results, tmp_path):
    out, docs = tmp_path / "out", tmp_path / "docs"
    write_results(results, out, docs)
    page = docs / "results.md"
    written = page.read_text().replace("## Scores\n", "## Scores\n\nWhat we make of them.\n")
    page.write_text(written.replace("60.0", "99.9").replace("## Sweeps", "## Other forms"))
    write_results(results, out, docs)
    again = page.read_text()
    assert "What we make of them." in again
    assert "## Other forms" in again
    assert "99.9" not in again
    assert again.count("<!-- generated: main -->") == 1
    assert json.loads((docs / "results.json").read_text()) == results.to_json()
    assert (docs / "images/ablation-scores.png").read_bytes().startswith(b"\x89PNG")
    assert not (docs / "images/ablation-sweeps.png").exists()  # there are no rows of sweeps


@pytest.mark.parametrize(
    "text",
    [
        "<!-- generated: a -->\nold\n## By hand\n",
        "old\n<!-- end: a -->\n",
        "<!-- generated: a -->\n<!-- generated: b -->\n<!-- end: a -->\n<!-- end: b -->\n",
        "<!-- generated: a -->\n<!-- end: a -->\nBy hand\n<!-- generated: a -->\n<!-- end: a -->\n",
    ],
)
def test_a_page_whose_markers_are_damaged_is_refused_before_text_by_hand_is_lost(results, tmp_path, text):
    with pytest.raises(ValueError, match="do not come in pairs"):
        replace_blocks(text, {"a": "new"})
    page = tmp_path / "results.md"
    page.write_text(text)
    with pytest.raises(DataError, match=r"results\.md"):
        write_results(results, tmp_path, None)
    assert page.read_text() == text


def test_a_part_without_markers_is_put_at_the_end():
    text = replace_blocks("By hand.\n<!-- generated: a -->\nold\n<!-- end: a -->\nMore.\n", {"a": "new", "b": "2"})
    assert text.startswith("By hand.\n<!-- generated: a -->\nnew\n<!-- end: a -->\nMore.\n")
    assert text.endswith("<!-- generated: b -->\n2\n<!-- end: b -->\n")
