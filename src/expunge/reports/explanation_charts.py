"""The plots of an explanation: heat maps and profiles by layer, drawn in the report's own colors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from expunge.reports.charts import COLORS, MODEL_DASHES, as_svg, axis, inline

__all__ = ["heat_map", "layer_profile", "signed_map"]

CELL = 22


def layer_name(layer: int) -> str:
    return "emb" if layer < 0 else str(layer)


def heat_map(
    records: Sequence[str],
    layers: Sequence[int],
    values: Sequence[Sequence[float]],
    title: str,
) -> str:
    """Records by layers: the darker, the more of a record lies there; each row has its own scale."""
    rows = []
    for record, row in zip(records, values, strict=True):
        top = max((abs(v) for v in row), default=0.0) or 1.0
        rows += [
            {"record": record, "layer": layer_name(layer), "value": max(0.0, v) / top}
            for layer, v in zip(layers, row, strict=True)
        ]
    return _cells(rows, "record", list(records), [layer_name(i) for i in layers], title)


def signed_map(points: Sequence[Mapping[str, Any]], title: str) -> str:
    """α by layers; above 0 (a conflict) in one color, below in another, 0 is blank."""
    names = [layer_name(int(layer)) for layer in points[0]["layers"]]
    rows = [
        {
            "record": f"{point['at']:g}",
            "layer": layer_name(int(layer)),
            "value": abs(value),
            "sign": value >= 0,
        }
        for point in points
        for layer, value in point["layers"].items()
        if value is not None
    ]
    return _cells(rows, "α", [f"{point['at']:g}" for point in points], names, title, signed=True)


def _cells(
    rows: list[dict[str, Any]],
    what: str,
    order: list[str],
    layers: list[str],
    title: str,
    *,
    signed: bool = False,
) -> str:
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("layer:O", title="layer", sort=layers, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("record:N", title=what, sort=order),
        opacity=alt.Opacity("value:Q", scale=alt.Scale(domain=[0, 1], range=[0.04, 1]), legend=None),
    )
    if signed:
        color = alt.Color(
            "sign:N",
            scale=alt.Scale(domain=[True, False], range=[COLORS["forget"], COLORS["keep"]]),
            legend=alt.Legend(labelExpr="datum.label == 'true' ? 'conflict' : 'forgetting helps'"),
        )
        chart = base.mark_rect().encode(color=color)
    else:
        chart = base.mark_rect(color=COLORS["controlled"])
    return as_svg(chart, title, height=max(120, 60 + CELL * len(order)))


def layer_profile(values: Mapping[str, Mapping[Any, float]], metric: str, title: str) -> str:
    """One line per model: how much of the forget set is read from each layer."""
    rows = [
        {"model": model, "layer": int(layer), "value": value}
        for model, by_layer in values.items()
        for layer, value in by_layer.items()
    ]
    models = list(values)
    legend = alt.Legend(symbolType="stroke")
    ticks = alt.Axis(
        values=sorted({int(layer) for by_layer in values.values() for layer in by_layer}), format="d"
    )
    chart = (
        alt.Chart(inline(rows))
        .mark_line(strokeWidth=2, point={"filled": True, "size": 22})
        .encode(
            x=alt.X(**axis("layer", "block (−1: embeddings)", axis=ticks)),
            y=alt.Y(**axis("value", metric)),
            color=alt.Color(
                "model:N", legend=legend,
                scale=alt.Scale(domain=models, range=[COLORS[m] for m in models]),
            ),
            strokeDash=alt.StrokeDash(
                "model:N", legend=legend,
                scale=alt.Scale(domain=models, range=[MODEL_DASHES[m] for m in models]),
            ),
        )
    )  # fmt: skip
    return as_svg(chart, title)
