"""Results on the terminal, and reports written again."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expunge import ranks
from expunge.audit.scorecard import Scorecard
from expunge.errors import ConfigError, DataError, Problem
from expunge.evidence import read_evidence
from expunge.progress import say
from expunge.reports import compare, find_record, print_record, print_summary, write_reports
from expunge.reports.formatting import byte_size, duration, number
from expunge.runs.composition_page import print_composition
from expunge.runs.pipeline import RunResult
from expunge.runs.plan import Plan
from expunge.runs.recommend import Advice, told
from expunge.runs.stream import HEAD, StreamResult, cells
from expunge.runs.tracing import trace
from expunge.runs.tuning_page import print_tuning

__all__ = ["finish", "print_plan", "read_scorecard", "show_record", "show_run", "show_why", "write_again"]


def console() -> Any:
    from rich.console import Console

    return Console()


def finish(result: RunResult) -> None:
    """Print the result; raise BarMissed (exit 3) when a requirement was not met. Rank 0 does so for all."""
    if not ranks.is_first():
        return
    if isinstance(result, StreamResult):
        print_stream(result.rows, result.path)
        result.check()
        return
    if result.scorecard is None:
        say(f"done; the run folder is {result.path}")
        return
    print_summary(result.scorecard, console(), result.report)
    result.check()


def read_scorecard(folder: Path) -> Scorecard:
    path = Path(folder) / "scorecard.json"
    if not path.is_file():
        hint = (
            "Its run is not finished: run the recipe again"
            if (Path(folder) / "run.json").is_file()
            else "Give a run folder; see: expunge list runs"
        )
        raise ConfigError(Problem(str(folder), "holds no scorecard.json", hint))
    try:
        return Scorecard.read(path)
    except ValueError as error:
        raise ConfigError(
            Problem(str(path), "is damaged or of another version", "Run the recipe again")
        ) from error


def show_why(run: Path, name: str, *, as_json: bool) -> None:
    """The file behind a number, its parts by record, and the same computed from them again."""
    found = trace(run, name)
    if as_json:
        sys.stdout.write(json.dumps([asdict(one) for one in found], indent=1) + "\n")
        return
    for one in found:
        print(
            f"{one.name}: {number(one.told)}, computed again {number(one.again)}, from {Path(run) / one.file}"
        )
        for record, value in one.records.items():
            print(f"  {record}  {number(value)}")


def print_stream(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """The table of a stream; its columns fold on a narrow terminal."""
    from rich import box
    from rich.table import Table

    table = Table(*HEAD, box=box.SIMPLE, pad_edge=False)
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in cells(row)))
    console().print(table)
    console().print(str(folder / "stream.md"), markup=False, highlight=False, soft_wrap=True)


def show_stream(file: Path, *, as_json: bool) -> None:
    text = file.read_text(encoding="utf-8")
    if as_json:
        sys.stdout.write(text)
    else:
        print_stream(json.loads(text)["rows"], file.parent)


def show_run(folder: Path, *, as_json: bool = False) -> None:
    if (stream := Path(folder) / "stream.json").is_file():
        show_stream(stream, as_json=as_json)
        return
    if (search := Path(folder) / "tuning.json").is_file():
        text = search.read_text(encoding="utf-8")
        sys.stdout.write(text) if as_json else print_tuning(json.loads(text), Path(folder))
        return
    if (composed := Path(folder) / "composition.json").is_file():
        text = composed.read_text(encoding="utf-8")
        sys.stdout.write(text) if as_json else print_composition(json.loads(text), Path(folder))
        return
    card = read_scorecard(folder)
    if as_json:
        sys.stdout.write(card.model_dump_json(indent=1) + "\n")
    else:
        print_summary(card, console(), Path(folder) / "report.html")


def show_record(folder: Path, record: str, *, as_json: bool = False) -> None:
    """One record side by side; its texts come from the stored evidence, which is on this machine only."""
    row = find_record(read_scorecard(folder), record)
    said, answer = {}, row.answer
    for model, path in _evidence_files(folder, row.split):
        found = read_evidence(path).gold.get(row.id)
        if found is not None:
            answer = answer or found.answer
            if found.generated is not None:
                said[model] = found.generated
    row = row.model_copy(update={"answer": answer, "generated": said or row.generated})
    if as_json:
        sys.stdout.write(row.model_dump_json(indent=1) + "\n")
    else:
        print_record(row, console())


def _evidence_files(folder: Path, split: str) -> list[tuple[str, Path]]:
    places = [
        ("original", "baseline"),
        ("unlearned", "measure"),
        ("controlled", "measure"),
        ("oracle", "baseline"),
    ]
    files = []
    for model, stage in places:
        files += [
            (model, path) for path in sorted((Path(folder) / stage / model).glob(f"{split}-*.parquet"))[:1]
        ]
    return files


def write_again(runs: Sequence[Path], output: Path | None, *, show_text: bool = False) -> list[Path]:
    """The report of one run, or the comparison of several."""
    cards = [read_scorecard(folder) for folder in runs]
    if len(runs) == 1:
        card, target = cards[0], Path(output or runs[0])
        if show_text:
            card = with_texts(card, Path(runs[0]))
            target = Path(output or runs[0] / "with-text")
        return [write_reports(card, target, replace_scorecard=target != Path(runs[0]))["report.html"]]
    if show_text:
        raise ConfigError(Problem("--show-text", "goes with one run", "Compare without it"))
    return [compare(cards, Path(output or Path(runs[0]).parent / "comparison"))["compare.html"]]


def with_texts(card: Scorecard, folder: Path) -> Scorecard:
    """The scorecard with answers and generated texts from the run's evidence."""
    texts: dict[tuple[str, str], dict[str, Any]] = {}
    for split in {row.split for row in card.records}:
        for model, path in _evidence_files(folder, split):
            for record, row in read_evidence(path).gold.items():
                entry = texts.setdefault((split, record), {"answer": row.answer, "generated": {}})
                if row.generated is not None:
                    entry["generated"][model] = row.generated
    if not texts:
        raise DataError(
            Problem(str(folder), "holds no evidence any more", "It was purged: run the recipe again")
        )
    records = [row.model_copy(update=texts.get((row.split, row.id), {})) for row in card.records]
    return card.model_copy(update={"records": records, "shows_text": True})


def print_plan(made: Plan, *, why: bool = False) -> None:
    """`why`: also which methods were ruled out, and why."""
    from rich import box
    from rich.table import Table

    out = console()
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("split", "records", "entities", "tokens", "where from"):
        table.add_column(name, justify="right" if name in ("records", "entities", "tokens") else "left")
    for split, facts in made.splits.items():
        tokens = made.tokens.get(split)
        table.add_row(
            split,
            f"{facts['records']:,}",
            f"{facts['entities']:,}",
            f"{tokens:,}" if tokens else "",
            facts["built"] or "given",
        )
    out.print(table)
    size = f", {made.parameters / 1e6:,.1f} M parameters" if made.parameters else ""
    lines = [
        f"model     {made.model}{size}",
        f"method    {made.method} ({made.adapter}), {made.steps} optimizer steps",
        f"control   {', '.join(made.controls) or 'none'}; bar {made.bar}",
        f"attacks   {', '.join(made.attacks) or 'none'}",
    ]
    if made.memory:
        parts = ", ".join(f"{name} {byte_size(size)}" for name, size in made.memory.items())
        each = f" on each of {made.devices} devices" if made.devices > 1 else ""
        lines.append(f"memory    {byte_size(sum(made.memory.values()))}{each} ({parts})")
    if made.seconds:
        parts = ", ".join(f"{name} {_rough(value)}" for name, value in made.seconds.items())
        lines.append(f"time      {parts} (rough; attacks not counted)")
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    if made.advice:
        print_advice(made.advice, why=why)
    if made.sample:
        out.print(
            f"\none record that stays, as the model sees it "
            f"({made.sample['id']}, {made.sample['tokens']} tokens):",
            markup=False,
            highlight=False,
        )
        out.print(made.sample["prompt"], markup=False, highlight=False, style="dim")
        out.print(made.sample["answer"], markup=False, highlight=False)
    for text in made.notes:
        say(f"note: {text}")
    for text in made.warnings:
        say(f"warning: {text}")


def print_advice(advice: Advice, *, why: bool = False) -> None:
    """Which methods suit the request, what speaks for each, what it cannot do."""
    width, indent = max(60, min(110, console().width)), " " * 19
    counts = f"{advice.considered} could do it, {len(advice.ruled_out)} cannot"
    lines = ["", f"methods that suit ({counts}; by their cards alone)"]
    for i, one in enumerate(advice.recommended, start=1):
        cost = [told(one.seconds)] if one.seconds is not None else []
        heads = (f"  {i} {one.name:<14} ", indent + "but: ", indent + "asks for: ")
        for head, texts in zip(heads, ([*one.why, *cost], one.cannot, one.asks), strict=True):
            lines += textwrap.wrap(head + "; ".join(texts), width, subsequent_indent=indent) if texts else []
    if not advice.recommended:
        lines.append("  none; --why says what rules each out")
    reasons: dict[str, list[str]] = {}
    for name, reason in advice.ruled_out.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items() if why else ():
        lines += ["", f"ruled out: {reason}"]
        lines += textwrap.wrap(", ".join(names), width, initial_indent="  ", subsequent_indent="  ")
    sys.stdout.write("\n".join(lines) + "\n")


def _rough(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else "under 1 s"
