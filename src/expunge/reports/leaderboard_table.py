"""The leaderboard as numbers: the aggregate as JSON, its rows as CSV, and the table of a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.reports import words
from expunge.reports.formatting import number, printable
from expunge.reports.leaderboard_rows import SCORES, Board, Entry, Row, Spread, boards
from expunge.reports.leaderboard_schema import Asked, Cell
from expunge.reports.tables import Table

__all__ = ["aggregate", "csv_text", "print_leaderboard"]

_SPREADS = (*SCORES, *words.FACETS, "alpha", "recovery", "wall", "ratio_to_retraining")


_COLUMNS = {
    "alpha": "α", "retain": "retain ↑", "retain_paraphrased": "¶ ↑", "forget": "forget ↓",
    "forget_paraphrased": "¶ ↓", "recovery": "attack ↓",
}  # fmt: skip

WIDE = 110
"""Columns of a terminal that also show verdicts and counts of seeds."""


def aggregate(cells: Sequence[Cell], asked: Sequence[Asked] = ()) -> dict[str, Any]:
    """Mean and deviation over seeds by part, method and bar; what failed, is missing or stands apart."""
    return {"schema_version": 1, "boards": [_board(board) for board in boards(cells, asked)]}


def _board(board: Board) -> dict[str, Any]:
    rows = [_row("", row) for row in (board.original, board.oracle) if row]
    return {
        "benchmark": board.benchmark,
        "part": board.part,
        "bar_metric": board.bar_metric,
        "profile": board.profile,
        "taus": list(board.taus),
        "seeds": list(board.seeds),
        "counts": dict(board.counts),
        "rows": rows + [line for entry in board.entries for line in _lines(entry, board)],
        "failed": [
            {"method": entry.label, "seed": seed, "reason": reason}
            for entry in board.entries
            for seed, reason in entry.failed.items()
        ],
        "missing": [
            {"method": entry.label, "seed": seed} for entry in board.entries for seed in entry.missing
        ],
        "apart": [{"method": cell.method, "seed": cell.seed, "reason": why} for cell, why in board.apart],
    }  # fmt: skip


def _lines(entry: Entry, board: Board) -> Iterator[dict[str, Any]]:
    known = {"settings": dict(entry.settings), "failed": len(entry.failed), "missing": len(entry.missing)}
    for row in (entry.uncontrolled, *map(entry.controlled, board.taus)):
        yield {**_row(entry.label, row), **known}


def _row(method: str, row: Row) -> dict[str, Any]:
    spreads: dict[str, Spread | None] = {
        **{name: row.scores.get(name) for name in SCORES},
        **{facet: row.facets.get(facet) for facet in words.FACETS},
        "alpha": row.alpha, "recovery": row.recovery, "wall": row.wall, "ratio_to_retraining": row.ratio,
    }  # fmt: skip
    return {
        "method": method, "row": row.kind, "tau": row.tau, "n": row.n, "met": row.met,
        "verdicts": dict(row.verdicts), "worst_attacks": dict(row.attacks),
        **{name: _spread(spread) for name, spread in spreads.items()},
    }  # fmt: skip


def _spread(spread: Spread | None) -> dict[str, Any] | None:
    if spread is None or not (spread.values or spread.reasons):
        return None
    about = {"mean": spread.mean, "sd": spread.sd, "n": spread.n, "low": spread.low, "high": spread.high}
    more = {"metric": spread.metric, "split": spread.split, "reasons": list(spread.reasons)}
    return {**about, **{name: value for name, value in more.items() if value}}


def csv_text(data: Mapping[str, Any]) -> str:
    """One line for each row of `aggregate`."""
    columns = ["benchmark", "part", "method", "row", "tau", "n", "failed", "missing", "met", "verdicts"]
    columns += [f"{name}_{end}" for name in _SPREADS for end in ("mean", "sd")]
    rows = [
        {
            **{name: board[name] for name in ("benchmark", "part")}, **row,
            **{f"{n}_{end}": (row[n] or {}).get(end) for n in _SPREADS for end in ("mean", "sd")},
        }
        for board in data["boards"]
        for row in board["rows"]
    ]  # fmt: skip
    return Table(tuple(columns), rows).csv()


def print_leaderboard(data: Mapping[str, Any], folder: Path) -> None:
    """A table for each part, then what failed and what cannot be compared."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn

    console = Console()
    wide = console.width >= WIDE
    for board in data["boards"]:
        drawn = Drawn(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0), title=_title(board))
        for name in ("method", *_COLUMNS.values(), *(("verdict", "seeds") if wide else ())):
            drawn.add_column(name, no_wrap=name != "verdict")
        for row in board["rows"]:
            style = "bright_black" if row["row"] == "uncontrolled" else ""
            drawn.add_row(*map(_safe, _cells(row, wide)), style=style)
        console.print(drawn)
        for line in _notes(board):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(
        "¶: asked in other words. attack: recovery by the worst one, 0 is the oracle, 1 the original.",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print(str(Path(folder) / "index.html"), markup=False, highlight=False, soft_wrap=True)


def _title(board: Mapping[str, Any]) -> str:
    name = f"{board['benchmark']}/{board['part']}" if board["part"] else board["benchmark"]
    return (
        f"{name}: bar by {words.plain(board['bar_metric']) or 'nothing'}, audit {board['profile'] or 'none'}"
    )


def _cells(row: Mapping[str, Any], wide: bool) -> Iterator[str]:
    """A row's cells; the rows under each bar stand below their method's name."""
    yield f"  τ {row['tau']:g}" if row["tau"] is not None else row["method"] or row["row"]
    for name in _COLUMNS:
        yield _shown(row[name], spread=name != "alpha" or wide)
    if wide:
        lost = row.get("failed", 0) + row.get("missing", 0)
        yield ", ".join(row["verdicts"])
        yield f"{row['n']} of {row['n'] + lost}" if lost else str(row["n"])


def _shown(value: Mapping[str, Any] | None, *, spread: bool) -> str:
    """0.205±.007"""
    if value is None or value["mean"] is None:
        return "–"
    sd = number(value["sd"]).removeprefix("0") if value["sd"] is not None and spread else ""
    return number(value["mean"]) + (f"±{sd}" if sd else "")


def _safe(text: str) -> str:
    return printable(text).replace("[", "\\[")


def _notes(board: Mapping[str, Any]) -> Iterator[str]:
    for one in board["failed"]:
        yield printable(f"failed: {one['method']} seed {one['seed']}: {one['reason']}")
    for one in board["missing"]:
        yield printable(f"missing: {one['method']} seed {one['seed']}")
    for one in board["apart"]:
        yield printable(f"not comparable: {one['method']} seed {one['seed']}: {one['reason']}")
