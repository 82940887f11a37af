"""Requests one after the other: a recipe with `requests` becomes chained runs in output/001, 002, …

Each run starts from the controlled model of the one before and measures again what all before it forgot. The
runs are ordinary ones: finished stages are kept, a killed stream goes on where it was, a longer list of
requests goes on from the last. `stream.json` and `stream.md` hold one row per request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from expunge import ranks
from expunge.audit.scorecard import Scorecard
from expunge.errors import BarMissed, ConfigError, Problem
from expunge.progress import say
from expunge.reports.files import write_text
from expunge.reports.formatting import duration, number
from expunge.reports.markdown import escape, table
from expunge.reports.tables import bar_metric
from expunge.runs.chain import PAST, earlier, mark, past_forget
from expunge.runs.folder import remove, write_json
from expunge.runs.pipeline import Pipeline, RunResult
from expunge.runs.prepare import load_checked
from expunge.runs.recipe import AfterSettings, Recipe

__all__ = ["HEAD", "StreamResult", "cells", "check_stream", "parts", "run_stream"]

Row = dict[str, Any]


@dataclass(frozen=True)
class StreamResult(RunResult):
    """`path` is the folder of the stream, `results` one per request, `rows` those of its table."""

    results: Sequence[RunResult] = ()
    rows: Sequence[Row] = ()

    def check(self) -> None:
        """Raise BarMissed when a requirement of the recipe was not met by some run."""
        missed = [
            f"{r.path.name}: {text}" for r in self.results if r.scorecard for text in r.scorecard.missed
        ]
        if missed:
            raise BarMissed("; ".join(missed))


def run_stream(recipe: Recipe, *, only: str | None = None, new: bool = False) -> StreamResult:
    """All requests in their order. Whatever is wrong with any of them is said before the first run."""
    if only is not None:
        what = "goes with a single request: the next one needs the model of the last"
        raise ConfigError(Problem(f"--only {only}", what, "Leave it out"))
    made, folder = parts(recipe), Path(recipe.output)
    found = ranks.broadcast(sorted(folder.glob("[0-9][0-9][0-9]")))
    surplus = [path for path in found if int(path.name) > len(made)]
    if surplus and not new:
        what = f"holds a stream of {len(made) + len(surplus)} requests, the recipe has {len(made)}"
        raise ConfigError(Problem(str(folder), what, "Choose another output, or replace it with --new"))
    ranks.on_first(lambda: check_stream(made))
    for path in surplus:
        ranks.on_first(partial(remove, path))
    results: list[RunResult] = []
    rows: list[Row] = []
    for i, part in enumerate(made, start=1):
        say(f"request {i} of {len(made)}: {part.output}")
        results.append(Pipeline(part, new=new).run())
        if not ranks.is_first():
            continue
        rows = _rows(results)
        write_json(folder / "stream.json", {"rows": rows})
        write_text(folder / "stream.md", _markdown(recipe, rows))
    return StreamResult(folder, None, folder / "stream.md", results, rows)


def parts(recipe: Recipe) -> list[Recipe]:
    """One recipe per request, each after the first following the one before."""
    made: list[Recipe] = []
    for i, request in enumerate(recipe.requests or (), start=1):
        own = {k: v for k in type(request).model_fields if (v := getattr(request, k)) is not None}
        output = str(Path(recipe.output) / f"{i:03}")
        changes: dict[str, Any] = {**own, "requests": None, "output": output}
        if made:
            reference = recipe.after.reference if recipe.after else "rolling"
            changes |= {"model": None, "after": AfterSettings(run=made[-1].output, reference=reference)}
        elif not recipe.follows:
            changes["after"] = None
        made.append(recipe.model_copy(update=changes))
    return made


def check_stream(made: Sequence[Recipe]) -> None:
    """Read and check every request against those before it; no model is loaded, nothing is written."""
    first = made[0]
    links = earlier(first.follows) if first.follows else ()
    past = list(past_forget(links)[0].get(PAST, ()))
    for part in made:
        splits = {PAST: past} if past else {}
        request, _ = load_checked(part, str(links[-1].model if links else first.model), splits, bar=False)
        past += mark(Path(part.output).name, request.forget)


# The table -----------------------------------------------------------------------------------------------


def _rows(results: Sequence[RunResult]) -> list[Row]:
    cards = [r.scorecard for r in results if r.scorecard]
    first = _value(cards[0], bar_metric(cards[0]), "report", "original")
    return [_row(r, card, first) for r, card in zip(results, cards, strict=True)]


def _row(result: RunResult, card: Scorecard, first: float | None) -> Row:
    """One request: what it forgot, what those before it forgot, what is left of the first model's use."""
    original = _value(card, "extraction_strength", "forget", "original")
    metric = "extraction_strength" if (original or 0.0) >= 0.2 else "probability"
    past: dict[str, list[float]] = {}
    for record in card.records:
        if record.split == PAST:
            value = record.values["controlled"].get(metric)
            past.setdefault(record.id.partition("/")[0], []).extend([] if value is None else [value])
    report = _value(card, bar_metric(card), "report", "controlled")
    lower = bool(card.control) and card.control[0].better == "lower"
    kept = None if not first or not report else first / report if lower else report / first
    return {
        "request": result.path.name,
        "run": str(result.path),
        "records": next(s.records for s in card.splits if s.name == "forget"),
        "metric": metric,
        "forget_original": _value(card, metric, "forget", "original"),
        "forget_controlled": _value(card, metric, "forget", "controlled"),
        "past": {name: fmean(values) for name, values in past.items() if values},
        "report_metric": bar_metric(card),
        "report_controlled": report,
        "report_kept_of_first": kept,
        "alpha": card.control[0].alpha if card.control else None,
        "verdict": card.verdict.word,
        "seconds": sum(c.wall for c in card.cost if c.stage in ("unlearn", "control")),
    }


def _value(card: Scorecard, metric: str | None, split: str, model: str) -> float | None:
    row = card.score(metric, split, model) if metric else None
    return row.value if row else None


HEAD = ("request", "records", "forget", "earlier requests", "report", "α", "verdict", "time")


def cells(row: Row) -> list[str]:
    """A row as text; earlier requests by name."""
    past = ", ".join(f"{name} {number(value)}" for name, value in row["past"].items())
    kept = row["report_kept_of_first"]
    return [
        row["request"],
        str(row["records"]),
        f"{number(row['forget_original'])} → {number(row['forget_controlled'])}",
        past or "–",
        number(row["report_controlled"]) + ("" if kept is None else f" ({kept:.0%})"),
        number(row["alpha"]),
        row["verdict"],
        duration(row["seconds"]),
    ]


def _markdown(recipe: Recipe, rows: Sequence[Row]) -> str:
    metrics = " and ".join(sorted({row["metric"].replace("_", " ") for row in rows}))
    about = (
        f"Each request starts from the controlled model of the one before. *Forget*: {metrics} before the "
        "request and after it, lower is better; *earlier requests*: the same on what those forgot, after it. "
        "*Report*: the bar's metric on report records, and its share of the very first model's. *Time*: "
        "unlearning and control."
    )
    name = recipe.name or Path(recipe.output).name
    body = table(HEAD, [[escape(cell) for cell in cells(row)] for row in rows])
    return "\n\n".join([f"# {escape(name)}: {len(rows)} requests in sequence", about, body]) + "\n"
