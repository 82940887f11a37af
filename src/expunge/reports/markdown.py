"""The report as Markdown: the numbers of the page without its plots."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from expunge.audit.scorecard import Scorecard
from expunge.reports import words
from expunge.reports.formatting import duration, interval, number, setting
from expunge.reports.page import Cell, Line, Notes, scope_lines, score_groups

__all__ = ["escape", "render_markdown", "table"]


def escape(text: object) -> str:
    r"""Text that Markdown, and HTML inside Markdown, shows as it stands, on one line.

    >>> print(escape("a|b <b> *x*"))
    a\|b &lt;b&gt; \*x\*
    """
    flat = " ".join(str(text).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", flat)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table of ready cells; the first `left` columns are text, the others numbers."""
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def render_markdown(scorecard: Scorecard, *, scorecard_hash: str | None = None) -> str:
    """The report of one scorecard as Markdown; all user and model text is escaped."""
    verdict = scorecard.verdict
    _, meaning = words.verdict_meaning(verdict.word)
    parts = [
        f"# {escape(scorecard.name)}: {verdict.word}",
        meaning,
        escape(verdict.sentence),
        _bullets(verdict.reasons),
        _bullets([f"{words.plain(a.aim)}: {a.word} ({a.decided_by})" for a in scorecard.aims]),
        _bullets([f"Requirement not met: {text}" for text in scorecard.missed]),
        f"{escape(words.bar_sentence(scorecard))} Method: {escape(scorecard.method or 'none')}. "
        f"Control: {escape(', '.join(scorecard.controls) or 'none')}. α: {_alpha(scorecard)}. "
        f"Profile: {escape(verdict.profile)}, ε = {verdict.epsilon:.2f}.",
    ]
    notes = Notes()
    models = [m for m in words.MODELS if any(row.model == m for row in scorecard.scores)]
    for title, groups in zip(
        ("## Scorecard", "### All other scores"), score_groups(scorecard, notes), strict=True
    ):
        if groups:
            lines = [line for _, group in groups for line in group]
            header = ["metric", "split", "facet", *models]
            parts += [title, table(header, [_line(line, models) for line in lines], left=3)]
    if notes.texts:
        parts.append("\n".join(f"{i}. {escape(text)}" for i, text in enumerate(notes.texts, 1)))
    if scorecard.attacks:
        parts += [
            "## Recovery under attack",
            "0 is the oracle (or placebo), 1 the original.",
            _attacks(scorecard),
        ]
    if scorecard.scope:
        parts += ["## Scope in four cells", _scope(scorecard, models)]
    if scorecard.checks:
        answers = {True: "passed", False: "failed", None: "not resolved"}
        cells = [[escape(c.question), answers[c.passed], escape(c.text)] for c in scorecard.checks]
        parts += ["## Verification", table(["question", "answer", "what was seen"], cells, left=3)]
    if scorecard.cost:
        ratio = number(scorecard.ratio_to_retraining)
        rows = [[escape(c.stage), duration(c.wall), "yes" if c.cached else "no"] for c in scorecard.cost]
        parts += [
            "## Cost",
            f"Share of retraining: {ratio}.",
            table(["stage", "time", "from an earlier run"], rows),
        ]
    if scorecard.warnings:
        parts += ["## Warnings", _bullets(scorecard.warnings)]
    parts += ["## What this result does not show", _bullets(scorecard.limits) or "No limits were recorded."]
    parts.append(f"{escape(scorecard.created)}, expunge {escape(scorecard.expunge_version)}.")
    if scorecard_hash:
        parts.append(f"Drawn from `scorecard.json`, SHA-256 `{scorecard_hash}`.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {escape(text)}" for text in texts)


def _alpha(scorecard: Scorecard) -> str:
    return number(scorecard.control[0].alpha) if scorecard.control else "n/a"


def _line(line: Line, models: Sequence[str]) -> list[str]:
    name = f"{escape(words.plain(line.row.metric))} {line.sign}"
    cells = [_cell(line.cells[model]) for model in models]
    return [name, escape(line.row.split), line.row.facet, *cells]


def _cell(cell: Cell) -> str:
    marks = "".join(f"<sup>{n}</sup>" for n in cell.notes)
    return f"{cell.text}{marks} {cell.interval}".replace("[", "\\[").replace("]", "\\]").strip()


def _scope(scorecard: Scorecard, models: Sequence[str]) -> str:
    rows = []
    for line in scope_lines(scorecard):
        name = escape(f"{line.split}, {line.form}" if line.form else line.split)
        found = [line.models.get(model) for model in models]
        shown = [f"{number(r.value)} {interval(r.low, r.high)}".strip() if r else "–" for r in found]
        rows.append([line.cell, name, escape(words.plain(line.metric)), *map(escape, shown)])
    return table(["cell", "split", "metric", *models], rows, left=3)


def _attacks(scorecard: Scorecard) -> str:
    rows = []
    for a in scorecard.attacks:
        shown = (
            f"{number(a.recovery)} {interval(a.low, a.high)}"
            if a.recovery is not None
            else f"n/a: {words.reason(a.reason)}"
        )
        name = escape(words.plain(a.attack)) + (" (worst)" if a.worst else "")
        texts = [name, *map(escape, (setting(a.config), a.threat, a.injects))]
        rows.append([*texts, number(a.original), number(a.controlled), number(a.oracle), escape(shown)])
    header = [
        "attack",
        "configuration",
        "threat model",
        "injects",
        "original",
        "controlled",
        "oracle",
        "recovery",
    ]
    return table(header, rows, left=4)
