"""A composition as one page: edits against unlearning, what the order decides, a matrix per measure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.reports.comparison import SIGNS
from expunge.reports.formatting import byte_size, duration, interval, number, operations, shorten
from expunge.reports.page import environment
from expunge.reports.words import reason

__all__ = ["html", "print_composition"]

Model = Mapping[str, Any]
Data = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One number of a table, what stands below it, and whether there is none because something failed."""

    text: str
    below: str = ""
    failed: bool = False


NONE = Cell("–")

SIZES: tuple[tuple[str, str, str, Callable[[Data], str], Callable[[Data], str]], ...] = (
    (
        "average bits per weight", "lower", "Below: over the whole model.",
        lambda s: number(s["average_bits"]["compressed"] or s["average_bits"]["whole"]),
        lambda s: number(s["average_bits"]["whole"]),
    ),
    (
        "share of zeros", "higher", "Below: over the whole model.",
        lambda s: number(s["sparsity"]["compressed"] or s["sparsity"]["whole"]),
        lambda s: number(s["sparsity"]["whole"]),
    ),
    ("stored size", "lower", "", lambda s: byte_size(s["bytes"]), lambda s: ""),
    (
        "operations per token", "lower", "Below: with every zero skipped.",
        lambda s: operations(s["flops_per_token"]["dense"]),
        lambda s: operations(s["flops_per_token"]["theoretical"]),
    ),
    (
        "time per token", "lower", "A measurement on this machine, of the simulation.",
        lambda s: duration(s["latency"]["median"]) if s["latency"] else "n/a",
        lambda s: "",
    ),
)  # fmt: skip
"""Title, better side, note, the number and what stands below it, of what a model takes."""


def html(data: Data) -> str:
    """The page of a composition, from composition.json alone."""
    models = {tuple(m["asked"]): m for m in data["models"]}
    labels = ["unlearn", *(i["label"] for i in data["interventions"])]
    again = [
        " → ".join(m["chain"]) for m in data["models"] if m["status"] == "ok" and m["chain"] != m["asked"]
    ]
    page = environment().get_template("composition.html.j2").render(
        data=data,
        labels=labels,
        failed=[m for m in data["models"] if m["status"] == "failed"],
        again=again,
        same=_same(data, models),
        orders=_orders(data),
        longer=[
            {"name": " → ".join(m["asked"]), "cells": [_score(m, k["key"]) for k in data["measures"]]}
            for m in data["models"]
            if len(m["asked"]) > 2
        ],
        matrices=[*(_matrix(m, models, labels) for m in data["measures"]), *_sizes(models, labels)],
    )  # fmt: skip
    return re.sub(r"\n\s*\n+", "\n", page)


def _score(model: Model | None, key: str) -> Cell:
    if model is None:
        return NONE
    if model["status"] == "failed":
        return Cell("failed", shorten(model["reason"], 60), failed=True)
    score = model["scores"][key]
    if score["value"] is None:
        return Cell("n/a", reason(score["reason"]))
    return Cell(number(score["value"]), interval(score["low"], score["high"]))


def _grid(
    models: Mapping[tuple[str, ...], Model], labels: Sequence[str], cell: Callable[[Model | None], Cell]
) -> list[dict[str, Any]]:
    def at(first: str, second: str) -> Model | None:
        return models.get((first,) if first == second else (first, second))

    return [{"label": i, "cells": [cell(at(i, j)) for j in labels]} for i in labels]


def _matrix(measure: Data, models: Mapping[tuple[str, ...], Model], labels: Sequence[str]) -> dict[str, Any]:
    key = measure["key"]
    about = {"title": measure["title"], "better": measure["better"], "sign": SIGNS[measure["better"]]}
    original = _score(models[()], key)
    rows = _grid(models, labels, lambda m: _score(m, key))
    return {**about, "original": original.text, "note": "", "rows": rows}


def _sizes(models: Mapping[tuple[str, ...], Model], labels: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for title, better, note, top, below in SIZES:

        def cell(m: Model | None, top: Any = top, below: Any = below) -> Cell:
            if m is None or m["status"] == "failed":
                return NONE if m is None else Cell("failed", failed=True)
            return Cell(top(m["sizes"]), below(m["sizes"]))

        about = {"title": title, "better": better, "sign": SIGNS[better], "note": note}
        original = cell(models[()]).text
        found.append({**about, "original": original, "rows": _grid(models, labels, cell)})
    return found


def _same(data: Data, models: Mapping[tuple[str, ...], Model]) -> dict[str, Any]:
    """One row per model that only an edit, or only unlearning, was done to."""
    kinds = {i["label"]: f"{i['family']}, {i['name']}" for i in data["interventions"]}
    rows = []
    for entry in data["same_facts"]:
        chain = tuple(entry["asked"])
        what = kinds.get(chain[0], data["method"]) if chain else "before anything"
        cells = [_score(models[chain], m["key"]) for m in data["measures"]]
        rows.append({"name": entry["model"], "what": what, "cells": [*cells, _relearned(entry["relearned"])]})
    head = [{**m, "sign": SIGNS[m["better"]]} for m in data["measures"]]
    return {"head": head, "rows": rows}


def _relearned(found: Data | None) -> Cell:
    if found is None:
        return NONE
    if found["value"] is None:
        return Cell("n/a", found["reason"])
    return Cell(number(found["value"]), f"from {number(found['start'])}, {found['n']} facts")


def _orders(data: Data) -> dict[str, Any]:
    """One row per pair, an error and a sensitivity per measure that is a share."""
    keys = list(dict.fromkeys(row["measure"] for row in data["orders"]))
    found = {(row["first"], row["second"], row["measure"]): row for row in data["orders"]}
    rows = []
    for i, j in dict.fromkeys((row["first"], row["second"]) for row in data["orders"]):
        cells = [cell for key in keys for cell in _pair(found.get((i, j, key)), i, j)]
        rows.append({"pair": f"{i}, {j}", "cells": cells})
    return {"head": [m for m in data["measures"] if m["key"] in keys], "rows": rows}


def _pair(row: Data | None, i: str, j: str) -> list[Cell]:
    if row is None:
        return [NONE, NONE]
    if row["order_free_error"] is None:
        return [Cell("n/a", reason(shorten(row["reason"], 80))), NONE]
    higher = "" if not row["signed"] else f"higher: {i if row['signed'] > 0 else j} first"
    return [Cell(number(row["order_free_error"])), Cell(number(row["order_sensitivity"]), higher)]


def print_composition(data: Data, folder: Path) -> None:
    """Every chain on a line, what failed, and where the page is."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    shown = [m for m in data["measures"] if m["key"] in ("forget", "kept", "efficacy", "locality")]
    heads = [f"{m['short']} {SIGNS[m['better']]}" for m in shown]
    drawn = Table(Column("chain", no_wrap=True), *heads, "bits", "zeros", box=box.SIMPLE, pad_edge=False)
    for model in data["models"]:
        cells = [_score(model, m["key"]).text for m in shown]
        sizes = model.get("sizes")
        held = [number(sizes[k]["whole"]) for k in ("average_bits", "sparsity")] if sizes else ["–", "–"]
        drawn.add_row(" → ".join(model["asked"]) or "original", *cells, *held)
    console.print(drawn)
    for row in data["orders"]:
        if row["measure"] == "forget" and row["order_sensitivity"] is not None:
            text = f"{row['first']}, {row['second']}: order sensitivity {number(row['order_sensitivity'])}"
            console.print(f"{text} on forget", highlight=False)
    lines = [f"failed: {' → '.join(m['asked'])}: {m['reason']}" for m in data["models"] if m["reason"]]
    for line in [*lines, str(folder / "composition.html")]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
