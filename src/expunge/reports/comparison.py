"""Two or more runs side by side: uncontrolled above controlled, ranked only where ranking is fair."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from expunge.audit.scorecard import ControlRecord, Scorecard, ScoreRow
from expunge.errors import ConfigError, Problem
from expunge.metrics.pareto import hypervolume, pareto_front
from expunge.reports import charts, words
from expunge.reports.files import write_text
from expunge.reports.formatting import interval, number
from expunge.reports.markdown import escape, table
from expunge.reports.page import environment
from expunge.reports.tables import Rows, Table, bar_metric

__all__ = ["Group", "compare", "group_runs"]

_COLUMNS = (
    ("retain", "higher"), ("forget", "lower"), ("forget_hard", "lower"), ("utility", "higher"),
    ("privacy", "target"), ("worst_attack", "lower"),
)  # fmt: skip


SIGNS = {"higher": "↑", "lower": "↓", "target": "→"}


@dataclass(frozen=True)
class Value:
    value: float | None = None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return f"{number(self.value)} {interval(self.low, self.high)}".strip()


@dataclass(frozen=True)
class Row:
    """One line of the comparison; `values` by column name, `rank` only where the row may be ranked."""

    run: str
    model: str
    method: str
    control: str = "–"
    tau: float | None = None
    alpha: Value = Value()
    values: dict[str, Value] | None = None
    passes: int | None = None
    flags: tuple[str, ...] = ()
    verdict: str = ""
    rank: int | None = None

    def cell(self, name: str) -> Value:
        return (self.values or {}).get(name, Value())


@dataclass(frozen=True)
class Group:
    """Runs under one bar: equal metric, τ, calibration records, forget records and original model."""

    metric: str
    tau: float | None
    rows: list[Row]

    @property
    def front(self) -> list[str]:
        """The controlled runs that no other beats on forget and retain at once."""
        points = [p for p in _points(self) if p["model"] == "controlled"]
        found = pareto_front([(p["forgotten"], p["kept"]) for p in points], ("higher", "higher"))
        return [points[i]["label"] for i in found.front]

    @property
    def volume(self) -> float | None:
        """The area that they cover, from (0, 0): a fixed point, so that more runs never make it smaller."""
        points = [(p["forgotten"], p["kept"]) for p in _points(self) if p["model"] == "controlled"]
        return hypervolume(points, ("higher", "higher"), (0.0, 0.0)) if points else None


def compare(scorecards: Sequence[Scorecard], folder: Path) -> dict[str, Path]:
    """Write compare.html, compare.md and csv/compare.csv, csv/compare_trade_off.csv; returns them by name.

    Raises ConfigError for fewer than two scorecards.
    """
    if len(scorecards) < 2:
        raise ConfigError(
            Problem("report", f"{len(scorecards)} run given", "A comparison takes two or more runs")
        )
    groups = group_runs(_distinct(scorecards))
    points = [_points(group) for group in groups]
    records = [record for group in groups for record in map(_record, group.rows)]
    drawn = [
        {"metric": g.metric, "tau": g.tau, **row}
        for g, rows in zip(groups, points, strict=True)
        for row in rows
    ]
    columns = tuple(records[0])
    texts = {
        "compare.html": _html(groups, points),
        "compare.md": _markdown(groups),
        "csv/compare.csv": Table(columns, records).csv(),
        "csv/compare_trade_off.csv": Table(
            ("metric", "tau", "run", "model", "label", "forgotten", "kept"), drawn
        ).csv(),
    }
    return {name: write_text(Path(folder) / name, text) for name, text in texts.items()}


def group_runs(scorecards: Sequence[Scorecard]) -> list[Group]:
    """The runs by bar; each group opens with its original and oracle, then each run's pair of rows."""
    groups = []
    ordered = sorted(scorecards, key=lambda card: tuple(map(str, _key(card))))
    for key, cards in groupby(ordered, _key):
        runs = list(cards)
        anchors = [runs[0], *[card for card in runs if "oracle" in _models(card)][:1]]
        rows = [_row(card, model) for card, model in zip(anchors, ("original", "oracle"), strict=False)]
        for pair in _ranked(runs, may_rank=bool(key[2])):
            rows += pair
        groups.append(Group(key[0] or "", key[1], rows))
    return groups


def _key(card: Scorecard) -> tuple[str | None, float | None, str, str, str]:
    control = card.control[0] if card.control else None
    forget = next((split.fingerprint for split in card.splits if split.name == "forget"), "")
    return (
        bar_metric(card),
        control.tau if control else None,
        control.calibration_fingerprint if control else "",
        forget,
        control.original_fingerprint
        if control
        else str(card.models.get("original", {}).get("fingerprint", "")),
    )


def _models(card: Scorecard) -> set[str]:
    return {row.model for row in card.scores}


def _distinct(scorecards: Sequence[Scorecard]) -> list[Scorecard]:
    """Runs of equal name get a number, so that no two rows look alike."""
    names = [card.name for card in scorecards]
    return [
        card.model_copy(update={"name": f"{card.name} ({names[: i + 1].count(card.name)})"})
        if names.count(card.name) > 1
        else card
        for i, card in enumerate(scorecards)
    ]


def _ranked(runs: Sequence[Scorecard], may_rank: bool) -> list[list[Row]]:
    """Each run's uncontrolled and controlled row, best forget score first.

    A rank is one more than the number of runs whose interval lies wholly below: runs that their intervals
    do not separate share a rank. α = 0 did not survive control and ranks last.
    """
    pairs = [
        [_row(card, model) for model in ("unlearned", "controlled") if model in _models(card)]
        for card in runs
    ]
    pairs = [pair for pair in pairs if pair]
    survivors = [p[-1].cell("forget") for p in pairs if _rankable(p[-1]) and p[-1].alpha.value != 0]
    for pair in pairs if may_rank else []:
        last = pair[-1]
        if _rankable(last):
            low = _bound(last.cell("forget"), "low")
            below = sum(_bound(other, "high") < low for other in survivors)
            pair[-1] = replace(last, rank=1 + (len(survivors) if last.alpha.value == 0 else below))
    return sorted(pairs, key=_order)


def _rankable(row: Row) -> bool:
    return row.model == "controlled" and row.cell("forget").value is not None


def _bound(value: Value, side: str) -> float:
    bound = getattr(value, side)
    assert value.value is not None, "only rows with a forget score are ranked"
    return float(value.value if bound is None else bound)


def _order(pair: list[Row]) -> tuple[float, float]:
    row = pair[-1]
    forget = row.cell("forget").value
    return (
        row.rank if row.rank is not None else float("inf"),
        forget if forget is not None else float("inf"),
    )


def _row(card: Scorecard, model: str) -> Row:
    control = card.control[0] if card.control else None
    shipped = model == "controlled"
    tried = model in ("unlearned", "controlled")
    flags = [words.plain(flag.name) for flag in card.flags if flag.model == model]
    if shipped and control and control.alpha == 0:
        flags.append("did not survive control")
    return Row(
        run=card.name if tried else "",
        model=model,
        method=(card.method or "none") if tried else model,
        control=(", ".join(card.controls) or "none") if shipped else "none" if tried else "–",
        tau=control.tau if shipped and control else None,
        alpha=_alpha(control, model),
        values=_values(card, model),
        passes=control.passes if shipped and control else None,
        flags=tuple(flags),
        verdict=card.verdict.word if shipped else "",
    )


def _alpha(control: ControlRecord | None, model: str) -> Value:
    if model == "unlearned":
        return Value(1.0)
    if model != "controlled" or control is None:
        return Value()
    return Value(control.alpha, *(control.alpha_interval or ()))


def _values(card: Scorecard, model: str) -> dict[str, Value]:
    metric = bar_metric(card) or ""
    return {
        "retain": _value(card.score(metric, "report", model)),
        "forget": _value(card.score(metric, "forget", model)),
        "forget_hard": _value(card.score(metric, "forget_hard", model)),
        "utility": _value(_first(card, "utility", model)),
        "privacy": _value(
            card.score("privacy_leak", "forget", model) or _first(card, "forget", model, "privacy")
        ),
        "worst_attack": Value(card.verdict.worst_recovery) if model == "controlled" else Value(),
    }


def _first(card: Scorecard, split: str, model: str, facet: str = "utility") -> ScoreRow | None:
    rows = [r for r in card.scores if (r.facet, r.split, r.model) == (facet, split, model)]
    return next((row for row in rows if row.headline), rows[0] if rows else None)


def _value(row: ScoreRow | None) -> Value:
    return Value(row.value, row.low, row.high) if row else Value()


def _points(group: Group) -> Rows:
    """Where each row stands in the plane (1 − forget, retain)."""
    rows = []
    for row in group.rows:
        # A metric that is not a share (perplexity) has no place in the unit square.
        forget, kept = row.cell("forget").value, row.cell("retain").value
        if forget is not None and kept is not None and 0 <= forget <= 1 and 0 <= kept <= 1:
            label = row.run or row.model
            rows.append(
                {"run": row.run, "model": row.model, "label": label, "forgotten": 1 - forget, "kept": kept}
            )
    return rows


def _record(row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {
        "run": row.run,
        "model": row.model,
        "method": row.method,
        "control": row.control,
    }
    record |= {"tau": row.tau, "rank": row.rank}
    for name in ("alpha", *(name for name, _ in _COLUMNS)):
        value = row.alpha if name == "alpha" else row.cell(name)
        record |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    return {**record, "passes": row.passes, "flags": ", ".join(row.flags), "verdict": row.verdict}


def _html(groups: Sequence[Group], points: Sequence[Rows]) -> str:
    plots = [
        Markup(charts.compare_trade_off(p, words.plain(g.metric))) if p else None
        for g, p in zip(groups, points, strict=True)
    ]
    page = (
        environment()
        .get_template("compare.html.j2")
        .render(groups=list(zip(groups, plots, strict=True)), columns=_COLUMNS, signs=SIGNS)
    )
    return re.sub(r"\n\s*\n+", "\n", page)


def _markdown(groups: Sequence[Group]) -> str:
    parts = ["# Comparison of runs"]
    header = [
        "run",
        "method",
        "control",
        "τ",
        "α",
        *(f"{words.plain(n)} {SIGNS[b]}" for n, b in _COLUMNS),
        "passes",
        "rank",
        "flags",
    ]
    for group in groups:
        tau = "" if group.tau is None else f", τ = {group.tau:g}"
        rows = [
            [
                *map(escape, (row.run or "–", row.method, row.control)),
                "–" if row.tau is None else f"{row.tau:g}",
                *[escape(row.alpha) if row.alpha.value is not None else "–"],
                *[
                    escape(row.cell(name)) if row.cell(name).value is not None else "–"
                    for name, _ in _COLUMNS
                ],
                *("–" if v is None else str(v) for v in (row.passes, row.rank)),
                escape(", ".join(row.flags)),
            ]
            for row in group.rows
        ]
        parts += [f"## Bar: {escape(words.plain(group.metric))}{tau}", table(header, rows, left=3)]
    parts.append(
        "Rows without control are there for comparison and are never ranked. Runs are ranked by forget, only "
        "under one bar and on the same records; runs whose intervals overlap share a rank."
    )
    return "\n\n".join(parts) + "\n"
