"""What both forms of the leaderboard say in words: head, discipline, rules, and small phrases."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.reports import words
from expunge.reports.formatting import setting
from expunge.reports.leaderboard_ranking import Turn
from expunge.reports.leaderboard_rows import Board
from expunge.reports.leaderboard_schema import Asked, Cell

__all__ = [
    "DISCIPLINE", "RULES", "SCORE_WORDS", "counted", "facet_metrics", "head", "ranked_scores",
    "score_metrics", "turn_text", "without_paths",
]  # fmt: skip

SCORE_WORDS = {"forget": "exact prompts", "forget_paraphrased": "paraphrased prompts"}

DISCIPLINE = (
    "Every method is first brought to the same retained utility by the same control, on records that no "
    "method trained on, and only then compared by what it forgot.",
    "The uncontrolled row stands above its controlled rows and is never ranked; the facets stand side by "
    "side and are never folded into one number.",
)

RULES = (
    "The original model, the oracle and the calibration records are the same, by fingerprint; so are the bar "
    "metric and the audit profile.",
    "The bars τ are stated before training. Retain is scored on records outside training and calibration.",
    "All cells come from one series of expunge versions, whose numbers mean the same.",
    "Three seeds or more. Every seed that was asked for counts: one that failed is shown as failed and "
    "enters no mean.",
    "Settings are part of the entry and are shown. Where they were searched, every method had as many "
    "trials, and no record that is scored here chose them.",
    "A cell is the file that expunge wrote, unedited, with its key. An entry is added as its cells and its "
    "bench.json.",
)


def head(cells: Sequence[Cell], asked: Sequence[Asked], found: Sequence[Board]) -> dict[str, Any]:
    """What was compared, and where, in a form that both pages show."""
    total = Counter[str]()
    for board in found:
        total.update(board.counts)
    kept = [cell for board in found for cell in board.cells]
    names = list(dict.fromkeys(board.benchmark for board in found))
    environments = Counter(setting(cell.environment) for cell in kept if cell.environment)
    return {
        "title": ", ".join(names) or "no benchmark",
        "parts": [board.name for board in found],
        "methods": sorted({entry.label for board in found for entry in board.entries}),
        "seeds": sorted({seed for board in found for seed in board.seeds}),
        "taus": sorted({tau for board in found for tau in board.taus}, reverse=True),
        "metrics": list(dict.fromkeys(words.plain(b.bar_metric) for b in found if b.bar_metric)),
        "profiles": list(dict.fromkeys(board.profile for board in found if board.profile)),
        "versions": sorted({cell.expunge_version for cell in kept if cell.expunge_version}),
        "environments": environments.most_common(),
        "models": [
            (board.name, board.reference.original_fingerprint[:12], board.reference.oracle_fingerprint[:12])
            for board in found if board.reference
        ],
        "counts": total,
        "wall": sum(cell.wall for cell in cells),
        "commands": list(dict.fromkeys(without_paths(a.command) for a in asked if a.command)),
        "created": max((cell.created for cell in cells), default=""),
    }  # fmt: skip


def without_paths(text: str) -> str:
    """Absolute paths cut to their last name: where things lie on a machine is nobody's business.

    >>> without_paths("expunge bench tofu benchmark.folder=/mnt/me/data/tofu --jobs 2")
    'expunge bench tofu benchmark.folder=…/tofu --jobs 2'
    """
    return re.sub(r"(?<![\w./…<])/(?:[^\s/=,'\"]+/)*(?=[^\s/=,'\"])", "…/", text)


def ranked_scores(board: Board) -> list[str]:
    """The forget scores that some method has under some bar."""
    return [
        score for score in ("forget", "forget_paraphrased")
        if any(entry.measured(tau, score) for entry in board.entries for tau in board.taus)
    ]  # fmt: skip


def score_metrics(board: Board) -> str:
    """By which metrics the exact and the paraphrased columns are scored."""
    rows = [r for r in (board.original, board.oracle) if r] + [entry.uncontrolled for entry in board.entries]
    named = {
        text: metric
        for score, text in SCORE_WORDS.items()
        if (metric := next((r.scores[score].metric for r in rows if r.scores[score].metric), ""))
    }
    said = ", ".join(f"on {text} by {words.plain(metric)}" for text, metric in named.items())
    return f"Scored {said}." if said else ""


def facet_metrics(board: Board) -> dict[str, str]:
    """Each facet with the metric that stands for it; several where methods differ."""
    rows = [r for r in (board.original, board.oracle) if r]
    rows += [row for e in board.entries for row in (e.uncontrolled, *map(e.controlled, board.taus))]
    named = {
        facet: dict.fromkeys(
            f"{words.plain(s.metric)}{', ' + words.plain(s.split) if s.split else ''}"
            for row in rows if (s := row.facets.get(facet)) and s.metric
        )
        for facet in words.FACETS
    }  # fmt: skip
    return {facet: "; ".join(names) for facet, names in named.items() if names}


def counted(counts: Mapping[str, int]) -> str:
    """Words with how often each was said, the most frequent first.

    >>> counted({"suppressed": 2, "exact": 1})
    'suppressed ×2, exact ×1'
    """
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{words.plain(name)} ×{count}" for name, count in ordered)


def turn_text(turn: Turn) -> str:
    """One pair whose order turns, as a sentence."""
    sure = "beyond noise under both" if turn.sure else "in the means only, within noise"
    less = f"{turn.first} leaves less than {turn.second} at τ = {turn.tau:g}"
    return f"{less} and more at τ = {turn.other:g} ({sure})"
