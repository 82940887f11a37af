"""The report as one self-contained page: no script, style, font or picture from anywhere else."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from expunge.audit.scorecard import RecordRow, ScopeRow, Scorecard, ScoreRow
from expunge.reports import charts, formatting, words
from expunge.reports.tables import Rows, Table, bar_metric, report_tables

__all__ = ["Notes", "environment", "render_html", "score_groups"]

RECORD_BUDGET = 700_000  # bytes of the page that the per-record table may take
CURVE_PANELS = 6


class Notes:
    """Numbered footnotes; the same text gets the same number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


@dataclass(frozen=True)
class Cell:
    """One number of a table; `notes` are the footnotes that belong to it."""

    text: str
    interval: str = ""
    notes: tuple[int, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Line:
    """One metric on one split: a cell per model."""

    row: ScoreRow
    sign: str
    better: str
    cells: dict[str, Cell]
    n: int


@dataclass(frozen=True)
class ScopeLine:
    """One cell of the scope: a row per model."""

    cell: str
    split: str
    form: str | None
    metric: str
    better: str
    n: int
    models: dict[str, ScopeRow] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordTable:
    """What the per-record table shows: columns (model, value name) and rows, `total` with those left out."""

    columns: list[tuple[str, str]] = field(default_factory=list)
    groups: list[tuple[str, list[str]]] = field(default_factory=list)
    rows: list[RecordRow] = field(default_factory=list)
    total: int = 0
    splits: list[str] = field(default_factory=list)


def environment() -> jinja2.Environment:
    """Templates with everything escaped and every number formatted the one way."""
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("expunge.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    for name in (
        "number",
        "interval",
        "duration",
        "byte_size",
        "operations",
        "setting",
        "shorten",
        "signed",
        "amount",
        "moment",
    ):
        env.filters[name] = getattr(formatting, name)
    for name in ("plain", "reason", "split_meaning", "model_meaning", "metric_summary", "attack_budget"):
        env.filters[name] = getattr(words, name)
    env.filters["yaml"] = _yaml
    env.globals["threats"] = words.THREATS
    env.globals["aim_meaning"] = words.AIMS
    return env


def render_html(scorecard: Scorecard, *, scorecard_hash: str | None = None) -> str:
    """The report of one scorecard as HTML; `scorecard_hash` is printed beside the signatures."""
    tables = report_tables(scorecard)
    notes = Notes()
    tone, meaning = words.verdict_meaning(scorecard.verdict.word)
    first = scorecard.control[0] if scorecard.control else None
    headline, rest = score_groups(scorecard, notes)
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            card=scorecard,
            tone=tone,
            meaning=meaning,
            bar_sentence=words.bar_sentence(scorecard),
            control=first,
            metric=bar_metric(scorecard),
            models=_present(scorecard),
            headline=headline,
            rest=rest,
            notes=notes.texts,
            plots=_plots(scorecard, tables),
            attacks=_attacks(scorecard),
            scope=scope_lines(scorecard),
            records=_record_table(scorecard),
            glossary=_glossary(scorecard),
            scorecard_hash=scorecard_hash,
        )
    )
    return re.sub(r"\n\s*\n+", "\n", page)


def _present(scorecard: Scorecard) -> list[str]:
    return [m for m in words.MODELS if any(row.model == m for row in scorecard.scores)]


def scope_lines(scorecard: Scorecard) -> list[ScopeLine]:
    """The four cells in their order, a row per split and form."""
    lines: dict[tuple[str, str | None], ScopeLine] = {}
    for row in scorecard.scope:
        new = ScopeLine(row.cell, row.split, row.form, row.metric, row.better, row.n)
        lines.setdefault((row.split, row.form), new).models[row.model] = row
    return list(lines.values())


def score_groups(
    scorecard: Scorecard, notes: Notes
) -> tuple[list[tuple[str, list[Line]]], list[tuple[str, list[Line]]]]:
    """Lines by facet: those of the first page, and the rest."""
    lines: dict[tuple[str, str], dict[str, ScoreRow]] = {}
    for row in scorecard.scores:
        lines.setdefault((row.metric, row.split), {})[row.model] = row
    parts: tuple[list[tuple[str, list[Line]]], ...] = ([], [])
    for headline, groups in zip((True, False), parts, strict=True):
        for facet in words.FACETS:
            chosen = [
                _line(by_model, notes)
                for by_model in lines.values()
                if any(r.headline for r in by_model.values()) is headline
                and next(iter(by_model.values())).facet == facet
            ]
            if chosen:
                groups.append((facet, chosen))
    return parts[0], parts[1]


def _line(by_model: dict[str, ScoreRow], notes: Notes) -> Line:
    row = next(iter(by_model.values()))
    sign, better = words.direction(row)
    cells = {model: _cell(by_model.get(model), notes) for model in words.MODELS}
    return Line(row, sign, better, cells, max(r.n for r in by_model.values()))


def _cell(row: ScoreRow | None, notes: Notes) -> Cell:
    if row is None:
        return Cell("–", title="not measured for this model")
    if row.value is None:
        text = words.reason(row.reason)
        return Cell(formatting.NA, notes=(notes.mark(text),), title=text)
    marks = [words.reason(flag) for flag in row.flags]
    marks += [f"{count} records left out: {words.reason(why)}" for why, count in row.skipped.items()]
    return Cell(
        formatting.number(row.value),
        formatting.interval(row.low, row.high),
        tuple(map(notes.mark, marks)),
        "; ".join(marks),
    )


def _plots(scorecard: Scorecard, tables: dict[str, Table]) -> dict[str, Any]:
    """Every plot of the page as SVG, drawn from the rows of its CSV file."""
    control = scorecard.control[0] if scorecard.control else None
    metric = bar_metric(scorecard)
    name = words.plain(metric or "")
    bar = control.bar if control else None
    plots: dict[str, Any] = {
        "trade_off": None,
        "alpha": [],
        "recovery": None,
        "relearning": [],
        "training": [],
    }
    if rows := tables["trade_off"].rows:
        plots["trade_off"] = Markup(charts.trade_off(rows, name, bar))
    for kind in dict.fromkeys(row["metric"] for row in tables["alpha_curve"].rows):
        own = next((c for c in scorecard.control if c.metric == kind), None)
        rows = [row for row in tables["alpha_curve"].rows if row["metric"] == kind]
        alpha = own.alpha if own else control.alpha if control else None
        plots["alpha"].append(
            Markup(charts.alpha_curve(rows, words.plain(kind), own.bar if own else None, alpha))
        )
    if any(row["recovery"] is not None for row in tables["attacks"].rows):
        rows = [
            {**row, "label": label}
            for row, label in zip(tables["attacks"].rows, _attack_labels(scorecard), strict=True)
        ]
        plots["recovery"] = Markup(
            charts.recovery(rows, scorecard.verdict.worst_attack, _attacks(scorecard)["baseline"])
        )
    plots["relearning"] = _relearning(tables["relearning"].rows, scorecard)
    plots["training"] = _training(tables["training"])
    return plots


def _relearning(rows: Rows, scorecard: Scorecard) -> list[tuple[str, str]]:
    metrics = {row.attack: words.plain(row.metric) for row in scorecard.attacks}
    runs = list(dict.fromkeys((row["attack"], row["config"]) for row in rows))
    return [
        (
            f"{words.plain(attack)}, {config}" if config else words.plain(attack),
            Markup(
                charts.relearning(
                    [r for r in rows if (r["attack"], r["config"]) == (attack, config)],
                    metrics.get(attack, "value"),
                )
            ),
        )
        for attack, config in runs[:CURVE_PANELS]
    ]


def _training(table: Table) -> list[tuple[str, str]]:
    titles = {
        "calibration": "bar metric on calibration",
        "active": "share held back by the control",
        "grad_norm": "gradient norm",
        "lr": "learning rate",
    }
    drawn: list[tuple[str, str]] = []
    for column in table.columns[2:]:
        if any(row.get(column) is not None for row in table.rows):
            title = titles.get(column) or words.plain(column.replace("loss.", "loss: "))
            drawn.append(
                (title, Markup(charts.series(table.rows, column, title, percent=column == "active")))
            )
    return drawn


def _attack_labels(scorecard: Scorecard) -> list[str]:
    """One line of the plot per attack, and per split or score where it is not the usual one."""
    splits = {row.split for row in scorecard.attacks}
    usual = Counter(row.metric for row in scorecard.attacks).most_common(1)[0][0]
    return [
        " · ".join(
            [
                words.plain(row.attack),
                *[words.plain(row.split)] * (len(splits) > 1),
                *[words.plain(row.metric)] * (row.metric not in (usual, row.attack)),
            ]
        )
        for row in scorecard.attacks
    ]


def _attacks(scorecard: Scorecard) -> dict[str, Any]:
    """The tables under the plot: the worst configuration of each attack, and the others."""
    rows = scorecard.attacks
    return {
        "worst": [row for row in rows if row.worst] or rows,
        "rest": [row for row in rows if not row.worst] if any(row.worst for row in rows) else [],
        "names": sorted({row.attack for row in rows}),
        "threats": [name for name in words.THREATS if any(row.threat == name for row in rows)],
        "baseline": "placebo" if any(row.baseline == "placebo" for row in rows) else "oracle",
    }


def _record_table(scorecard: Scorecard) -> RecordTable:
    """As many records as the page can carry: those that leak first, then the forget side, then the others."""
    names = list(
        dict.fromkeys(name for row in scorecard.records for values in row.values.values() for name in values)
    )
    main = [n for n in ("extraction_strength", "probability") if n in names] or names[:2]
    models = [m for m in words.MODELS if any(m in row.values for row in scorecard.records)]
    side = {"forget": 0, "forget_hard": 1, "forget_past": 2}
    ordered = sorted(scorecard.records, key=lambda row: (not row.leaks, side.get(row.split, 3)))
    columns = [(model, name) for name in main for model in models]
    left, shown = RECORD_BUDGET, []
    for row in ordered:
        texts = [row.prompt, row.answer, *(row.generated or {}).values()]
        left -= 260 + 65 * len(columns) + sum(min(len(t), 300) + 60 for t in texts if t)
        if left < 0:
            break
        shown.append(row)
    groups = [(name, models) for name in main]
    return RecordTable(
        columns, groups, shown, len(ordered), list(dict.fromkeys(row.split for row in scorecard.records))
    )


def _glossary(scorecard: Scorecard) -> list[tuple[str, str]]:
    names = dict.fromkeys(row.metric for row in scorecard.scores)
    return [(words.plain(n), summary) for n in names if (summary := words.metric_summary(n))]


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=88).strip() if value else ""
