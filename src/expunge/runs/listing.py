"""What there is: registered things by their cards, and runs by what they wrote. No torch here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.attacks import ATTACKS
from expunge.benchmarks import BENCHMARKS
from expunge.controls import CONTROLS
from expunge.errors import ConfigError, Problem, nearest
from expunge.methods import METHODS
from expunge.metrics import METRICS
from expunge.registry import Registry
from expunge.runs.lifecycle import current, entry
from expunge.runs.notes import read_state

__all__ = ["KINDS", "listing", "print_listing"]

KINDS: dict[str, Registry[Any]] = {
    "methods": METHODS,
    "controls": CONTROLS,
    "metrics": METRICS,
    "attacks": ATTACKS,
    "benchmarks": BENCHMARKS,
}


def listing(what: str, folder: Path = Path("runs")) -> list[dict[str, Any]]:
    """One object each: name, summary and the card's fields."""
    if what == "runs":
        return _runs(folder)
    if what not in KINDS:
        raise ConfigError(Problem(f"list {what}", "nothing of that kind", nearest(what, [*KINDS, "runs"])))
    return [card.as_dict() for card in KINDS[what].cards()]


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


def print_listing(what: str, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = {
        "methods": ("family", "erases", "cost"),
        "controls": ("when", "bounds"),
        "metrics": ("facet", "better"),
        "attacks": ("threat", "injects"),
        "benchmarks": ("parts", "oracle"),
        "runs": ("state", "method", "lineage"),
    }[what]
    if not rows:
        Console(stderr=True).print(f"no {what} here")
        return
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("name", *shown, "summary"):
        table.add_column(name, no_wrap=name == "name")
    for row in rows:
        if what == "runs":
            row = {**row, "lineage": _drawn(row["lineage"])}
        cells = [", ".join(map(str, v)) if isinstance(v := row.get(n, ""), list) else str(v) for n in shown]
        table.add_row(row["name"], *cells, str(row["summary"]).replace("[", "\\["))
    Console().print(table)
