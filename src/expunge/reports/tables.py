"""The rows behind every table and plot of a report, as they stand in the CSV files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from expunge.audit.scorecard import (
    AlphaPoint,
    AttackRow,
    CheckRow,
    CostRow,
    CurvePoint,
    RecordRow,
    ScopeRow,
    Scorecard,
    ScoreRow,
    TauRow,
)
from expunge.reports.words import MODELS

__all__ = ["Table", "bar_metric", "report_tables", "trade_off_rows"]

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """Named columns and rows of plain values; `csv()` is what is written."""

    columns: tuple[str, ...]
    rows: Rows

    def csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_cell(row.get(column)) for column in self.columns] for row in self.rows)
        return out.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str) if value else ""
    # A spreadsheet would run text that begins like a formula, and model output can begin with anything.
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


def report_tables(scorecard: Scorecard) -> dict[str, Table]:
    """File stem → table, for one scorecard. The plots are drawn from these rows and nothing else."""
    return {
        "scores": _table(ScoreRow, scorecard.scores),
        "scope": _table(ScopeRow, scorecard.scope),
        "checks": _table(CheckRow, scorecard.checks),
        "trade_off": Table(("model", "alpha", "forgotten", "kept"), trade_off_rows(scorecard)),
        "alpha_curve": _table(AlphaPoint, scorecard.alpha_curve),
        "tau_sweep": _table(TauRow, scorecard.tau_sweep),
        "attacks": _table(AttackRow, scorecard.attacks),
        "relearning": _table(CurvePoint, scorecard.relearning),
        "training": _training(scorecard),
        "records": _records(scorecard),
        "cost": _table(CostRow, scorecard.cost),
    }


def _table(kind: type[BaseModel], parts: list[Any]) -> Table:
    return Table(tuple(kind.model_fields), [part.model_dump() for part in parts])


def _training(scorecard: Scorecard) -> Table:
    """One column per loss term, `loss.` before its name."""
    terms = sorted({term for point in scorecard.training for term in point.terms})
    rows = [
        {
            **point.model_dump(exclude={"terms"}),
            **{f"loss.{term}": point.terms.get(term) for term in terms},
        }
        for point in scorecard.training
    ]
    columns = (
        "step",
        "epoch",
        *(f"loss.{term}" for term in terms),
        "calibration",
        "active",
        "grad_norm",
        "lr",
    )
    return Table(columns, rows)


def _records(scorecard: Scorecard) -> Table:
    """One column per model and value; texts only where the scorecard shows them."""
    values = [
        f"{model}.{name}"
        for model in MODELS
        for name in dict.fromkeys(name for row in scorecard.records for name in row.values.get(model, {}))
    ]
    texts = ("prompt", "answer", *(f"{model}.generated" for model in MODELS)) if scorecard.shows_text else ()
    return Table(
        ("id", "entity", "split", "form", "leaks", *values, *texts), [_record(r) for r in scorecard.records]
    )


def _record(record: RecordRow) -> dict[str, Any]:
    row = record.model_dump(exclude={"values", "generated"})
    for model, values in record.values.items():
        row |= {f"{model}.{name}": value for name, value in values.items()}
    row |= {f"{model}.generated": text for model, text in (record.generated or {}).items()}
    return row


def bar_metric(scorecard: Scorecard) -> str | None:
    """The metric of the bar, or where no bar was stated the first headline metric on the forget split."""
    if scorecard.control:
        return scorecard.control[0].metric
    return next((row.metric for row in scorecard.scores if row.headline and row.split == "forget"), None)


def trade_off_rows(scorecard: Scorecard) -> Rows:
    """The four models and the α-path in the plane (1 − forget, retain), both of the bar's metric.

    Empty where the metric is not a share where knowing more is higher (perplexity has no 1 − forget).
    """
    metric = bar_metric(scorecard)
    if metric is None:
        return []
    keep = next(
        (s for s in ("report", "calibration", "retain") if scorecard.score(metric, s, "original")), None
    )
    if keep is None:
        return []
    points: list[tuple[str, float | None, float | None, float | None]] = []
    for model in MODELS:
        kept, forget = (scorecard.score(metric, split, model) for split in (keep, "forget"))
        if kept and forget and kept.better == "higher" and forget.better == "lower":
            points.append((model, None, forget.value, kept.value))
    curve: dict[float, dict[str, float | None]] = {}
    for point in scorecard.alpha_curve:
        if point.metric == metric:
            curve.setdefault(point.alpha, {})[point.split] = point.value
    points += (
        [("path", a, values.get("forget"), values.get(keep)) for a, values in sorted(curve.items())]
        if points
        else []
    )
    rows = [
        {"model": model, "alpha": alpha, "forgotten": 1 - forget, "kept": kept}
        for model, alpha, forget, kept in points
        if forget is not None and kept is not None
    ]
    inside = all(-1e-9 <= share <= 1 + 1e-9 for p in points for share in (p[2], p[3]) if share is not None)
    return rows if inside else []
