"""The bench on TOFU as a page: docs/tofu-leaderboard.md from a results folder of `expunge bench tofu`.

expunge bench tofu --splits forget01,forget05 --methods ga,graddiff,ga_kl,idk,npo,rmu --seeds 3 \
    --tau 0.95,0.9,0.6 --output results/tofu
python -m perf.tofu_bench_page results/tofu
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from expunge.reports.files import write_text
from expunge.reports.formatting import duration
from expunge.reports.leaderboard import read_results
from expunge.reports.leaderboard_markdown import board_table, unfinished
from expunge.reports.leaderboard_rows import Board, boards
from expunge.reports.leaderboard_schema import Asked, Cell
from expunge.reports.leaderboard_words import score_metrics, without_paths
from expunge.reports.markdown import escape, table
from expunge.reports.orderings import FAR_BELOW, NOTHING, Ordering, orderings

PAGE = Path("docs/tofu-leaderboard.md")
STILL = 0.02
SHOWN = 6  # findings of one word that are printed with their numbers

INTRODUCTION = """\
# The controlled leaderboard on TOFU

Real TOFU rows (Maini et al. 2024, arXiv 2401.06121). Written by `python -m perf.tofu_bench_page` from the
cells of the bench. Rows in italics show a method without control; they are never ranked. Methods run as
they come, with one learning rate and one number of epochs for all: no setting was searched for any."""

READING = f"""\
The statements are those of published tables for forget05 on Phi-1.5 and Llama-2-7B. A statement *holds*
where every place that was looked up says so beyond noise, *does not hold* where one place contradicts it
beyond noise, and *cannot be said* otherwise. Noise is a 95 % t-interval of the paired differences over
seeds; zero is below {NOTHING:.0%} of the original's score, far below is less than {FAR_BELOW:.0%} of it.
Models this small say nothing about methods at published size."""


def time_of(cells: Sequence[Cell]) -> str:
    """What all cells and each method took."""
    total = sum(cell.wall for cell in cells)
    by_method: dict[str, list[float]] = {}
    for cell in cells:
        by_method.setdefault(cell.method, []).append(cell.wall)
    each = ", ".join(f"{escape(m)} {duration(sum(w) / len(w))}" for m, w in sorted(by_method.items()))
    return f"All cells together took {duration(total)} of work, training to attacks; a cell: {each}."


def ordering_rows(found: Sequence[Ordering]) -> str:
    """One line for each statement: published, here, and in how many places."""
    rows = [
        [o.name, escape(o.statement), o.published, f"**{o.word}**", " / ".join(map(str, o.counts))]
        for o in found
    ]
    return table(["", "statement", "published", "here", "holds / not / open"], rows, left=4)


def findings(ordering: Ordering) -> str:
    """The numbers behind one statement, contradictions first."""
    parts = []
    for word, holds in (("does not hold", False), ("holds", True), ("cannot be said", None)):
        lines = [f for f in ordering.findings if f.holds is holds]
        for finding in lines[:SHOWN]:
            said = f"{finding.numbers} ({finding.why})" if finding.why else finding.numbers
            parts.append(f"- {word}: {escape(finding.where)}: {escape(said)}")
        if len(lines) > SHOWN:
            parts.append(f"- {word}: {len(lines) - SHOWN} more")
    return f"**{ordering.name}**, {ordering.word}\n\n" + ("\n".join(parts) or "- no such cells")


def unmoved(board: Board) -> str:
    """Methods that left the model as it was in every seed: they hold every bar, and it says nothing."""
    names = [entry.label for entry in board.entries if entry.finished and all(map(_is_still, entry.finished))]
    if not names:
        return ""
    return (
        f"Forget and retain within {STILL:.0%} of the original's before control, in every seed: "
        f"{escape(', '.join(names))}. Whoever moves nothing holds every bar; other settings would tell more."
    )


def _is_still(cell: Cell) -> bool:
    if cell.original is None or cell.uncontrolled is None:
        return False
    before, after = cell.original, cell.uncontrolled
    pairs = ((before.retain.value, after.retain.value), (before.forget.value, after.forget.value))
    return all(a is not None and b is not None and abs(a - b) <= STILL * a for a, b in pairs)


def section(board: Board) -> list[str]:
    counts = board.counts
    found = orderings(board)
    sums = f"{counts['finished']} cells finished, {counts['failed']} failed, {counts['missing']} missing."
    return [
        f"## {escape(board.part or board.benchmark)}",
        f"{sums} {escape(score_metrics(board))} Retain is outside training and calibration. Mean ± standard "
        "deviation over seeds.",
        board_table(board),
        unfinished(board),
        unmoved(board),
        f"### Published orderings on {escape(board.part or board.benchmark)}",
        ordering_rows(found),
        "<details><summary>The numbers behind each</summary>",
        *map(findings, found),
        "</details>",
    ]


def page(cells: Sequence[Cell], asked: Sequence[Asked]) -> str:
    commands = [without_paths(a.command) for a in asked if a.command]
    parts = [INTRODUCTION]
    if commands:
        parts.append("```\n" + "\n".join(dict.fromkeys(commands)) + "\n```")
    parts += [time_of(cells), READING]
    for board in boards(cells, asked):
        parts += section(board)
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]]
    if not folders:
        sys.exit("usage: python -m perf.tofu_bench_page RESULTS…")
    print(write_text(PAGE, page(*read_results(folders))))


if __name__ == "__main__":
    main()
