"""One record in a terminal: what each model makes of it, side by side."""

from __future__ import annotations

import difflib

from rich.console import Console
from rich.table import Table
from rich.text import Text

from expunge.audit.scorecard import RecordRow, Scorecard
from expunge.errors import DataError, Problem, nearest
from expunge.reports.formatting import number, printable
from expunge.reports.words import MODELS, plain

__all__ = ["find_record", "print_record"]


def find_record(scorecard: Scorecard, record_id: str) -> RecordRow:
    """The record with this id, or with an id that begins so; raises DataError with the nearest ids."""
    exact = [row for row in scorecard.records if row.id == record_id]
    found = exact or [row for row in scorecard.records if record_id and row.id.startswith(record_id)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(row.id for row in found[:5])
        raise DataError(
            Problem(f"record {record_id!r}", f"{len(found)} records begin so: {ids}", "Give more of the id")
        )
    known = [row.id for row in scorecard.records]
    close = difflib.get_close_matches(record_id, known, n=3)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    hint = nearest(record_id, known) if len(known) <= 20 else f"{hint}The ids are in csv/records.csv"
    raise DataError(Problem(f"record {record_id!r}", "no such record in this run", hint))


def print_record(record: RecordRow, console: Console) -> None:
    """Print one record: a column per model, a row per value, then what each model says."""
    console.print(_text(f"record {record.id}, entity {record.entity}, split {record.split}"), highlight=False)
    for label, content in (("prompt", record.prompt), ("answer", record.answer)):
        if content is not None:
            console.print(_text(f"{label}: {content}"))
    models = [m for m in MODELS if m in record.values or m in (record.generated or {})]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for model in models:
        table.add_column(model, justify="right")
    for name in dict.fromkeys(name for values in record.values.values() for name in values):
        table.add_row(
            _text(plain(name)), *(_text(number(record.values.get(m, {}).get(name))) for m in models)
        )
    console.print(table)
    for model in models:
        if record.generated and model in record.generated:
            console.print(_text(f"{model} says: {record.generated[model]}"))
    if record.leaks:
        console.print(_text("leaks: the controlled model gives more of it away than the oracle", "bold red"))


def _text(content: str, style: str = "") -> Text:
    return Text(printable(content), style)
