"""The plots of a leaderboard: trade-off under each bar, forget along τ, the α-curve of each method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt

from expunge.reports.charts import COLORS, as_svg, axis, inline
from expunge.reports.leaderboard_rows import Board, Entry, Row

__all__ = ["GLYPHS", "HUES", "Style", "alpha_curve", "styles", "tau_curve", "trade_off"]

HUES = tuple(name for name in COLORS if name.startswith("method"))
_SHAPES = ("circle", "triangle-up", "triangle-down", "triangle-right", "triangle-left", "cross")
GLYPHS = dict(zip(_SHAPES, "●▲▼▶◀✚", strict=True))
_DASHES = ([1, 0], [7, 3], [2, 3], [9, 3, 2, 3])


class Style(NamedTuple):
    """How a method is drawn: color and shape say the same, and no two methods share both."""

    hue: str
    shape: str
    dash: Sequence[int]


_MODELS = {"original": Style("original", "square", [7, 3]), "oracle": Style("oracle", "diamond", [7, 3])}


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


def _channels(looks: Mapping[str, Style], labels: Iterable[str]) -> dict[str, Any]:
    """Color, shape and dash of each label; the models have their own."""
    known = {**_MODELS, **looks}
    chosen = {label: known[label] for label in labels}

    def scale(values: Iterable[Any]) -> alt.Scale:
        return alt.Scale(domain=list(chosen), range=list(values))

    return {
        "color": alt.Color("label:N", scale=scale(COLORS[c.hue] for c in chosen.values()), legend=None),
        "shape": alt.Shape("label:N", scale=scale(c.shape for c in chosen.values()), legend=None),
        "strokeDash": alt.StrokeDash("label:N", scale=scale(c.dash for c in chosen.values()), legend=None),
    }


def trade_off(board: Board, tau: float, looks: Mapping[str, Style]) -> str | None:
    """Retain kept against forgotten under one bar: hollow before control, filled after."""
    models = [row for row in (board.original, board.oracle) if row]
    anchors = [spot for row in models if (spot := _spot(row, row.kind))]
    loose = [spot for e in board.entries if (spot := _spot(e.uncontrolled, e.label))]
    held = [spot for e in board.entries if (spot := _spot(e.controlled(tau), e.label))]
    if not loose and not held:
        return None
    look = _channels(looks, [spot["label"] for spot in (*anchors, *loose, *held)])
    color, shape = look["color"], look["shape"]
    x = alt.X(**axis("x", "forgotten: 1 − forget →", (0, 1.02)))
    y = alt.Y(**axis("y", "kept: retain ↑", (0, 1.02)))
    pairs = alt.Chart(inline([*loose, *held])).encode(x=x, y=y, color=color)
    filled = alt.Chart(inline(held)).encode(color=color)
    known = alt.Chart(inline([*held, *anchors])).encode(x=x, y=y, color=color, shape=shape)
    layers: list[Any] = [
        part for a in anchors if a["label"] == "original" for part in _bar(tau * a["y"], tau)
    ]
    layers += [
        pairs.mark_line(strokeWidth=1, strokeDash=[3, 3], opacity=0.7),
        alt.Chart(inline(loose)).encode(x=x, y=y, color=color, shape=shape)
        .mark_point(filled=False, size=85, opacity=1, strokeWidth=1.6),
        filled.mark_rule(strokeWidth=1.3, clip=True).encode(x="x_low:Q", x2="x_high:Q", y=y),
        filled.mark_rule(strokeWidth=1.3, clip=True).encode(x=x, y="y_low:Q", y2="y_high:Q"),
        known.mark_point(filled=True, size=85, opacity=1, stroke=COLORS["paper"], strokeWidth=0.8),
    ]  # fmt: skip
    for spot in anchors:
        side: dict[str, Any] = (
            {"align": "left", "dx": 10} if spot["x"] < 0.6 else {"align": "right", "dx": -10}
        )
        text = alt.Chart(inline([spot])).mark_text(dy=-11, fontSize=12, **side)
        layers.append(text.encode(x=x, y=y, text="label:N", color=color))
    title = f"{board.name}: retain kept against forgotten, by method, held to τ = {tau:g}"
    return as_svg(alt.layer(*layers), title, 340, 300)


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
    rows: list[dict[str, Any]] = []
    for i, entry in enumerate(board.entries):
        aside = (i - (len(board.entries) - 1) / 2) * span / 90  # so that error bars do not cover each other
        for tau in taus:
            spread = entry.controlled(tau).scores[score]
            if spread.mean is not None and math.isfinite(spread.mean):
                low, high = spread.mean - (spread.sd or 0), spread.mean + (spread.sd or 0)
                rows.append({"label": entry.label, "tau": tau + aside, "value": spread.mean})
                rows[-1] |= {"low": low, "high": high}
    if not rows:
        return None
    models = [row for row in (board.original, board.oracle) if row and _finite(row.scores[score].mean)]
    fixed = [{"label": row.kind, "value": row.scores[score].mean} for row in models]
    known = [v for row in rows for v in (row["low"], row["high"])] + [float(f["value"] or 0) for f in fixed]
    domain = (min(0.0, *known), max(known) + 0.06 * (max(known) - min(known) or 1))
    tips = {row["label"]: row["value"] for row in (*fixed, *rows)}
    ends = [{"label": label, "value": at} for label, at in _apart(tips, 14 / 300 * (domain[1] - domain[0]))]
    look = _channels(looks, tips)
    edge, ticks = 0.06 * span, alt.Axis(values=taus, format=".4~f", grid=True)
    reach = (taus[0] - edge, taus[-1] + edge)
    x = alt.X(**axis("tau", "τ: share of the bar metric to keep", reach, axis=ticks))
    y = alt.Y(**axis("value", "forget score ↓", domain))
    level = alt.Chart(inline(fixed)).encode(y=y, color=look["color"])
    base = alt.Chart(inline(rows)).encode(x=x, y=y, color=look["color"])
    layers = [
        level.mark_rule(strokeWidth=1.3, strokeDash=[7, 3]),
        base.mark_line(strokeWidth=1.8).encode(strokeDash=look["strokeDash"]),
        base.mark_rule(strokeWidth=1.3).encode(y="low:Q", y2="high:Q"),
        base.mark_point(filled=True, size=70, opacity=1).encode(shape=look["shape"]),
        alt.Chart(inline(ends)).mark_text(align="left", x="width", dx=6, fontSize=12, limit=130)
        .encode(y=y, text="label:N", color=look["color"]),
    ]  # fmt: skip
    return as_svg(alt.layer(*layers), f"{board.name}: {score} score of each method under each τ", 520, 340)


def _apart(tips: Mapping[str, float], line: float) -> list[tuple[str, float]]:
    """Where to write each label: beside the end of its line, but a line of text apart from the one above."""
    placed: list[tuple[str, float]] = []
    for label, value in sorted(tips.items(), key=lambda item: -item[1]):
        placed.append((label, min(value, placed[-1][1] - line) if placed else value))
    return placed


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
    hues: dict[str, tuple[str, list[int]]] = {
        "calibration": ("keep", [1, 0]),
        "forget": ("forget", [5, 3]),
    }
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
    shipped = {tau: [r.alpha for r in entry.at(tau).values() if r.alpha is not None] for tau in board.taus}
    rules = alt.Chart(inline({"at": alpha} for alphas in shipped.values() for alpha in alphas))
    names = [
        {"at": math.fsum(alphas) / len(alphas), "text": f"{tau:g}", "y": 6 + 12 * i}
        for i, (tau, alphas) in enumerate(shipped.items())
        if alphas
    ]
    tips = alt.Chart(inline(names)).encode(x="at:Q", y=alt.Y("y:Q", scale=None), text="text:N")
    layers += [
        rules.mark_rule(color=COLORS["bar"], strokeWidth=1, strokeDash=[2, 3], opacity=0.8).encode(x="at:Q"),
        tips.mark_text(align="left", dx=4, fontSize=11, color=COLORS["bar"]),
    ]
    return as_svg(alt.layer(*layers), f"{board.name}, {entry.label}: scores along α", 300, 220)
