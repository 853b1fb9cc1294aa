"""The cards (README.md) of shared caches and runs: front matter for the Hugging Face Hub, and text for people."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ... import __version__
from ...stages.datasets.licences import Licence, licence_of
from ...stages.evaluate.metrics import Metrics

__all__ = ["cache_card", "run_card"]

_TAGS = ["xd3d", "lidar", "point-cloud", "semantic-segmentation", "domain-adaptation"]


def cache_card(facts: Mapping[str, Any], *, name: str, place: str) -> str:
    """Returns the card of a cache from the ``facts`` of its manifest."""
    from huggingface_hub import DatasetCardData

    licence = licence_of(facts["dataset"])
    front = DatasetCardData(**_licence_fields([licence]), tags=[*_TAGS, "image-features"], pretty_name=name)
    networks = f"| networks | {', '.join(facts['networks'])} |\n" if facts.get("networks") else ""
    text = f"""
Image features and object agents of the data set **{facts["dataset"]}**, computed once by a frozen network, as
xd3d {__version__} trains LiDAR segmentation on them. The files are Zarr arrays with commit
records; `xd3d-share.json` lists each with its SHA-256. Images, point clouds and labels are not in it.

| | |
|---|---|
| network | {facts["model"]} |
{networks}| taps | {", ".join(facts["taps"])} |
| images | {facts["images"]:,} of {facts["of"]:,} |
| profile | {facts["profile"]} |
"""
    use = (
        f"xd3d prepare --dataset {facts['dataset']} --root DIR    # the data set itself, from its owner\n"
        "xd3d train --cached                                     # with the --config and --set that the cache was made"
        " with"
    )
    return _card(front.to_yaml(), name, text, {facts["dataset"]: licence}, place, use)


def run_card(
    *,
    name: str,
    place: str,
    record: Mapping[str, Any],
    step: int,
    scores: Mapping[str, Metrics],
    datasets: Sequence[str],
) -> str:
    """Returns the card of a run: its task or pretraining, data sets, scores by domain and split, and use."""
    from huggingface_hub import EvalResult, ModelCardData

    from ...stages.train.record import PRETRAINED

    results = [
        EvalResult(
            task_type="semantic-segmentation",
            task_name="LiDAR semantic segmentation",
            dataset_type=str(metrics.protocol.dataset if metrics.protocol else datasets[0]),
            dataset_name=label,
            metric_type="mean_iou",
            metric_name=f"mIoU ({modality})",
            metric_value=round(100 * value, 2),
        )
        for label, metrics in scores.items()
        for modality, value in metrics.miou.items()
        if value is not None
    ]
    licences = {dataset: licence_of(dataset) for dataset in datasets}
    front = ModelCardData(
        **_licence_fields(list(licences.values())),
        library_name="xd3d",
        tags=_TAGS,
        datasets=list(datasets),
        model_name=name,
        eval_results=results or None,
    )
    if record.get("kind") == PRETRAINED:
        what = "The 3D network of a LiDAR segmentation, without heads, pretrained without labels"
        rest = "It predicts no classes: a training starts from it."
        use = f"xd3d train --set train.init={name}-pulled    # with its model settings, on data of your choice"
    else:
        what = f"""A network that labels every point of a LiDAR sweep with one of {len(record["classes"])} classes
({", ".join(record["classes"])}), trained"""
        rest = f"## Scores\n\n{_score_table(scores)}"
        use = f"xd3d evaluate --run {name}-pulled"
    text = f"""
{what} by xd3d {record["code"]} on
{" and ".join(datasets)} with the settings `{record["facts"].get("config", "")}`. The weights are those of step {step},
in safetensors; `run.json` has every setting, `log.jsonl` the training log.

{rest}
"""
    return _card(front.to_yaml(), name, text, licences, place, use)


def _card(front: str, name: str, text: str, licences: Mapping[str, Licence], place: str, use: str) -> str:
    lines = []
    for dataset, licence in licences.items():
        page = f" (<{licence.url}>)" if licence.url else ""
        lines.append(f"- **{dataset}**: {licence.name}{page}. {licence.sharing}")
    terms = "\n".join(lines)
    return f"""---
{front}
---

# {name}
{text}
## Licence of the data

{terms}

## Use

```bash
xd3d pull {shlex.quote(place)}
{use}
```
"""


def _licence_fields(licences: Sequence[Licence]) -> dict[str, Any]:
    """Returns the front matter about licences: that of the data if the hub knows it, else the page of the first."""
    names = {licence.hub for licence in licences}
    if len(names) == 1 and names != {"other"}:
        return {"license": names.pop()}
    link = next((licence.url for licence in licences if licence.url), "")
    return {"license": "other", "license_name": "terms-of-the-data", **({"license_link": link} if link else {})}


def _score_table(scores: Mapping[str, Metrics]) -> str:
    if not scores:
        return "It was not evaluated; `xd3d evaluate` scores it."
    lines = ["| mIoU, % | 2D | 3D | xM | fused | frames |", "|---|---:|---:|---:|---:|---:|"]
    for label, metrics in scores.items():
        values = metrics.miou
        shown = (values[each] for each in ("2d", "3d", "xm", "fused"))
        cells = ["-" if value is None else f"{100 * value:.1f}" for value in shown]
        lines.append(f"| {label} | {' | '.join(cells)} | {metrics.frames} |")
    return "\n".join(lines)
