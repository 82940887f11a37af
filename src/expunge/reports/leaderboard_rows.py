"""Cells to rows: what may be compared, and mean and deviation over seeds. A failed cell stays in sight."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.reports.formatting import setting
from expunge.reports.leaderboard_schema import Asked, Cell, Controlled, Measured, Scores

__all__ = ["SCORES", "Board", "Entry", "Row", "Spread", "boards"]

SCORES = ("retain", "retain_paraphrased", "forget", "forget_paraphrased")


@dataclass(frozen=True)
class Spread:
    """One number over seeds: its mean, and its standard deviation (n − 1) where there are several.

    >>> three = Spread.of([Measured(value=0.10), Measured(value=0.12), Measured(value=0.14)])
    >>> round(three.mean, 6), round(three.sd, 6), three.n
    (0.12, 0.02, 3)
    """

    values: tuple[float, ...] = ()
    low: float | None = None  # the interval over entities, of a single value
    high: float | None = None
    metric: str = ""
    split: str = ""
    better: str = ""
    reasons: tuple[str, ...] = ()

    @classmethod
    def of(cls, measured: Iterable[Measured | None]) -> Spread:
        given = [m for m in measured if m is not None]
        known = [m for m in given if m.value is not None and not math.isnan(m.value)]
        one = known[0] if len(known) == 1 else Measured()
        named = next((m for m in given if m.metric), Measured())
        reasons = tuple(dict.fromkeys(m.reason for m in given if m.reason))
        return cls(
            tuple(m.value for m in known if m.value is not None), one.low, one.high,
            named.metric, named.split, named.better, reasons,
        )  # fmt: skip

    @classmethod
    def plain(cls, values: Iterable[float | None]) -> Spread:
        return cls.of(Measured(value=value) for value in values)

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float | None:
        return math.fsum(self.values) / self.n if self.values else None

    @property
    def sd(self) -> float | None:
        if self.n < 2 or not all(map(math.isfinite, self.values)):
            return None
        return statistics.stdev(self.values)


@dataclass(frozen=True)
class Row:
    """A line of the table: one model, or one method in one state over its seeds."""

    kind: str  # original, oracle, uncontrolled, controlled
    n: int
    scores: Mapping[str, Spread]
    facets: Mapping[str, Spread]
    tau: float | None = None
    alpha: Spread = Spread()
    met: int = 0
    verdicts: Mapping[str, int] = field(default_factory=dict)
    attacks: Mapping[str, int] = field(default_factory=dict)
    recovery: Spread = Spread()
    wall: Spread = Spread()
    ratio: Spread = Spread()


@dataclass(frozen=True)
class Entry:
    """One method with one set of settings, and its cell of each seed."""

    label: str
    method: str
    settings: Mapping[str, Any]
    cells: Mapping[int, Cell]
    missing: tuple[int, ...] = ()

    @property
    def failed(self) -> dict[int, str]:
        return {seed: cell.reason or "no reason given" for seed, cell in self.cells.items()
                if cell.status == "failed"}  # fmt: skip

    @property
    def finished(self) -> list[Cell]:
        return [cell for cell in self.cells.values() if cell.status == "ok"]

    @property
    def wanted(self) -> int:
        return len(self.cells) + len(self.missing)

    @property
    def uncontrolled(self) -> Row:
        cells = [cell for cell in self.finished if cell.uncontrolled]
        row = _scores([cell.uncontrolled for cell in cells])
        cost = [cell.cost for cell in cells]
        return Row(
            "uncontrolled", len(cells), *row, alpha=Spread((1.0,)) if cells else Spread(),
            wall=Spread.plain(c.wall for c in cost), ratio=Spread.plain(c.ratio_to_retraining for c in cost),
        )  # fmt: skip

    def controlled(self, tau: float) -> Row:
        rows = list(self.at(tau).values())
        worst = [row.worst_attack for row in rows if row.worst_attack]
        return Row(
            "controlled", len(rows), *_scores(rows), tau=tau, alpha=Spread.plain(row.alpha for row in rows),
            met=sum(row.met is True for row in rows),
            verdicts=Counter(row.verdict for row in rows if row.verdict),
            attacks=Counter(attack.name for attack in worst),
            recovery=Spread.of(
                Measured(value=a.recovery, low=a.low, high=a.high, reason=a.reason) for a in worst
            ),
            wall=Spread.plain(row.cost.wall for row in rows),
        )  # fmt: skip

    def at(self, tau: float) -> dict[int, Controlled]:
        """The finished rows of this bar by seed."""
        found = {seed: cell.at(tau) for seed, cell in self.cells.items() if cell.status == "ok"}
        return {seed: row for seed, row in found.items() if row is not None}

    def measured(self, tau: float, score: str) -> dict[int, Measured]:
        """One score under this bar by seed, where it has a value."""
        found = {seed: getattr(row, score) for seed, row in self.at(tau).items()}
        return {seed: m for seed, m in found.items() if m.value is not None and not math.isnan(m.value)}

    def survives(self, tau: float) -> bool:
        """Whether control left anything of the method in some seed: α* = 0 everywhere is the original."""
        alphas = self.controlled(tau).alpha.values
        return not alphas or any(alpha > 0 for alpha in alphas)


@dataclass(frozen=True)
class Board:
    """All that may be compared on one part of a benchmark, and what may not, with the reason."""

    benchmark: str
    part: str
    bar_metric: str
    profile: str
    taus: tuple[float, ...]
    seeds: tuple[int, ...]
    entries: tuple[Entry, ...]
    original: Row | None
    oracle: Row | None
    apart: tuple[tuple[Cell, str], ...] = ()
    reference: Cell | None = None

    @property
    def name(self) -> str:
        return f"{self.benchmark}/{self.part}" if self.part else self.benchmark

    @property
    def cells(self) -> list[Cell]:
        return [cell for entry in self.entries for cell in entry.cells.values()]

    @property
    def counts(self) -> dict[str, int]:
        """Cells finished, failed and missing; those listed apart are none of these."""
        return {
            "finished": sum(len(entry.finished) for entry in self.entries),
            "failed": sum(len(entry.failed) for entry in self.entries),
            "missing": sum(len(entry.missing) for entry in self.entries),
            "apart": len(self.apart),
        }


def boards(cells: Sequence[Cell], asked: Sequence[Asked] = ()) -> list[Board]:
    """One board for each part, in the order in which the parts were asked for or first seen."""
    places = [(a.benchmark, part) for a in asked for part in a.parts or [""]]
    places += [(cell.benchmark, cell.part) for cell in cells]
    return [
        _board(
            name, part, [c for c in cells if (c.benchmark, c.part) == (name, part)],
            [a for a in asked if a.benchmark == name and part in (a.parts or [""])],
        )
        for name, part in dict.fromkeys(places)
    ]  # fmt: skip


def _board(name: str, part: str, cells: Sequence[Cell], asked: Sequence[Asked]) -> Board:
    reference = _reference(cells)
    reasons = [incomparable(cell, reference) if reference else "" for cell in cells]
    apart = [(cell, why) for cell, why in zip(cells, reasons, strict=True) if why]
    fit = [cell for cell, why in zip(cells, reasons, strict=True) if not why]
    kept, again = _distinct(_with_settings(fit))
    seeds = {cell.seed for cell in kept}.union(*(a.seeds for a in asked))
    taus = {row.tau for cell in kept for row in cell.controlled}.union(*(a.taus for a in asked))
    taus |= {tau for cell in kept for tau in cell.taus}
    entries = _entries(kept, asked, seeds)
    finished = [cell for cell in kept if cell.status == "ok"]
    order = tuple(sorted(taus, reverse=True))
    return Board(
        name, part, reference.bar_metric if reference else "", reference.profile if reference else "",
        order, tuple(sorted(seeds)), _sorted(entries, order),
        _model("original", [cell.original for cell in finished]),
        _model("oracle", [cell.oracle for cell in finished]), (*apart, *again), reference,
    )  # fmt: skip


YARDSTICKS = {
    "original_fingerprint": "another original model",
    "oracle_fingerprint": "another oracle",
    "calibration_fingerprint": "other calibration records",
    "bar_metric": "another bar metric",
    "profile": "another audit profile",
}


def incomparable(cell: Cell, reference: Cell) -> str:
    """Why a cell may not stand beside the reference, or nothing; a failed one may lack its yardsticks."""
    why = []
    for name, text in YARDSTICKS.items():
        mine, theirs = getattr(cell, name), getattr(reference, name)
        if mine != theirs and (mine or cell.status == "ok"):
            why.append(f"{text} ({mine[:12] or 'none'}, not {theirs[:12] or 'none'})")
    if series(cell.expunge_version) != series(reference.expunge_version):
        why.append(f"expunge {cell.expunge_version}, not {reference.expunge_version}")
    return "; ".join(why)


def series(version: str) -> str:
    """The part of a version within which numbers are comparable.

    >>> series("2.3.1"), series("0.1.0")
    ('2', '0.1')
    """
    major, _, rest = version.partition(".")
    return f"0.{rest.partition('.')[0]}" if major == "0" else major


def _reference(cells: Sequence[Cell]) -> Cell | None:
    """A cell of the largest group that agrees on every yardstick; of equal groups the one first made."""
    finished = [cell for cell in cells if cell.status == "ok"] or list(cells)
    if not finished:
        return None
    sizes = Counter(map(_yardsticks, finished))
    return min(finished, key=lambda cell: (-sizes[_yardsticks(cell)], cell.created))


def _yardsticks(cell: Cell) -> tuple[str, ...]:
    return (*(getattr(cell, name) for name in YARDSTICKS), series(cell.expunge_version))


def _with_settings(cells: Sequence[Cell]) -> list[Cell]:
    """A cell that failed before it knew its settings stands with the first of its method that did."""
    known = {cell.method: cell.settings for cell in reversed(cells) if cell.settings}
    return [
        cell if cell.settings or cell.status == "ok"
        else cell.model_copy(update={"settings": known.get(cell.method, {})})
        for cell in cells
    ]  # fmt: skip


def _distinct(cells: Sequence[Cell]) -> tuple[list[Cell], list[tuple[Cell, str]]]:
    """One cell for each method, settings and seed: a finished one before a failed one, then the newest."""
    groups: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in cells:
        group = groups.setdefault((cell.method, _identity(cell.settings), cell.seed), [])
        if cell not in group:  # the same file in two folders
            group.append(cell)
    kept, again = [], []
    for group in groups.values():
        newest = sorted(group, key=lambda cell: cell.created, reverse=True)
        best, *rest = sorted(newest, key=lambda cell: cell.status != "ok")
        kept.append(best)
        again += [(cell, f"a second result of this cell; that of {best.created or 'no date'} stands")
                  for cell in rest]  # fmt: skip
    return kept, again


def _entries(cells: Sequence[Cell], asked: Sequence[Asked], seeds: set[int]) -> list[Entry]:
    grouped: dict[str, dict[str, dict[int, Cell]]] = {}
    for method in dict.fromkeys([*(m for a in asked for m in a.methods), *(c.method for c in cells)]):
        grouped[method] = {}
    for cell in cells:
        grouped[cell.method].setdefault(_identity(cell.settings), {})[cell.seed] = cell
    entries = []
    for method, variants in grouped.items():
        wanted = seeds
        if asked:
            wanted = set().union(*(a.seeds for a in asked if method in a.methods))
        found = [dict(sorted(v.items())) for v in variants.values()]
        for of_seed in found or [{}]:
            settings = next(iter(of_seed.values())).settings if of_seed else {}
            others = [next(iter(v.values())).settings for v in found]
            missing = tuple(sorted(wanted - set(of_seed)))
            entries.append(Entry(_label(method, settings, others), method, settings, of_seed, missing))
    return entries


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name; the seed is no setting of a method."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif key != "seed":
            flat[f"{prefix}{key}"] = value
    return flat


def _identity(settings: Mapping[str, Any]) -> str:
    return json.dumps(_flat(settings), sort_keys=True, default=str)


def _label(method: str, settings: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """The name, and what sets it apart from the same method with other settings."""
    mine, all_ = _flat(settings), [_flat(other) for other in others]
    differ = {k: v for k, v in mine.items() if any(other.get(k) != v for other in all_)}
    return f"{method} ({setting(differ)})" if differ else method


def _sorted(entries: Sequence[Entry], taus: Sequence[float]) -> tuple[Entry, ...]:
    """By the forget score under the strictest bar; what did not survive it, or has no number, comes last."""

    def key(entry: Entry) -> tuple[bool, bool, float]:
        mean = entry.controlled(taus[0]).scores["forget"].mean if taus else None
        return mean is None, bool(taus) and not entry.survives(taus[0]), mean if mean is not None else 0.0

    return tuple(sorted(entries, key=key))


def _model(kind: str, found: Sequence[Scores | None]) -> Row | None:
    """Original or oracle: the same for every cell, so the first one speaks for all."""
    first = next((scores for scores in found if scores is not None), None)
    return Row(kind, 1, *_scores([first])) if first else None


def _scores(found: Sequence[Scores | None]) -> tuple[dict[str, Spread], dict[str, Spread]]:
    given = [scores for scores in found if scores is not None]
    names = dict.fromkeys(name for scores in given for name in scores.facets)
    return (
        {name: Spread.of(getattr(scores, name) for scores in given) for name in SCORES},
        {name: Spread.of(scores.facets.get(name) for scores in given) for name in names},
    )
