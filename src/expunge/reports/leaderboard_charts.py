"""The plots of a leaderboard: trade-off under each bar, forget along τ, the α-curve of each method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt

from expunge.reports.charts import COLORS, as_svg, axis, inline
from expunge.reports.leaderboard_rows import Board, Entry, Row

__all__ = ["GLYPHS", "HUES", "Style", "alpha_curve", "styles", "tau_curve", "trade_off"]

HUES = tuple(name for name in COLORS if name.startswith("method"))
_SHAPES = ("circle", "triangle-up", "triangle-down", "triangle-right", "triangle-left", "cross")
GLYPHS = dict(zip(_SHAPES, "●▲▼▶◀✚", strict=True))
_ANCHORS = {"original": "square", "oracle": "diamond"}
_DASHES = ([1, 0], [7, 3], [2, 3], [9, 3, 2, 3])


class Style(NamedTuple):
    """How a method is drawn: color and shape say the same, and no two methods share both."""

    hue: str
    shape: str
    dash: Sequence[int]


def styles(entries: Sequence[Entry]) -> dict[str, Style]:
    """The same color and shape for a method in every plot of a page."""
    labels = dict.fromkeys(sorted(entry.label for entry in entries))
    return {
        label: Style(HUES[i % len(HUES)], _SHAPES[i % len(_SHAPES)], _DASHES[i // len(HUES) % len(_DASHES)])
        for i, label in enumerate(labels)
    }


def _finite(*values: float | None) -> bool:
    return all(v is not None and math.isfinite(v) for v in values)


def _spot(row: Row, label: str) -> dict[str, Any] | None:
    """Where a row stands in the plane (1 − forget, retain), with its deviation over seeds."""
    forget, retain = row.scores["forget"], row.scores["retain"]
    if forget.mean is None or retain.mean is None or not _finite(forget.mean, retain.mean):
        return None
    x, y = 1 - forget.mean, retain.mean
    return {
        "label": label, "x": x, "y": y,
        "x_low": x - (forget.sd or 0), "x_high": x + (forget.sd or 0),
        "y_low": y - (retain.sd or 0), "y_high": y + (retain.sd or 0),
    }  # fmt: skip


def trade_off(board: Board, tau: float, looks: Mapping[str, Style]) -> str | None:
    """Retain kept against forgotten under one bar: hollow before control, filled after."""
    x = alt.X(**axis("x", "forgotten: 1 − forget →", (0, 1.02)))
    y = alt.Y(**axis("y", "kept: retain ↑", (0, 1.02)))
    layers: list[Any] = []
    models = [row for row in (board.original, board.oracle) if row]
    anchors = [spot for row in models if (spot := _spot(row, row.kind))]
    layers += [part for spot in anchors if spot["label"] == "original" for part in _bar(tau * spot["y"], tau)]
    drawn = 0
    for entry in board.entries:
        look = looks[entry.label]
        spots = [_spot(entry.uncontrolled, entry.label), _spot(entry.controlled(tau), entry.label)]
        known = [spot for spot in spots if spot]
        drawn += len(known)
        line = alt.Chart(inline(known)).encode(x=x, y=y)
        layers.append(line.mark_line(color=COLORS[look.hue], strokeWidth=1, strokeDash=[3, 3], opacity=0.7))
        for spot, filled in zip(spots, (False, True), strict=True):
            if spot:
                layers += _mark(spot, look.shape, look.hue, filled, x, y)
    for spot in anchors:
        name, right = spot["label"], spot["x"] < 0.6
        layers += _mark(spot, _ANCHORS[name], name, True, x, y)
        text = alt.Chart(inline([spot])).mark_text(
            align="left" if right else "right",
            dx=10 if right else -10,
            dy=-11,
            fontSize=12,
            color=COLORS[name],
        )
        layers.append(text.encode(x=x, y=y, text="label:N"))
    title = f"{board.name}: retain kept against forgotten, by method, held to τ = {tau:g}"
    return as_svg(alt.layer(*layers), title, 340, 300) if drawn else None


def _mark(spot: dict[str, Any], shape: str, hue: str, filled: bool, x: Any, y: Any) -> list[Any]:
    base = alt.Chart(inline([spot])).encode(x=x, y=y)
    edge: dict[str, Any] = {"stroke": COLORS["paper"], "strokeWidth": 0.8} if filled else {"strokeWidth": 1.6}
    point = base.mark_point(shape=shape, filled=filled, size=85, color=COLORS[hue], opacity=1, **edge)
    if not filled or (spot["x_low"] == spot["x_high"] and spot["y_low"] == spot["y_high"]):
        return [point]
    rule: dict[str, Any] = {"color": COLORS[hue], "strokeWidth": 1.3, "clip": True}
    return [
        base.mark_rule(**rule).encode(x="x_low:Q", x2="x_high:Q"),
        base.mark_rule(**rule).encode(y="y_low:Q", y2="y_high:Q"),
        point,
    ]


def _bar(at: float, tau: float) -> list[Any]:
    base = alt.Chart(inline([{"at": at, "text": f"{tau:g} of the original"}])).encode(y="at:Q")
    return [
        base.mark_rule(color=COLORS["bar"], strokeDash=[5, 4], strokeWidth=1.2),
        base.mark_text(
            align="left", baseline="top", x=4, dy=4, fontSize=11, color=COLORS["bar"]
        ).encode(text="text:N"),
    ]  # fmt: skip


def tau_curve(board: Board, looks: Mapping[str, Style], score: str = "forget") -> str | None:
    """The forget score under each bar, one line a method, with the deviation over seeds."""
    taus = sorted(board.taus)
    span = (taus[-1] - taus[0] or 0.1) if taus else 0.1
    lines: dict[str, list[dict[str, Any]]] = {}
    for i, entry in enumerate(board.entries):
        aside = (i - (len(board.entries) - 1) / 2) * span / 90  # so that error bars do not cover each other
        for tau in taus:
            spread = entry.controlled(tau).scores[score]
            if spread.mean is not None and math.isfinite(spread.mean):
                low, high = spread.mean - (spread.sd or 0), spread.mean + (spread.sd or 0)
                row = {"tau": tau + aside, "value": spread.mean, "low": low, "high": high}
                lines.setdefault(entry.label, []).append({"label": entry.label, **row})
    if not lines:
        return None
    ends = [(taus[0] - 0.06 * span), (taus[-1] + 0.06 * span)]
    known = [v for rows in lines.values() for row in rows for v in (row["low"], row["high"])]
    models = [(r, n) for r, n in ((board.original, "original"), (board.oracle, "oracle")) if r]
    fixed = [(r.scores[score].mean, name) for r, name in models if _finite(r.scores[score].mean)]
    known += [float(v or 0) for v, _ in fixed]
    room = 0.06 * (max(known) - min(known) or 1)
    domain = (min(0.0, *known), max(known) + room)
    x = alt.X(**axis("tau", "τ: share of the original's retain score to keep", ends,
                     axis=alt.Axis(values=taus, format="~g", grid=True)))  # fmt: skip
    y = alt.Y(**axis("value", "forget score ↓", domain))
    layers: list[Any] = []
    for value, name in fixed:
        base = alt.Chart(inline([{"value": value, "label": name}])).encode(y=alt.Y("value:Q"))
        layers.append(base.mark_rule(color=COLORS[name], strokeDash=[7, 3], strokeWidth=1.3))
        layers.append(base.mark_text(align="left", x=4, dy=-7, fontSize=12, color=COLORS[name])
                      .encode(text="label:N"))  # fmt: skip
    tips = {label: rows[-1]["value"] for label, rows in lines.items()}
    lifts = label_lifts(tips, domain, 300)
    for label, rows in lines.items():
        look = looks[label]
        color = COLORS[look.hue]
        base = alt.Chart(inline(rows)).encode(x=x, y=y)
        layers += [
            base.mark_line(color=color, strokeWidth=1.8, strokeDash=list(look.dash)),
            base.mark_rule(color=color, strokeWidth=1.3).encode(y="low:Q", y2="high:Q"),
            base.mark_point(shape=look.shape, filled=True, size=70, color=color, opacity=1),
            alt.Chart(inline(rows[-1:])).mark_text(
                align="left", x="width", dx=6, dy=lifts[label], fontSize=12, color=color, limit=130
            ).encode(y=y, text="label:N"),
        ]  # fmt: skip
    return as_svg(alt.layer(*layers), f"{board.name}: forget score of each method under each τ", 560, 340)


def label_lifts(tips: Mapping[str, float], domain: tuple[float, float], height: float) -> dict[str, float]:
    """How far to move each label from the end of its line, so that labels stand a line apart."""
    lifts: dict[str, float] = {}
    last = -math.inf
    for label, value in sorted(tips.items(), key=lambda item: -item[1]):
        at = (domain[1] - value) / (domain[1] - domain[0]) * height
        last = max(at, last + 14)
        lifts[label] = last - at
    return lifts


def alpha_curve(board: Board, entry: Entry) -> str | None:
    """The bar metric on calibration along α, and the forget score where it was measured: a line a seed."""
    rows: list[dict[str, Any]] = [
        {"seed": str(cell.seed), "alpha": point.alpha, "what": what, "value": value}
        for cell in entry.finished
        for point in sorted(cell.curve, key=lambda p: p.alpha)
        for what, value in (("calibration", point.retain), ("forget", point.forget))
        if value is not None and math.isfinite(value)
    ]
    if not rows:
        return None
    values = [float(row["value"]) for row in rows]
    share = min(values) >= 0 and max(values) <= 1
    domain = (0.0, 1.02) if share else None
    kinds = [w for w in ("calibration", "forget") if any(row["what"] == w for row in rows)]
    hues: dict[str, tuple[str, list[int]]] = {"calibration": ("keep", [1, 0]), "forget": ("forget", [5, 3])}
    base = alt.Chart(inline(rows)).encode(
        x=alt.X(**axis("alpha", "α: 0 = original, 1 = unlearned", (0, 1))),
        y=alt.Y(**axis("value", "", domain, axis=alt.Axis(title=None))),
        detail="seed:N",
        color=alt.Color(
            "what:N",
            scale=alt.Scale(domain=kinds, range=[COLORS[hues[k][0]] for k in kinds]),
            legend=alt.Legend(symbolType="stroke", symbolOpacity=1),
        ),
    )
    dash = alt.StrokeDash(
        "what:N", scale=alt.Scale(domain=kinds, range=[hues[k][1] for k in kinds]), legend=None
    )
    layers: list[Any] = [
        base.mark_line(strokeWidth=1.5, opacity=0.85).encode(strokeDash=dash),
        base.mark_point(filled=True, size=14, opacity=0.8),
    ]
    for tau in board.taus:
        alphas = [row.alpha for row in entry.at(tau).values() if row.alpha is not None]
        if alphas:
            at = alt.Chart(inline([{"at": a} for a in alphas]))
            layers.append(at.mark_rule(color=COLORS["bar"], strokeWidth=1, strokeDash=[2, 3], opacity=0.8)
                          .encode(x="at:Q"))  # fmt: skip
            mean = math.fsum(alphas) / len(alphas)
            tip = alt.Chart(inline([{"at": mean, "text": f"{tau:g}"}]))
            layers.append(tip.mark_text(y=0, dy=6, dx=9, fontSize=10, color=COLORS["bar"])
                          .encode(x="at:Q", text="text:N"))  # fmt: skip
    return as_svg(alt.layer(*layers), f"{board.name}, {entry.label}: scores along α", 300, 220)
