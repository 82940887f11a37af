"""docs/methods-compared.md from the finished cells of perf.methods_compared."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from perf.compared_methods import CONFIGURATIONS
from perf.methods_compared import CELLS, HELD, TAUS, Task, chosen, kept_records, yardstick

__all__ = ["write_page"]

PAGE = Path("docs/methods-compared.md")
FINDINGS = Path("perf/compared_findings.md")
"""What the numbers say, written by hand; stands below the tables."""

INTRODUCTION = """\
# Methods compared at the same retained utility

Made by `python -m perf.methods_compared`, which can be killed and started again: finished cells are kept.
From nothing it takes some {half:.0f} minutes in two processes on two cores (half of what the cells took).

World: `personas/tiny` (24 forget records about 4 people), a Llama of width 64. Every configuration that has
something to set (the learning rate, or the method's own step) had three candidate settings; the one with the
lowest controlled forget score on *selection* phrasings, seed 0, was taken and run again under attack:
{three} configurations of tier 1 with three seeds, {one} others with one. All numbers are extraction
strength, mean ± standard deviation over seeds; original, oracle, splits and calibration are the same for all.
*Held-out phrasing*: paraphrase, cloze, reverse, multi-hop and choice questions that chose nothing. *rtt*: the
strongest of up to 20 steps of fine-tuning on half of the forget facts, scored on the other half. *benign*:
the same on unrelated text. Attacks act on the controlled model; of a wrapper, on the weights behind it. The
detector of excessive unlearning (`watch`) ran in every training.

With 12 calibration and 24 forget records the bar moves in steps; differences below some .05 mean little."""

Cells = Sequence[dict[str, Any]]


def spread(values: Iterable[float | None]) -> str:
    """Mean and, of several, the standard deviation."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    deviation = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.3f}{deviation}"


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def header(cells: Sequence[str]) -> list[str]:
    return [row(cells), "|" + "---|" * len(cells)]


def finished(name: str) -> Cells:
    """The attacked cells of a configuration, one per seed; failed ones say so."""
    paths = [Task(name, chosen(name), seed, True).path for seed in range(CONFIGURATIONS[name].seeds)]
    return [json.loads(p.read_text(encoding="utf-8")) for p in paths if p.is_file()]


def held(cells: Cells, tau: float) -> list[dict[str, Any]]:
    return [cell["held"][str(tau)] for cell in cells if "held" in cell]


def settings_of(name: str) -> str:
    """What the search chose."""
    candidate = CONFIGURATIONS[name].candidates[chosen(name)]
    found = {**candidate.get("train", {}), **candidate.get("settings", {})}
    return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()) or "–"


COLUMNS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "forget ↓": lambda h: h["forget"],
    "held-out phrasing ↓": lambda h: h["hard"],
    "retain ↑": lambda h: h["report"],
    "neighbors ↑": lambda h: h["neighbors"],
    "rtt ↓": lambda h: h["attacks"]["rtt"]["worst"],
    "benign ↓": lambda h: h["attacks"]["benign"]["worst"],
}


def table(names: Sequence[str], tau: float) -> list[str]:
    """All configurations under one bar, best controlled forget score first; the yardsticks open it."""
    lines = header(["method", "α*", *COLUMNS, "seeds"])
    for model in ("original", "oracle"):
        kept = yardstick(model)
        lines.append(row([f"*{model}*", "–", *(spread([read(kept)]) for read in COLUMNS.values()), "–"]))
    for name in ranked(names, tau):
        cells = finished(name)
        found = held(cells, tau)
        if not found:
            why = next((c["failed"] for c in cells if "failed" in c), "no finished cell")
            lines.append(row([name, f"failed: {why}", *[""] * len(COLUMNS), "0"]))
            continue
        alpha = spread(h["alpha"] for h in found)
        cells_ = [spread(read(h) for h in found) for read in COLUMNS.values()]
        lines.append(row([f"**{name}**", alpha, *cells_, str(len(found))]))
    return lines


def ranked(names: Sequence[str], tau: float) -> list[str]:
    """By mean controlled forget score; what did not survive control (α* = 0 in every seed) comes last."""

    def key(name: str) -> tuple[bool, float]:
        found = held(finished(name), tau)
        gone = not found or all(h["alpha"] == 0 for h in found)
        return gone, statistics.fmean(h["forget"] for h in found) if found else 2.0

    return sorted(names, key=key)


def loose(names: Sequence[str]) -> list[str]:
    """The uncontrolled rows and the cost, never ranked."""
    lines = header(["method", "chosen settings", "forget", "held-out phrasing", "retain", "neighbors",
                    "steps", "tokens", "CPU s", "watch"])  # fmt: skip
    for name in names:
        cells = [c for c in finished(name) if "loose" in c]
        if not cells:
            continue
        found = [spread(c["loose"].get(s) for c in cells) for s in ("forget", "hard", "report", "neighbors")]
        ended = sum(any("watch:" in note for note in c.get("notes", ())) for c in cells)
        tokens = [c["tokens"] for c in cells if "tokens" in c]
        steps = [c["steps"] for c in cells if "steps" in c]
        cost = [f"{statistics.fmean(v):.0f}" if v else "–" for v in (steps, tokens)]
        cpu = f"{statistics.fmean(c['cpu'] for c in cells):.1f}"
        ended_ = f"ended {ended} of {len(cells)}" if ended else ""
        lines.append(row([name, settings_of(name), *found, *cost, cpu, ended_]))
    return lines


def kinds(tau: float) -> list[str]:
    """Reinforcement, preference and ascent, with cost."""
    lines = header(["kind", "method", "forget ↓", "held-out phrasing ↓", "retain ↑", "rtt ↓", "CPU s"])
    for kind in ("ascent", "preference", "reward"):
        for name in ranked([n for n, c in CONFIGURATIONS.items() if c.group == kind], tau):
            cells = finished(name)
            found = held(cells, tau)
            if found:
                read = [spread(COLUMNS[c](h) for h in found)
                        for c in ("forget ↓", "held-out phrasing ↓", "retain ↑", "rtt ↓")]  # fmt: skip
                cpu = f"{statistics.fmean(c['cpu'] for c in cells if 'cpu' in c):.1f}"
                lines.append(row([kind, name, *read, cpu]))
    return lines


def hardening(tau: float) -> list[str]:
    """Relearning curves of what was made to withstand it, beside the same without."""
    names = ["npo", "npo+sam", "graddiff", "graddiff+sam", "lat off", "lat", "mudman", "wga", "undo"]
    steps = sorted({int(s) for s in yardstick("oracle")["attacks"]["rtt"]["curve"]})
    lines = header(["attack", "method", *(f"{s} steps" for s in steps), "rise"])
    for attack in ("rtt", "benign"):
        for name in ["*oracle*", *[n for n in names if n in CONFIGURATIONS]]:
            if name == "*oracle*":
                curves = [yardstick("oracle")["attacks"][attack]["curve"]]
            else:
                curves = [h["attacks"][attack]["curve"] for h in held(finished(name), tau)]
            if curves:
                cells = [spread(c.get(str(s)) for c in curves) for s in steps]
                rise = spread(max(c.values()) - c["0"] for c in curves)
                lines.append(row([attack, name, *cells, rise]))
    return lines


def write_page() -> Path:
    """Write the page from what is there."""
    names = [name for name in CONFIGURATIONS if all_searched(name)]
    cpu = sum(json.loads(p.read_text(encoding="utf-8")).get("wall", 0.0) for p in CELLS.glob("*.json")) / 60
    one, three = ([n for n in names if CONFIGURATIONS[n].tier == t] for t in (2, 1))
    text = [INTRODUCTION.format(half=cpu / 2, three=len(three), one=len(one)), ""]
    for tau in TAUS:
        text += [f"## Controlled: keep {tau:g}", "", *table(names, tau), ""]
    text += ["## Ascent, preference, reward", "", f"Keep {TAUS[0]:g}.", "", *kinds(TAUS[0]), ""]
    text += ["## Made to withstand relearning", "", f"Keep {TAUS[0]:g}; step 0 is the model that ships.", ""]
    text += [*hardening(TAUS[0]), ""]
    text += ["## Uncontrolled, and what it cost", "", "Never ranked. CPU seconds of the method alone.", ""]
    text += [*loose(names), ""]
    text += [
        "## What a retain term holds",
        "",
        "Uncontrolled, one seed: the 24 retain records, and others.",
        "",
    ]
    text += header(["method", "settings", "forget", "retain, trained on", "report"])
    for name, kept in kept_records().items():
        given = ", ".join(f"{k} {v:g}" for k, v in HELD[name].items())
        text.append(row([name, given, *(spread([kept[s]]) for s in ("forget", "retain", "report"))]))
    text.append("")
    if FINDINGS.is_file():
        text += [FINDINGS.read_text(encoding="utf-8").rstrip(), ""]
    PAGE.write_text("\n".join(text), encoding="utf-8")
    return PAGE


def all_searched(name: str) -> bool:
    count = len(CONFIGURATIONS[name].candidates)
    return all(Task(name, i, 0, False).path.is_file() for i in range(count))
