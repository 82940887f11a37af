"""The leaderboard as Markdown: the tables and orders of the page without its plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from expunge.reports import words
from expunge.reports.formatting import NA, duration, interval, number
from expunge.reports.leaderboard_ranking import Place, places, turns
from expunge.reports.leaderboard_rows import SCORES, Board, Entry, Row, Spread
from expunge.reports.leaderboard_words import (
    DISCIPLINE,
    RULES,
    SCORE_WORDS,
    counted,
    facet_metrics,
    ranked_scores,
    score_metrics,
    turn_text,
    without_paths,
)
from expunge.reports.markdown import escape, table

__all__ = ["board_table", "render_markdown", "unfinished"]

_HEADER = (
    "method", "control", "α", "retain ↑", "retain, paraphrased ↑", "forget ↓", "forget, paraphrased ↓",
    "worst attack ↓", "verdict", "time", "× retraining", "seeds",
)  # fmt: skip


def render_markdown(found: Sequence[Board], top: Mapping[str, Any]) -> str:
    """The page in Markdown; everything that a cell says is escaped."""
    counts = top["counts"]
    parts = [
        f"# Leaderboard: {escape(top['title'])}",
        " ".join(DISCIPLINE),
        f"{counts['finished']} cells finished, {counts['failed']} failed, {counts['missing']} missing, "
        f"{counts['apart']} listed apart. Bars τ: {', '.join(f'{t:g}' for t in top['taus'])}; "
        f"bar metric: {escape(', '.join(top['metrics']) or 'none')}; "
        f"audit: {escape(', '.join(top['profiles']) or 'none')}. "
        "Scores are means ± standard deviation over seeds; of one seed with the 95 % "
        "interval over entities. Worst attack is the recovery: 0 is the oracle, 1 the original.",
    ]
    for board in found:
        parts += [
            f"## {escape(board.name)}",
            escape(score_metrics(board)),
            board_table(board),
            unfinished(board),
            _facets(board),
        ]
        for score in ranked_scores(board):
            parts += [f"### Order on {SCORE_WORDS[score]}", _order(board, score), _turns(board, score)]
        if board.apart:
            lines = [f"{c.method}, seed {c.seed}: {why}" for c, why in board.apart]
            parts += ["### Listed apart: not comparable", _bullets(lines)]
    parts += ["## Rules for a fair entry", _bullets(RULES)]
    if top["commands"]:
        parts += ["## To reproduce", "```\n" + "\n".join(top["commands"]).replace("```", "") + "\n```"]
    made = [f"expunge {v}" for v in top["versions"]] + [f"{e} ({n} cells)" for e, n in top["environments"]]
    parts.append(escape("; ".join([*made, top["created"]])))
    return "\n\n".join(part for part in parts if part) + "\n"


def board_table(board: Board) -> str:
    """The table of one part: original and oracle, then each method before and after control."""
    rows = [
        [f"*{row.kind}*", "–", "–", *_scores(row), "–", "–", "–", "–", "–"]
        for row in (board.original, board.oracle)
        if row
    ]
    for entry in board.entries:
        rows.append(_line(entry, entry.uncontrolled, board))
        rows += [_line(entry, entry.controlled(tau), board) for tau in board.taus]
    return table(_HEADER, rows, left=2)


def _line(entry: Entry, row: Row, board: Board) -> list[str]:
    loose = row.kind == "uncontrolled"
    name = escape(entry.label)
    return [
        f"*{name}*" if loose else f"**{name}**",
        "none" if loose else f"τ = {row.tau:g}",
        _cell(row.alpha),
        *_scores(row),
        _cell(row.recovery) + (f" ({escape(counted(row.attacks))})" if row.attacks else ""),
        escape(counted(row.verdicts)) or "–",
        duration(row.wall.mean) if row.wall.n else "–",
        _cell(row.ratio),
        f"{row.n} of {entry.wanted}",
    ]


def _scores(row: Row) -> list[str]:
    return [_cell(row.scores[name]) for name in SCORES]


def _cell(spread: Spread | None) -> str:
    if spread is None or spread.mean is None:
        return f"{NA}: {escape(words.reason(spread.reasons[0]))}" if spread and spread.reasons else "–"
    if spread.sd is not None:
        return f"{number(spread.mean)} ± {number(spread.sd)}"
    return f"{number(spread.mean)} {escape(interval(spread.low, spread.high))}".strip()


def unfinished(board: Board) -> str:
    """The cells that failed, with the reason, and those that are missing."""
    lines = [
        f"{entry.label}, seed {seed}: failed, {without_paths(why)}"
        for entry in board.entries
        for seed, why in entry.failed.items()
    ]
    lines += [f"{entry.label}, seed {seed}: missing" for entry in board.entries for seed in entry.missing]
    return _bullets(lines)


def _facets(board: Board) -> str:
    named = facet_metrics(board)
    if not named:
        return ""
    header = ["method", "control", *(f"{facet} ({escape(metric)})" for facet, metric in named.items())]
    rows = [[f"*{r.kind}*", "–", *(_cell(r.facets.get(f)) for f in named)]
            for r in (board.original, board.oracle) if r]  # fmt: skip
    for entry in board.entries:
        for row in (entry.uncontrolled, *map(entry.controlled, board.taus)):
            control = "none" if row.tau is None else f"τ = {row.tau:g}"
            rows.append([escape(entry.label), control, *(_cell(row.facets.get(f)) for f in named)])
    return "### Facets\n\n" + table(header, rows, left=2)


def _order(board: Board, score: str) -> str:
    ranked = {tau: {p.entry.label: p for p in places(board, tau, score)} for tau in board.taus}
    header = ["method", *(f"τ = {tau:g}" for tau in board.taus)]
    rows = [
        [escape(entry.label), *(place_text(ranked[tau][entry.label]) for tau in board.taus)]
        for entry in board.entries
    ]
    return table(header, rows)


def place_text(place: Place) -> str:
    """Rank, with = where noise could have made the order, and the score it rests on."""
    if place.rank is None:
        return escape(place.note)
    deviation = "" if place.sd is None else f" ± {number(place.sd)}"
    note = f", {place.note}" if place.note else ""
    return f"{place.rank}{'=' if place.tied else ''} ({number(place.mean)}{deviation}{note})"


def _turns(board: Board, score: str) -> str:
    found = turns(board, score)
    if not found:
        return "No order of two methods turns between these bars." if len(board.taus) > 1 else ""
    return "The ranking depends on τ:\n\n" + _bullets(map(turn_text, found))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)
