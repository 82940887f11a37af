"""The plots of a report as inline SVG: drawn once, at build time, from the rows of the CSV files.

Colors are written as CSS variables, so that the page decides them for screen, dark screens and paper.
Shape and dash repeat what color says.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from expunge.reports.tables import Rows

__all__ = [
    "COLORS", "MODEL_DASHES", "alpha_curve", "as_svg", "axis", "compare_trade_off", "inline", "recovery",
    "relearning", "series", "trade_off",
]  # fmt: skip

WIDTH, HEIGHT = 430, 310
MAX_POINTS = 400  # per line; a longer log is thinned evenly

# Stand-ins that no chart uses otherwise; each becomes the CSS variable of its name.
COLORS = {
    "ink": "#010101",
    "muted": "#020202",
    "rule": "#030303",
    "original": "#040404",
    "unlearned": "#050505",
    "controlled": "#060606",
    "oracle": "#070707",
    "bar": "#080808",
    "paper": "#090909",
    "warn": "#0a0a0a",
    "forget": "#0b0b0b",
    "forget_hard": "#0c0c0c",
    "keep": "#0d0d0d",
    "keep2": "#0e0e0e",
    **{f"method{i}": f"#1{i}1{i}1{i}" for i in range(1, 9)},
}
_MODEL_SHAPES = {"original": "square", "unlearned": "cross", "controlled": "circle", "oracle": "diamond"}
MODEL_DASHES = {"original": [1, 0], "unlearned": [2, 3], "controlled": [1, 0], "oracle": [7, 3]}
_SPLITS = {
    "calibration": ("keep", [1, 0]),
    "report": ("keep2", [7, 3]),
    "forget": ("forget", [1, 0]),
    "forget_hard": ("forget_hard", [2, 3]),
}
_FONT = "var(--sans)"


def as_svg(chart: Any, title: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    """The chart as an <svg> that scales with the page and carries its title for screen readers."""
    chart = chart.properties(width=width, height=height, autosize={"type": "fit", "contains": "padding"})
    axes = {
        "labelColor": COLORS["muted"],
        "titleColor": COLORS["muted"],
        "gridColor": COLORS["rule"],
        "domainColor": COLORS["muted"],
        "tickColor": COLORS["rule"],
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "titleLimit": 290,
        "domain": False,
        "tickCount": 5,
    }
    legend = {
        "orient": "top",
        "title": None,
        "labelColor": COLORS["ink"],
        "labelFontSize": 12,
        "symbolStrokeWidth": 2,
        "symbolSize": 90,
        "symbolOpacity": 1,
        "labelLimit": 220,
    }
    chart = chart.configure(
        background="transparent", font=_FONT, axis=axes, legend=legend, view={"stroke": None}
    )
    out = io.StringIO()
    chart.save(out, format="svg")
    svg = re.sub(
        r' xmlns(:\w+)?="[^"]*"| (?:aria|role)[\w-]*="[^"]*"| pointer-events="none"', "", out.getvalue()
    )
    for name, color in COLORS.items():
        svg = svg.replace(f'"{color}"', f'"var(--{name})"')
    label = html.escape(title)
    return re.sub(
        r'<svg [^>]*width="([\d.]+)" height="([\d.]+)"[^>]*>',
        lambda m: f'<svg class="plot" viewBox="0 0 {m[1]} {m[2]}" role="img" aria-label="{label}">',
        svg,
        count=1,
    )


def inline(rows: Iterable[dict[str, Any]]) -> alt.InlineData:
    """Rows as the plot can read them: ∞ and NaN have no place on an axis and are left out."""
    return alt.InlineData(
        values=[
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            for row in rows
        ]
    )


def _thin(rows: Rows) -> Rows:
    step = math.ceil(len(rows) / MAX_POINTS) or 1
    return rows if step == 1 else [*rows[:-1:step], rows[-1]]


_PLACES: dict[str, dict[str, Any]] = {
    "above right end": {"baseline": "bottom", "align": "right", "x": "width", "dx": -4, "dy": -3},
    "below": {"baseline": "top", "align": "left", "x": 110, "dx": 4, "dy": 4},
    "right": {"baseline": "top", "align": "left", "y": 0, "dx": 5, "dy": 2},
    "left": {"baseline": "top", "align": "right", "y": 0, "dx": -5, "dy": 2},
}


def _rule(value: float, text: str, place: str, color: str) -> Any:
    """A dashed line across the plot with a word beside it; vertical where the word stands left or right."""
    at = {"x" if place in ("left", "right") else "y": "at:Q"}
    base = alt.Chart(inline([{"at": value, "text": text}]))
    rule = base.mark_rule(color=COLORS[color], strokeDash=[5, 4], strokeWidth=1.4).encode(**at)
    label = base.mark_text(color=COLORS[color], fontSize=12, **_PLACES[place]).encode(text="text:N", **at)
    return alt.layer(rule, label)


def axis(field: str, title: str, domain: Sequence[float] | None = None, **more: Any) -> dict[str, Any]:
    scale = alt.Scale(domain=list(domain), nice=False) if domain else alt.Scale(zero=False, nice=True)
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, **more}


def trade_off(rows: Rows, metric: str, bar: float | None) -> str:
    """Retain against 1 − forget: the four models, the α-path between two of them, the bar."""
    x = alt.X(**axis("forgotten", f"forgotten: 1 − {metric} →", (0, 1.02)))
    y = alt.Y(**axis("kept", f"kept: {metric} ↑", (0, 1.02)))
    layers = [_rule(bar, "bar", "below", "bar")] if bar is not None and 0 <= bar <= 1 else []
    path = [row for row in rows if row["model"] == "path"]
    line = alt.Chart(inline(path)).encode(x=x, y=y)
    layers.append(line.mark_line(color=COLORS["muted"], strokeWidth=1.2).encode(order="alpha:Q"))
    layers.append(line.mark_point(color=COLORS["muted"], filled=True, size=14, opacity=1))
    for row in rows:
        if row["model"] in _MODEL_SHAPES:
            layers += _labeled_point(row, x, y)
    return as_svg(
        alt.layer(*layers), f"Trade-off: {metric} kept on retain against forgotten on forget, by model"
    )


def _labeled_point(row: dict[str, Any], x: Any, y: Any) -> list[Any]:
    model = row["model"]
    color = COLORS[model]
    base = alt.Chart(inline([row])).encode(x=x, y=y)
    right = row["forgotten"] < 0.6
    below = model in ("controlled", "unlearned") and row["kept"] > 0.15
    return [
        base.mark_point(
            shape=_MODEL_SHAPES[model], filled=True, size=130, color=color, opacity=1, stroke=COLORS["paper"]
        ),
        base.mark_text(
            align="left" if right else "right", dx=9 if right else -9, dy=14 if below else -13, fontSize=12,
            fontWeight="bold" if model == "controlled" else "normal", color=color,
        ).encode(text="model:N"),
    ]  # fmt: skip


def alpha_curve(rows: Rows, metric: str, bar: float | None, alpha: float | None) -> str:
    """The metric of each split against α, with the bar and the shipped α."""
    splits = [s for s in _SPLITS if any(r["split"] == s for r in rows)]
    splits += sorted({r["split"] for r in rows} - set(_SPLITS))
    style = {s: _SPLITS.get(s, ("muted", [1, 2])) for s in splits}
    bound = [
        r[k] for r in rows for k in ("value", "low", "high") if r.get(k) is not None and math.isfinite(r[k])
    ]
    share = bool(bound) and min(bound) >= 0 and max(bound) <= 1
    x = alt.X(**axis("alpha", "α: 0 = original, 1 = unlearned", (0, 1)))
    y = alt.Y(**axis("value", metric, (0, 1.02) if share else None))
    legend = alt.Legend(symbolType="stroke", symbolOpacity=1, labelExpr="replace(datum.label, /_/g, ' ')")
    color = alt.Color(
        "split:N",
        scale=alt.Scale(domain=splits, range=[COLORS[style[s][0]] for s in splits]),
        legend=legend,
    )
    dash = alt.StrokeDash(
        "split:N", scale=alt.Scale(domain=splits, range=[style[s][1] for s in splits]), legend=legend
    )
    base = alt.Chart(inline(rows)).encode(x=x)
    layers = [
        base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_area(opacity=0.13)
        .encode(y=alt.Y("low:Q"), y2="high:Q", color=color),
        base.mark_line(strokeWidth=2).encode(y=y, color=color, strokeDash=dash),
        base.mark_point(filled=True, size=22, opacity=1).encode(y=y, color=color),
    ]
    if bar is not None:
        layers.append(_rule(bar, "bar", "above right end", "bar"))
    if alpha is not None:
        layers.append(
            _rule(alpha, f"ships: α = {alpha:.2f}", "right" if alpha < 0.7 else "left", "controlled")
        )
    return as_svg(alt.layer(*layers), f"{metric} on each split against α")


def recovery(rows: Rows, worst: str | None, baseline: str = "oracle") -> str:
    """Recovery of each attack with its interval; 0 is the line of the oracle (or placebo), 1 the original's.

    Rows carry `label`; the worst configuration of each attack is the solid dot, the others are rings.
    """
    labels = list(dict.fromkeys(row["label"] for row in rows))
    shown = [r for r in rows if r["recovery"] is not None]
    values = [
        v for r in shown for v in (r["recovery"], r["low"], r["high"]) if v is not None and math.isfinite(v)
    ]
    domain = (min(-0.1, *values) - 0.03, max(1.1, *values) + 0.03) if values else (-0.1, 1.1)
    y = alt.Y(
        "label:N",
        sort=labels,
        title=None,
        scale=alt.Scale(padding=0.8),
        axis=alt.Axis(labelColor=COLORS["ink"], labelLimit=160, grid=True),
    )
    x = alt.X(**axis("recovery", "recovery", domain))
    main = alt.Chart(inline(r for r in shown if r["worst"])).encode(y=y)
    rest = alt.Chart(inline(r for r in shown if not r["worst"])).encode(y=y, x=x)
    missing = [{"label": name} for name in labels if name not in {r["label"] for r in shown}]
    hue = alt.condition(
        alt.datum["attack"] == worst, alt.value(COLORS["warn"]), alt.value(COLORS["controlled"])
    )
    layers = [
        _rule(0, f"like the {baseline}", "right", "oracle"),
        _rule(1, "like the original", "left", "original"),
        rest.mark_point(size=38, color=COLORS["muted"], opacity=1, strokeWidth=1.2),
        main.mark_rule(strokeWidth=2.2).encode(x="low:Q", x2="high:Q", color=hue),
        main.mark_point(filled=True, size=95, opacity=1).encode(x=x, color=hue),
    ]
    mark = [r for r in shown if r["worst"] and r["attack"] == worst][:1]
    if mark:
        tip = alt.Chart(inline([{**mark[0], "text": "worst"}])).encode(y=y, x=x, text="text:N")
        layers.append(tip.mark_text(dy=-12, fontSize=12, fontWeight="bold", color=COLORS["warn"]))
    if missing:
        none = alt.Chart(inline([{**m, "text": "n/a: see the table"} for m in missing])).encode(
            y=y, x=alt.datum(0), text="text:N"
        )
        layers.append(none.mark_text(align="left", dx=6, fontSize=12, color=COLORS["muted"]))
    order = alt.Chart(inline({"label": name} for name in labels)).mark_point(opacity=0).encode(y=y)
    return as_svg(
        alt.layer(order, *layers),
        "Recovery of the forgotten knowledge under each attack",
        470,
        84 + 34 * len(labels),
    )


def relearning(rows: Rows, metric: str) -> str:
    """The attacked metric against steps of further training, one line per model."""
    models = [m for m in _MODEL_SHAPES if any(r["model"] == m for r in rows)]
    color = alt.Color("model:N", scale=alt.Scale(domain=models, range=[COLORS[m] for m in models]))
    dash = alt.StrokeDash("model:N", scale=alt.Scale(domain=models, range=[MODEL_DASHES[m] for m in models]))
    shape = alt.Shape("model:N", scale=alt.Scale(domain=models, range=[_MODEL_SHAPES[m] for m in models]))
    values = [r["value"] for r in rows if r["value"] is not None and math.isfinite(r["value"])]
    share = bool(values) and min(values) >= 0 and max(values) <= 1
    base = alt.Chart(inline(rows)).encode(
        x=alt.X(**axis("step", "steps of the attack")),
        y=alt.Y(**axis("value", metric, (0, 1.02) if share else None)),
        color=color,
    )
    layers = [
        base.mark_line(strokeWidth=2).encode(strokeDash=dash),
        base.mark_point(filled=True, size=55, opacity=1).encode(shape=shape),
    ]
    return as_svg(alt.layer(*layers), f"{metric} while the model is trained further", WIDTH, 290)


def _tick_format(rows: Rows) -> str:
    top = max((abs(row["value"]) for row in rows if math.isfinite(row["value"])), default=0.0)
    return "~e" if top < 1e-3 or top >= 1e5 else "~g"


def series(rows: Rows, column: str, title: str, percent: bool = False) -> str:
    """One logged column against the optimizer step."""
    drawn = [{"step": row["step"], "value": row.get(column)} for row in rows]
    drawn = _thin([row for row in drawn if row["value"] is not None])
    y = (
        axis("value", "", (0, 1.02))
        if percent
        else axis("value", "", axis=alt.Axis(format=_tick_format(drawn), title=None))
    )
    chart = (
        alt.Chart(inline(drawn))
        .mark_line(strokeWidth=1.8, color=COLORS["controlled"], point=len(drawn) < 3)
        .encode(x=alt.X(**axis("step", "step")), y=alt.Y(**{**y, "title": None}))
    )
    return as_svg(chart, f"{title} against the optimizer step", 300, 190)


def compare_trade_off(rows: Rows, metric: str) -> str:
    """Several runs in one plane: uncontrolled (ring) and controlled (solid) points joined by a line."""
    x = alt.X(**axis("forgotten", f"forgotten: 1 − {metric} →", (0, 1.02)))
    y = alt.Y(**axis("kept", f"kept: {metric} ↑", (0, 1.02)))
    layers = []
    for name in dict.fromkeys(row["run"] for row in rows if row["run"]):
        pair = [row for row in rows if row["run"] == name]
        layers.append(
            alt.Chart(inline(pair))
            .mark_line(color=COLORS["muted"], strokeWidth=1.2, strokeDash=[3, 3])
            .encode(x=x, y=y)
        )
    lifts = _label_lifts([row for row in rows if row["model"] != "unlearned"], 350)
    for row in rows:
        model, right = row["model"], row["forgotten"] < 0.6
        base = alt.Chart(inline([row])).encode(x=x, y=y)
        style: dict[str, Any] = {
            "shape": _MODEL_SHAPES[model],
            "filled": model != "unlearned",
            "color": COLORS[model],
        }
        layers.append(base.mark_point(size=110, opacity=1, **style))
        if model != "unlearned":
            dx = 9 if right else -9
            text = base.mark_text(
                fontSize=12,
                color=COLORS[model],
                dy=lifts[row["label"]],
                align="left" if right else "right",
                dx=dx,
            )
            layers.append(text.encode(text="label:N"))
    return as_svg(alt.layer(*layers), f"Trade-off of the compared runs in {metric}", 620, 400)


def _label_lifts(rows: Rows, height: float) -> dict[str, float]:
    """How far each label stands from its point, so that labels of one side are a line apart."""
    lifts: dict[str, float] = {}
    for side in (True, False):
        last = -math.inf
        for row in sorted((r for r in rows if (r["forgotten"] < 0.6) is side), key=lambda r: -r["kept"]):
            at = (1 - row["kept"]) * height
            last = max(at - 12, last + 14)
            lifts[row["label"]] = last - at
    return lifts
