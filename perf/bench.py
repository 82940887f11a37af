"""expunge against the textbook way, as ratios of processor time in one run: `python -m perf.bench`.

Pieces of all ways are timed in turn, so that a busy machine slows them alike; a ratio is the median over
repeats. Writes perf/results.json and docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from datetime import UTC, datetime
from pathlib import Path
from time import process_time
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from perf.contests import Contest, contests
from perf.memory import memory

ROOT = Path(__file__).parents[1]
MEMORY_TARGET = 1.10


def race(contest: Contest, repeats: int) -> None:
    """Fill `contest.seconds`: way → seconds of each repeat. One untimed piece of every way goes first."""
    for pieces in contest.ways.values():
        pieces[0]()
    turns = sorted(((i + 0.5) / len(p), way, i) for way, p in contest.ways.items() for i in range(len(p)))
    for _ in range(repeats):
        spent = dict.fromkeys(contest.ways, 0.0)
        for _, way, i in turns:
            began = process_time()
            contest.ways[way][i]()
            spent[way] += process_time() - began
        for way, seconds in spent.items():
            contest.seconds.setdefault(way, []).append(seconds)


def judged(contest: Contest) -> dict[str, Any]:
    """The row of a contest: its ratio, what of it is padding, what arithmetic, and whether it is reached."""
    textbook, grouped, ours = (contest.seconds[way] for way in ("textbook", "grouped", "expunge"))
    ratios = [a / b for a, b in zip(ours, textbook, strict=True)]
    padding = _median_ratio(grouped, textbook)
    arithmetic = _median_ratio(ours, grouped)
    ratio = statistics.median(ratios)
    row = {
        "name": contest.name, "what": contest.what, "target": contest.target, "ratio": ratio,
        "lowest": min(ratios), "highest": max(ratios), "padding": padding, "arithmetic": arithmetic,
        "seconds": {way: statistics.median(s) for way, s in contest.seconds.items()},
        "reached": ratio <= contest.target, "note": "",
    }  # fmt: skip
    if contest.aside:
        book, own = statistics.median(textbook), statistics.median(ours)
        share = (own + contest.aside.seconds / contest.aside.rounds) / book
        row["note"] = f"; {show(share)} with {contest.aside.name}"
    return row


def _median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def weighed(found: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The row of the memory: NPO over GradDiff, in expunge and in the textbook way."""
    ratio, book = (found["NPO"][way] / found["GradDiff"][way] for way in ("expunge", "textbook"))
    return {
        "name": "live tensor bytes, NPO / GradDiff", "what": "105 M parameters, end of the forward pass",
        "target": MEMORY_TARGET, "ratio": ratio, "reached": ratio <= MEMORY_TARGET,
        "note": f"; {show(book)} in the textbook way, with its second model", "bytes": found,
    }  # fmt: skip


def machine() -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__, "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip


# Showing -------------------------------------------------------------------------------------------------


def show(number: float) -> str:
    return f"{number:.2f}" if number >= 0.01 else f"{number:.4f}"


def cells(row: dict[str, Any]) -> list[str]:
    span = f" ({show(row['lowest'])}–{show(row['highest'])})" if "lowest" in row else ""
    parts = [show(row[key]) if key in row else "–" for key in ("arithmetic", "padding")]
    reached = "yes" if row["reached"] else "no"
    return [row["name"], f"≤ {row['target']:.2f}", f"{show(row['ratio'])}{span}", reached, *parts]


HEADER = ["expunge / textbook", "target", "ratio (range)", "reached", "arithmetic", "padding"]


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(*HEADER, title="1 = as long as the textbook way")
    for row in rows:
        shown.add_row(*cells(row), style=None if row["reached"] else "bold red")
    return shown


def page(rows: list[dict[str, Any]], where: dict[str, Any], setup: str) -> str:
    """docs/speed.md"""
    lines = [
        "# Speed", "",
        "Written by `make bench`: ratios measured in one run, 1 = as long as the textbook way.", "",
        f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}",
        *(f"| {' | '.join(cells(row))} |" for row in rows), "",
        f"- **Machine** {where['processor']}, {where['cores']} cores, {where['threads']} torch thread, fp32; "
        f"torch {where['torch']}, transformers {where['transformers']}, Python {where['python']}; "
        f"{where['date']}.",
        f"- **Work** {setup}",
        "- **The textbook way** (`perf/textbook.py`, plain transformers): a live reference copy, separate "
        "forwards for forget and retain, padded batches in file order, logits at every position, one pass "
        "over the data for each metric, padded greedy generation. Both ways give the same losses, scores and "
        "texts; a test holds that.",
        "- **Arithmetic × padding ≈ ratio.** Padding is the textbook way on batches of like lengths against "
        "itself in file order; arithmetic is expunge against that.",
        "- Time is processor time; pieces of all ways run in turn, ratios are medians over repeats.",
    ]  # fmt: skip
    lines += [f"- {row['name']}: {row['what']}{row['note']}." for row in rows]
    lines += [f"- **Not reached**: {reason(row)}" for row in rows if not row["reached"]]
    return "\n".join(lines) + "\n"


def reason(row: dict[str, Any]) -> str:
    """Where a ratio that misses its target comes from."""
    if "padding" not in row:
        return f"{row['name']} needs {row['ratio']:.2f}."
    need = row["target"] / row["padding"]
    return (
        f"{row['name']}: with padding at {row['padding']:.2f} the arithmetic would have to be {need:.2f}, "
        f"it is {row['arithmetic']:.2f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=48, help="forget records, and as many retain records")
    parser.add_argument(
        "--batch", type=int, default=16, help="forget rows of a step, and as many retain rows"
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    messages = Console(stderr=True)
    rows = []
    for make in contests(options.records, options.batch):
        contest = make()
        messages.print(f"timing {contest.name}")
        race(contest, options.repeats)
        rows.append(judged(contest))
    messages.print("weighing NPO and GradDiff")
    rows.append(weighed(memory()))
    setup = (
        f"an eight-layer random Llama of 9.7 M parameters, {options.records} invented records with the "
        f"lengths of TOFU, batches of {options.batch} + {options.batch}, {options.repeats} repeats."
    )
    where = machine()
    results = {"machine": where, "settings": vars(options), "rows": rows}
    (ROOT / "perf" / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (ROOT / "docs" / "speed.md").write_text(page(rows, where, setup), encoding="utf-8")
    Console().print(table(rows))


if __name__ == "__main__":
    main()
