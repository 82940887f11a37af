"""The result of a run in a terminal, readable at 80 columns and in a log file."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from expunge.audit.scorecard import Scorecard
from expunge.reports import words
from expunge.reports.formatting import NA, interval, number, printable, setting

__all__ = ["print_summary"]

_TONES = {"good": "bold green", "caution": "bold yellow", "bad": "bold red"}
_ASCII = str.maketrans(
    {"↓": "v", "↑": "^", "→": ">", "α": "a", "τ": "t", "ε": "e", "−": "-", "∞": "inf", "·": "-", "–": "-"}
)


def print_summary(scorecard: Scorecard, console: Console, path: Path | None = None) -> None:
    """Print verdict, headline scores, α and bar, worst attack, and where the report lies."""

    def text(content: str, style: str = "") -> Text:
        content = printable(content)
        return Text(content.translate(_ASCII) if console.options.ascii_only else content, style)

    tone, meaning = words.verdict_meaning(scorecard.verdict.word)
    line = text(scorecard.verdict.word.upper(), _TONES[tone])
    console.print(line.append_text(text(f": {meaning}", "default not bold")))
    for aim in scorecard.aims:
        asked = "asked for" if aim.asked else "not asked for"
        console.print(text(f"{words.plain(aim.aim)} ({asked}): {aim.word}, by {aim.decided_by}"))
    for missed in scorecard.missed:
        console.print(text(f"Requirement not met: {missed}", "red"))
    models = [m for m in words.MODELS if any(row.model == m for row in scorecard.scores)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", ratio=1, overflow="fold")
    for model in models:
        table.add_column(
            model, justify="right", no_wrap=True, style="bright_black" if model == "unlearned" else ""
        )
    for metric, split in dict.fromkeys((r.metric, r.split) for r in scorecard.scores if r.headline):
        rows = [scorecard.score(metric, split, model) for model in models]
        sign = words.direction(next(r for r in rows if r))[0]
        cells = [text(number(row.value) if row else "–") for row in rows]
        table.add_row(text(f"{words.plain(metric)} · {words.plain(split)} {sign}"), *cells)
    if table.row_count:
        console.print(table)
    for control in scorecard.control[:1]:
        metric = words.plain(control.metric)
        console.print(
            text(
                f"α = {number(control.alpha)}: {metric} on calibration {number(control.value)}, "
                f"bar {number(control.bar)} (τ = {control.tau:g})"
            )
        )
    console.print(text(_worst_attack(scorecard)))
    if path is not None:
        console.print(text(str(path)), soft_wrap=True)


def _worst_attack(scorecard: Scorecard) -> str:
    """The attack that brought most back, with its configuration."""
    name = scorecard.verdict.worst_attack
    if name is None:
        return f"worst attack: {NA} (no attack gave a recovery)"
    row = next(
        (r for r in scorecard.attacks if r.attack == name and r.worst and r.recovery is not None), None
    )
    if row is None:
        return f"worst attack: {words.plain(name)}, recovery {number(scorecard.verdict.worst_recovery)}"
    shown = f"{number(row.recovery)} {interval(row.low, row.high)}".strip()
    attack = f"{words.plain(name)} ({setting(row.config)})"
    return f"worst attack: {attack}, recovery {shown} (0 {row.baseline}, 1 original)"
