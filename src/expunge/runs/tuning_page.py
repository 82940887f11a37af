"""A search as a table for people: on the terminal, as CSV, as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.reports import words
from expunge.reports.formatting import duration, interval, number, setting
from expunge.reports.markdown import escape, table
from expunge.runs.ranking import Trial

__all__ = ["csv_text", "line_of", "markdown", "print_tuning"]

HEAD = ("rank", "trial", "status", "settings", "forget at α*", "before control", "α*", "utility", "time")

COLUMNS = (
    "method", "number", "seed", "status", "score", "low", "high", "n", "alpha", "calibration", "utility",
    "forget_original", "forget_uncontrolled", "monotone", "passes", "steps", "moved_fraction", "tokens",
    "flops", "seconds", "reason",
)  # fmt: skip


def csv_text(ranked: Sequence[Trial]) -> str:
    """Every trial, best first; a column per setting that was searched."""
    keys = sorted({key for trial in ranked for key in trial.params})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["rank", "trial", *keys, *COLUMNS, "bracket_low", "bracket_high"])
    for place, trial in enumerate(ranked, start=1):
        bracket = trial.bracket or (None, None)
        values = [getattr(trial, name) for name in COLUMNS]
        writer.writerow([place, trial.name, *(trial.params.get(k) for k in keys), *values, *bracket])
    return out.getvalue()


def line_of(trial: Trial) -> str:
    """One trial on one line of progress."""
    what = f"{trial.name} ({_settings(trial.params, trial.method)})"
    if trial.score is None:
        return f"{what}: {words.plain(trial.status)}, {trial.reason}"
    found = f"forget {number(trial.score)} at α* {number(trial.alpha)}"
    return f"{what}: {found}, {number(trial.forget_uncontrolled)} before control; {words.plain(trial.status)}"


def _settings(params: Mapping[str, Any], method: str) -> str:
    """A control's settings keep its name before them."""
    short = {k.removeprefix("train.").removeprefix(f"{method}."): v for k, v in params.items()}
    return setting(short) or "nothing varied"


def cells(place: int, trial: Mapping[str, Any]) -> list[str]:
    """A row of the table; no rank for what cannot win."""
    return [
        str(place) if trial["status"] == "ok" else "–",
        trial["name"],
        words.plain(trial["status"]),
        _settings(trial["params"], trial["method"]),
        f"{number(trial['score'])} {interval(trial['low'], trial['high'])}".strip(),
        number(trial["forget_uncontrolled"]),
        number(trial["alpha"]),
        number(trial["utility"]),
        duration(trial["seconds"]),
    ]


def winner_line(data: Mapping[str, Any]) -> str:
    """Who won, by how much, and against whom it cannot be told."""
    winner, metric = data["winner"], words.plain(data["objective"]["metric"])
    if winner is None:
        return "No trial forgot anything under the bar: there is no winner."
    seeds, settings = len(winner["seeds"]), _settings(winner["params"], winner["method"])
    text = (
        f"Best: {winner['name']} ({settings}), {metric} {_value(winner)} at α* {number(winner['alpha'])}, "
        f"the mean of {seeds} further seed{'s' if seeds > 1 else ''}; the original scores "
        f"{number(data['objective']['original']['value'])}."
    )
    return text + (f" It cannot be told from {', '.join(data['ties'])}." if data["ties"] else "")


def markdown(data: Mapping[str, Any]) -> str:
    """The page of a search."""
    rows = [[escape(c) for c in cells(i, t)] for i, t in enumerate(data["trials"], start=1)]
    parts = [
        f"# {escape(data['name'])}: a search",
        escape(winner_line(data)),
        _about(data),
        "\n".join(f"- {escape(text)}" for text in data["warnings"]),
        "## Finalists",
        "Repeated with seeds the search did not use, and calibrated in full. The interval spans entities and "
        "seeds.",
        _finalists(data),
        "## Pareto front",
        "No other trial forgets as much and keeps as much utility, with one of them better. *By cost only*: "
        "not beaten when time counts too.",
        _front(data),
        "## Sensitivity",
        "*Near the best*: trials whose score lies in the interval of the method's best, and their learning "
        "rates. A method that needs a narrow learning rate is worse in practice than its best trial says.",
        _sensitivity(data),
        "## Trials",
        "Ranked by the forget score at α*; what a trial forgot before control counts for nothing.",
        table(HEAD, rows, left=4),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(data: Mapping[str, Any]) -> str:
    bar, objective, chosen = data["bar"], data["objective"], data["selection"]
    kept_out = "prompts the report does not score" if chosen["apart"] else "prompts"
    return (
        f"*Bar*: {words.plain(bar['metric'])} on calibration, keep {bar['keep']:g} of the original's "
        f"{number(bar['original'])}. *Forget*: {words.plain(objective['metric'])}, {objective['better']} is "
        f"better, on {chosen['records']} {kept_out}: {escape(chosen['how'])}. *Utility*: the bar's metric on "
        f"{data['utility']['split']} records. *Budget*: {data['budget']['trials']} trials of each method "
        "from a sampler with the same seed; tokens and time are what they came to."
    )


def _finalists(data: Mapping[str, Any]) -> str:
    head = ("trial", "settings", "forget", "in the search", "α*", "utility", "seeds", "time")
    rows = [
        [
            *_named(f), _value(f), number(f["in_search"]), number(f["alpha"]), number(f["utility"]),
            str(len(f["seeds"])), duration(f["seconds"]),
        ]
        for f in data["finalists"]
    ]  # fmt: skip
    return table(head, rows, left=2)


def _front(data: Mapping[str, Any]) -> str:
    plain = {p["name"] for p in data["front"]}
    more = [p for p in data["front_with_cost"] if p["name"] not in plain]
    rows = [
        [
            *_named(p), number(p["forget"]), number(p["utility"]), duration(p["seconds"]), str(p["seeds"]),
            "" if p["name"] in plain else "by cost only",
        ]
        for p in (*data["front"], *more)
    ]  # fmt: skip
    return table(("trial", "settings", "forget", "utility", "time", "seeds", ""), rows, left=2)


def _sensitivity(data: Mapping[str, Any]) -> str:
    head = ("method", "trials", "ok", "best", "median", "near the best", "at lr", "tokens", "time")
    rows = [
        [
            s["method"], str(s["trials"]), str(s["ok"]), number(s["best"]), number(s["median"]),
            str(s["near_best"]), "–" if s["lr"] is None else f"{s['lr'][0]:g} to {s['lr'][1]:g}",
            f"{s['tokens']:,}", duration(s["seconds"]),
        ]
        for s in data["sensitivity"]
    ]  # fmt: skip
    return table(head, rows)


def _named(row: Mapping[str, Any]) -> tuple[str, str]:
    return escape(row["name"]), escape(_settings(row["params"], row["method"]))


def _value(row: Mapping[str, Any]) -> str:
    return f"{number(row['forget'])} {interval(row['low'], row['high'])}".strip()


def print_tuning(data: Mapping[str, Any], folder: Path, shown: int = 20) -> None:
    """The best trials, the winner, and where the rest is."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    drawn = Table(
        "rank", "trial", "status", "forget", "α*", "utility", "settings", box=box.SIMPLE, pad_edge=False
    )
    for place, trial in enumerate(data["trials"][:shown], start=1):
        rank, name, status, settings = cells(place, trial)[:4]
        values = (number(trial[key]) for key in ("score", "alpha", "utility"))
        drawn.add_row(rank, name, status, *values, settings)
    console.print(drawn)
    lines = [winner_line(data), str(folder / "tuning.md")]
    if len(data["trials"]) > shown:
        lines.insert(0, f"and {len(data['trials']) - shown} more in {folder / 'trials.csv'}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
