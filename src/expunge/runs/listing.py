"""What there is: registered things by their cards, and runs by what they wrote. No torch here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.errors import ConfigError, Problem, nearest
from expunge.runs.catalog import COLUMNS, about, cards, of_family, print_about, print_cards
from expunge.runs.lifecycle import current, entry
from expunge.runs.notes import read_state

__all__ = ["listing", "print_listing"]


def listing(
    what: str, folder: Path = Path("runs"), *, name: str | None = None, family: str | None = None
) -> list[dict[str, Any]]:
    """One object each: name, summary and the card's fields; with a `name`, that one in full."""
    known = [*COLUMNS, "runs"]
    if what not in known:
        raise ConfigError(Problem(f"list {what}", "nothing of that kind", nearest(what, known)))
    if what == "runs":
        if name or family:
            raise ConfigError(Problem("list runs", "takes no name and no family", "See: expunge show RUN"))
        return _runs(folder)
    if name:
        return [about(what, name)]
    rows = cards(what)
    return of_family(rows, what, family) if family else rows


def _runs(folder: Path) -> list[dict[str, Any]]:
    """The runs of a folder and of its streams, with their states and where their models come from."""
    found = [*Path(folder).glob("*/run.json"), *Path(folder).glob("*/[0-9][0-9][0-9]/run.json")]
    rows = []
    for path in sorted(file.parent for file in found):
        state = read_state(path) or {}
        life = state.get("life", [])
        row: dict[str, Any] = {
            "name": str(path.relative_to(folder)),
            "summary": "not finished",
            "state": current(life),
            "created": state.get("created"),
            "stages": sorted(state.get("stages", {})),
            "life": life,
        }
        if (path / "tuning.json").is_file():
            row["summary"] = "a search"
        if (path / "composition.json").is_file():
            row["summary"] = "a composition"
        card = path / "scorecard.json"
        if card.is_file():
            data = json.loads(card.read_text(encoding="utf-8"))
            row |= {"summary": data["verdict"]["word"], "method": data["method"], "profile": data["profile"]}
        rows.append(row)
    for row in rows:
        row["lineage"] = _lineage(row, rows, Path(folder))
    return rows


def _lineage(row: dict[str, Any], rows: list[dict[str, Any]], folder: Path) -> list[dict[str, str]]:
    """The models that led to a run's: {fingerprint, by}, the first by nobody.

    A run's predecessor is the one it names in `after`, else the one whose controlled model it started from.
    """
    made: list[dict[str, str]] = []
    seen: list[str] = []
    here: dict[str, Any] | None = row
    while here is not None and here["name"] not in seen:
        seen.append(here["name"])
        life = here["life"]
        start, controlled = entry(life, "deployed"), entry(life, "unlearned").get("controlled")
        if controlled:
            made.append({"fingerprint": controlled, "by": here["name"]})
        after = entry(life, "requested").get("after")
        before = [r for r in rows if after and (folder / r["name"]).resolve() == Path(after).resolve()]
        before = before or [r for r in rows if start and _controlled(r) == start["fingerprint"] != _start(r)]
        here = before[0] if before else None
        if here is None and start:
            made.append({"fingerprint": start["fingerprint"], "by": ""})
    return made[::-1]


def _controlled(row: dict[str, Any]) -> str:
    return str(entry(row["life"], "unlearned").get("controlled", ""))


def _start(row: dict[str, Any]) -> str:
    return str(entry(row["life"], "deployed").get("fingerprint", ""))


def _drawn(lineage: list[dict[str, str]]) -> str:
    """`3f2a91c0 → 77ab12cd (one) → …`, the first eight digits of each hash."""
    return " → ".join(
        step["fingerprint"][:8] + (f" ({step['by']})" if step["by"] else "") for step in lineage
    )


def print_listing(what: str, rows: list[dict[str, Any]], *, name: str | None = None) -> None:
    if name:
        print_about(rows[0])
    elif what != "runs":
        print_cards(what, rows)
    else:
        _print_runs(rows)


def _print_runs(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if not rows:
        Console(stderr=True).print("no runs here")
        return
    columns = ("name", "state", "method", "lineage", "summary")
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column == "name")
    for row in rows:
        shown = {**row, "lineage": _drawn(row["lineage"])}
        table.add_row(*(str(shown.get(column, "")).replace("[", "\\[") for column in columns))
    Console().print(table)
