"""The controlled leaderboard as one self-contained page and as Markdown, from the cells of a bench."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import ValidationError

from expunge.errors import DataError, Problem
from expunge.reports import leaderboard_charts as charts
from expunge.reports import words
from expunge.reports.files import write_text
from expunge.reports.formatting import NA, interval, number
from expunge.reports.leaderboard_markdown import render_markdown
from expunge.reports.leaderboard_ranking import pairs, places, turns
from expunge.reports.leaderboard_rows import SCORES, Board, Spread, boards
from expunge.reports.leaderboard_schema import Asked, Cell
from expunge.reports.leaderboard_words import (
    DISCIPLINE,
    RULES,
    SCORE_WORDS,
    counted,
    facet_metrics,
    head,
    ranked_scores,
    score_metrics,
    turn_text,
    without_paths,
)
from expunge.reports.page import environment

__all__ = ["read_results", "write_page"]

CURVE_BUDGET = 600_000  # bytes of the page that the α-curves may take


def read_results(folders: Sequence[Path]) -> tuple[list[Cell], list[Asked]]:
    """All cells of these results folders and what was asked for; DataError names every file that is none."""
    cells, asked, problems = [], [], []
    for folder in map(Path, folders):
        found = sorted((folder / "cells").glob("*.json"))
        if not found and not (folder / "bench.json").is_file():
            problems.append(
                Problem(str(folder), "holds no cells and no bench.json", "Give a folder of expunge bench")
            )
        for path in found:
            cells += _read(Cell, path, problems)
        if (folder / "bench.json").is_file():
            asked += _read(Asked, folder / "bench.json", problems)
    if problems:
        raise DataError(problems)
    return cells, asked


def _read(kind: type[Any], path: Path, problems: list[Problem]) -> list[Any]:
    try:
        return [kind.model_validate_json(path.read_text(encoding="utf-8"))]
    except (ValidationError, UnicodeDecodeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, first["loc"]))
        what = f"is no {kind.__name__.lower()} of a bench: {where + ': ' if where else ''}{first['msg']}"
        problems.append(Problem(str(path), what, "Take it out of the folder, or run its bench again"))
        return []


def write_page(cells: Sequence[Cell], folder: Path, asked: Sequence[Asked] = ()) -> dict[str, Path]:
    """Write index.html and leaderboard.md into `folder`; returns them by name."""
    found = boards(cells, asked)
    top = head(cells, asked, found)
    texts = {
        "index.html": _html(found, top),
        "leaderboard.md": render_markdown(found, top),
    }
    return {name: write_text(Path(folder) / name, text) for name, text in texts.items()}


def _html(found: Sequence[Board], top: Mapping[str, Any]) -> str:
    looks = charts.styles([entry for board in found for entry in board.entries])
    env = environment()
    env.filters |= {"spread": spread_html, "nopath": without_paths, "turn": turn_text, "counted": counted}
    page = env.get_template("leaderboard.html.j2").render(
        head=top, boards=found, views=_views(found, looks), looks=looks, glyphs=charts.GLYPHS,
        discipline=DISCIPLINE, rules=RULES, scores=SCORES, facets=words.FACETS,
        score_words=SCORE_WORDS,
    )  # fmt: skip
    return re.sub(r"\n\s*\n+", "\n", page)


def _views(found: Sequence[Board], looks: Mapping[str, charts.Style]) -> list[dict[str, Any]]:
    """What the page shows of each board beside its rows: plots and orders."""
    left, views = CURVE_BUDGET, []
    for board in found:
        curves = []
        for entry in board.entries:
            svg = charts.alpha_curve(board, entry) if left > 0 else None
            if svg:
                left -= len(svg)
                curves.append((entry.label, Markup(svg)))
        drawn = [(tau, charts.trade_off(board, tau, looks)) for tau in board.taus]
        views.append(
            {
                "trade_off": [(tau, Markup(svg)) for tau, svg in drawn if svg],
                "tau": [
                    (score, Markup(svg))
                    for score in ranked_scores(board)
                    if len(board.taus) > 1 and (svg := charts.tau_curve(board, looks, score))
                ],
                "alpha": curves,
                "alpha_left_out": left <= 0,
                "orders": [_order(board, score) for score in ranked_scores(board)],
                "facets": facet_metrics(board),
                "metrics": score_metrics(board),
            }
        )
    return views


def _order(board: Board, score: str) -> dict[str, Any]:
    ranked = {tau: places(board, tau, score) for tau in board.taus}
    return {
        "score": score,
        "places": {tau: {p.entry.label: p for p in row} for tau, row in ranked.items()},
        "turns": turns(board, score),
        "pairs": {tau: pairs(board, tau, score) for tau in board.taus},
        "names": [p.entry.label for p in next(iter(ranked.values()), [])],
    }


def spread_html(spread: Spread | None) -> Markup:
    """Mean ± deviation; of one value its interval; of none the reason."""
    if spread is None:
        return Markup("–")
    if spread.mean is None:
        why = "; ".join(map(words.reason, spread.reasons))
        return Markup('<abbr title="{}">{}</abbr>').format(why, NA) if why else Markup("–")
    if spread.sd is not None:
        return Markup('{} <span class="sd">± {}</span>').format(number(spread.mean), number(spread.sd))
    ends = interval(spread.low, spread.high)
    small = Markup("<small>{}</small>").format(ends) if ends else ""
    return Markup("{}{}").format(number(spread.mean), small)
