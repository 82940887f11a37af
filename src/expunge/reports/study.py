"""The study of metrics under attack as one page: a scatter per metric and attack, and a ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
from markupsafe import Markup

from expunge.reports import charts, words
from expunge.reports.page import environment

__all__ = ["study_page"]


def study_page(data: Mapping[str, Any]) -> str:
    """The page of study.json alone; forget and report are never pooled."""
    metrics = [row["metric"] for row in data["ranking"]]
    attacks = list(dict.fromkeys(row["attack"] for row in data["rows"]))
    sides = list(dict.fromkeys(row["side"] for row in data["rows"]))
    plots = {
        (side, attack, metric): _scatter(_of(data["points"], side, attack, metric), metric, attack, side)
        for side in sides
        for attack in attacks
        for metric in metrics
    }
    fits = {(row["side"], row["attack"], row["metric"]): row for row in data["rows"]}
    return (
        environment()
        .get_template("study.html.j2")
        .render(data=data, metrics=metrics, attacks=attacks, sides=sides, plots=plots, fits=fits)
    )


def _of(points: Sequence[Mapping[str, Any]], side: str, attack: str, metric: str) -> list[dict[str, Any]]:
    return [dict(p) for p in points if (p["side"], p["attack"], p["metric"]) == (side, attack, metric)]


def _scatter(points: list[dict[str, Any]], metric: str, attack: str, side: str) -> Markup | None:
    """After against before, one point a model, with the line on which nothing changes."""
    if len(points) < 2:
        return None
    values = [p[key] for p in points for key in ("before", "after")]
    low, high = min(values), max(values)
    room = 0.05 * ((high - low) or 1.0)
    domain = [low - room, high + room]
    same = alt.Chart(charts.inline([{"x": d, "y": d} for d in domain])).mark_line(
        color=charts.COLORS["rule"], strokeDash=[5, 4]
    )
    dots = alt.Chart(charts.inline(points)).mark_point(
        color=charts.COLORS["controlled"], filled=True, size=70, opacity=0.8
    )
    chart = alt.layer(
        same.encode(
            x=alt.X(**charts.axis("x", "before", domain)), y=alt.Y(**charts.axis("y", "after", domain))
        ),
        dots.encode(x="before:Q", y="after:Q"),
    )
    title = f"{words.plain(metric)} on {side}, before and after {words.plain(attack)}"
    return Markup(charts.as_svg(chart, title, 190, 170))
