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
    rows = []
    for path in sorted(Path(folder).glob("*/run.json")):
        state = json.loads(path.read_text(encoding="utf-8"))
        row: dict[str, Any] = {
            "name": path.parent.name,
            "summary": "not finished",
            "created": state.get("created"),
            "stages": sorted(state.get("stages", {})),
        }
        card = path.parent / "scorecard.json"
        if card.is_file():
            data = json.loads(card.read_text(encoding="utf-8"))
            row |= {"summary": data["verdict"]["word"], "method": data["method"], "profile": data["profile"]}
        rows.append(row)
    return rows


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
        "runs": ("method", "created"),
    }[what]
    if not rows:
        Console(stderr=True).print(f"no {what} here")
        return
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("name", *shown, "summary"):
        table.add_column(name, no_wrap=name == "name")
    for row in rows:
        cells = [", ".join(map(str, v)) if isinstance(v := row.get(n, ""), list) else str(v) for n in shown]
        table.add_row(row["name"], *cells, str(row["summary"]).replace("[", "\\["))
    Console().print(table)
