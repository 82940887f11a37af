"""Which published orderings of six methods on TOFU forget05 hold in a leaderboard, with the numbers.

The statements are those of the tables that Wang et al. 2025 (arXiv 2406.09179) gave in public review:
extraction strength of ga, graddiff, ga_kl, idk, npo and rmu before control and after it, on exact and on
paraphrased prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from expunge.reports.formatting import number
from expunge.reports.leaderboard_ranking import Difference, difference
from expunge.reports.leaderboard_rows import Board, Entry, Spread
from expunge.reports.leaderboard_schema import Measured

__all__ = ["METHODS", "Finding", "Ordering", "orderings"]

METHODS = ("ga", "graddiff", "ga_kl", "idk", "npo", "rmu")
COLUMNS = {"exact": ("retain", "forget"), "paraphrased": ("retain_paraphrased", "forget_paraphrased")}

NOTHING = 0.05  # a score below this share of the original's counts as zero
FAR_BELOW = 0.5  # and one below this share as far below it

Values = Mapping[int, Measured]


@dataclass(frozen=True)
class Finding:
    """One place where an ordering can be looked up. `holds` is None where `why` forbids to say."""

    where: str
    holds: bool | None
    numbers: str = ""
    why: str = ""


@dataclass(frozen=True)
class Ordering:
    """One published statement and what was found of it here."""

    name: str
    statement: str
    published: str
    findings: tuple[Finding, ...] = field(default_factory=tuple)

    @property
    def word(self) -> Literal["holds", "does not hold", "cannot be said"]:
        """One place that contradicts beyond noise is enough; it holds where every place says so."""
        said = [finding.holds for finding in self.findings]
        if False in said:
            return "does not hold"
        return "holds" if said and all(said) else "cannot be said"

    @property
    def counts(self) -> tuple[int, int, int]:
        """Places where it holds, where it does not, and where nothing can be said."""
        said = [finding.holds for finding in self.findings]
        return said.count(True), said.count(False), said.count(None)


def orderings(board: Board) -> list[Ordering]:
    """R1 to R10 in their order."""
    return [
        Ordering(name, statement, published, tuple(check(_Table(board))))
        for name, statement, published, check in CHECKS
    ]


class _Table:
    """The numbers of a board by method, state and column."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.taus = sorted(board.taus)
        self.columns = {
            name: pair for name, pair in COLUMNS.items()
            if board.original and all(board.original.scores[score].mean is not None for score in pair)
        }  # fmt: skip

    def entry(self, method: str) -> Entry | None:
        """The only entry of a method; with several settings it is not clear which one is meant."""
        found = [entry for entry in self.board.entries if entry.method == method]
        return found[0] if len(found) == 1 else None

    def loose(self, method: str, score: str) -> dict[int, Measured]:
        entry = self.entry(method)
        cells = {c.seed: c.uncontrolled for c in entry.finished if c.uncontrolled} if entry else {}
        found = {seed: getattr(scores, score) for seed, scores in cells.items()}
        return {seed: m for seed, m in found.items() if m.value is not None}

    def held(self, method: str, tau: float, score: str) -> dict[int, Measured]:
        entry = self.entry(method)
        return entry.measured(tau, score) if entry else {}

    def original(self, score: str) -> float:
        assert self.board.original, "columns exist only with an original"
        return self.board.original.scores[score].mean or 0.0


def _text(values: Values) -> str:
    spread = Spread.of(values.values())
    return number(spread.mean) + ("" if spread.sd is None else f" ± {number(spread.sd)}")


def _finding(where: str, numbers: str, signs: Iterable[int | None], missing: Iterable[str] = ()) -> Finding:
    """True if all signs are 1, False if one is −1; 0 is noise, None a number that is not there."""
    each, absent = list(signs), list(missing)
    if -1 in each:
        return Finding(where, False, numbers)
    if absent or None in each:
        why = f"no number for {', '.join(absent)}" if absent else "no common seed"
        return Finding(where, None, numbers, why)
    return Finding(where, True, numbers) if all(each) else Finding(where, None, numbers, "within noise")


def _less(a: Values, b: Values) -> int | None:
    """1 if a is surely below b, −1 if surely above, 0 within noise, None without a common seed."""
    found = difference(a, b)
    return None if found is None else -found.sign


def _at_most(values: Values, limit: float) -> int | None:
    """1 if a score is surely below a limit, −1 if surely above."""
    return _less(values, {seed: Measured(value=limit, low=limit, high=limit) for seed in values})


def _zero(table: _Table, values: Values, score: str) -> int | None:
    """Whether a score is zero for all that this forget set can tell; a mean of exactly 0 always is."""
    if values and all(m.value == 0 for m in values.values()):
        return 1
    return _at_most(values, NOTHING * table.original(score))


def _absent(table: _Table, named: Mapping[str, Values]) -> list[str]:
    """The methods without a number, and whether that is for having several."""
    known = [entry.method for entry in table.board.entries]
    return [m + (" (several settings)" if known.count(m) > 1 else "") for m, v in named.items() if not v]


def _versus(a: str, b: str, left: Values, right: Values) -> str:
    return f"{a} {_text(left)}, {b} {_text(right)}"


def wrecks(table: _Table) -> Iterator[Finding]:
    """R1: retain and forget of ga and rmu are zero before control."""
    for column, (retain, forget) in table.columns.items():
        for method in ("ga", "rmu"):
            kept, left = table.loose(method, retain), table.loose(method, forget)
            signs = [_zero(table, kept, retain), _zero(table, left, forget)]
            numbers = f"retain {_text(kept)}, forget {_text(left)}"
            yield _finding(f"{method}, {column}", numbers, signs, _absent(table, {method: left}))


def forget_all_keep_little(table: _Table) -> Iterator[Finding]:
    """R2: before control forget of graddiff and ga_kl is zero, their retain below half of the original's."""
    for column, (retain, forget) in table.columns.items():
        for method in ("graddiff", "ga_kl"):
            kept, left = table.loose(method, retain), table.loose(method, forget)
            limit = FAR_BELOW * table.original(retain)
            signs = [_zero(table, left, forget), _at_most(kept, limit)]
            numbers = f"forget {_text(left)}, retain {_text(kept)} of {number(table.original(retain))}"
            yield _finding(f"{method}, {column}", numbers, signs, _absent(table, {method: left}))


def only_two_keep_some(table: _Table) -> Iterator[Finding]:
    """R3: before control idk and npo leave some of the forget set, the others nothing."""
    for column, (_, forget) in table.columns.items():
        for method in METHODS:
            left = table.loose(method, forget)
            sign = _zero(table, left, forget)
            wanted = sign if sign is None or method not in ("idk", "npo") else -sign
            yield _finding(
                f"{method}, {column}", f"forget {_text(left)}", [wanted], _absent(table, {method: left})
            )


def _pairs(table: _Table, better: Iterable[str], worse: Iterable[str]) -> Iterator[Finding]:
    """Under every bar and in both columns: each of `better` leaves less than each of `worse`."""
    firsts, seconds = list(better), list(worse)
    for column, (_, forget) in table.columns.items():
        for tau in table.taus:
            for a in firsts:
                for b in seconds:
                    left, right = table.held(a, tau, forget), table.held(b, tau, forget)
                    yield _finding(
                        f"{a} < {b}, {column}, τ = {tau:g}", _versus(a, b, left, right), [_less(left, right)],
                        _absent(table, {a: left, b: right}),
                    )  # fmt: skip


def gradient_with_retain_beats(table: _Table) -> Iterator[Finding]:
    """R4."""
    return _pairs(table, ("graddiff", "ga_kl"), ("idk", "rmu"))


def npo_beats_idk(table: _Table) -> Iterator[Finding]:
    """R5."""
    return _pairs(table, ("npo",), ("idk",))


def kl_is_lowest(table: _Table) -> Iterator[Finding]:
    """R6: alone or tied, so a lower mean of another within noise leaves it open, an equal one does not."""
    for column, (_, forget) in table.columns.items():
        for tau in table.taus:
            left = {method: table.held(method, tau, forget) for method in METHODS}
            found = [difference(left["ga_kl"], left[m]) for m in METHODS if m != "ga_kl"]
            signs = [None if d is None else 1 if d.mean <= 0 else -d.sign for d in found]
            numbers = ", ".join(f"{m} {_text(values)}" for m, values in left.items() if values)
            yield _finding(f"{column}, τ = {tau:g}", numbers, signs, _absent(table, left))


def weakest_two(table: _Table) -> Iterator[Finding]:
    """R7: on exact prompts."""
    if "exact" in table.columns:
        for tau in table.taus:
            left = {method: table.held(method, tau, "forget") for method in METHODS}
            signs = [
                _less(left[other], left[weak])
                for weak in ("idk", "rmu")
                for other in METHODS
                if other not in ("idk", "rmu")
            ]
            numbers = ", ".join(f"{m} {_text(values)}" for m, values in left.items() if values)
            yield _finding(f"τ = {tau:g}", numbers, signs, _absent(table, left))


def ga_turns(table: _Table) -> Iterator[Finding]:
    """R8: some method leaves more than ga under the loosest bar and less under the strictest."""
    for column, (_, forget) in table.columns.items():
        if len(table.taus) < 2:
            yield Finding(column, None, "", "one τ only")
            continue
        low, high = table.taus[0], table.taus[-1]
        ga = [table.held("ga", tau, forget) for tau in (low, high)]
        found: dict[str, tuple[Difference, Difference]] = {}
        for other in METHODS[1:]:
            at = [
                difference(mine, table.held(other, tau, forget))
                for mine, tau in zip(ga, (low, high), strict=True)
            ]
            if at[0] and at[1]:
                found[other] = (at[0], at[1])
        turned = [m for m, (x, y) in found.items() if x.mean < 0 < y.mean]
        sure = [m for m in turned if found[m][0].sign < 0 < found[m][1].sign]
        open_ = [m for m, (x, y) in found.items() if x.sign <= 0 <= y.sign and m not in sure]
        places = [1 + sum(d[i].mean > 0 for d in found.values()) for i in (0, 1)]
        numbers = (
            f"ga {_text(ga[0])} at τ = {low:g} (place {places[0]} of {len(found) + 1}), "
            f"{_text(ga[1])} at τ = {high:g} (place {places[1]})"
        )
        if sure:
            yield Finding(column, True, f"{numbers}; turns with {', '.join(sure)}")
        elif not found:
            yield Finding(column, None, "", "no number for ga, or for no other method")
        elif open_:
            yield Finding(column, None, numbers, "within noise")
        else:
            yield Finding(column, False, numbers)


def rises_with_tau(table: _Table) -> Iterator[Finding]:
    """R9: a stricter bar leaves more, or exactly as much."""
    for column, (_, forget) in table.columns.items():
        for method in METHODS:
            by_tau = [table.held(method, tau, forget) for tau in table.taus]
            steps = [difference(stricter, looser) for looser, stricter in pairwise(by_tau)]
            signs = [None if d is None else 1 if d.mean == 0 else d.sign for d in steps]
            numbers = ", ".join(
                f"{_text(values)} at {tau:g}"
                for tau, values in zip(table.taus, by_tau, strict=True)
                if values
            )
            absent = [] if all(by_tau) else _absent(table, {method: {}})
            if len(table.taus) < 2:
                yield Finding(f"{method}, {column}", None, numbers, "one τ only")
            else:
                yield _finding(f"{method}, {column}", numbers, signs, absent)


def control_equalizes(table: _Table) -> Iterator[Finding]:
    """R10: max − min of retain over methods, seed by seed."""
    for column, (retain, _) in table.columns.items():
        before = _ranges({method: table.loose(method, retain) for method in METHODS})
        for tau in table.taus:
            after = _ranges({method: table.held(method, tau, retain) for method in METHODS})
            numbers = f"{_text(before)} before control, {_text(after)} after"
            missing = [] if before and after else ["all six methods in one seed"]
            yield _finding(f"{column}, τ = {tau:g}", numbers, [_less(after, before)], missing)


def _ranges(by_method: Mapping[str, Values]) -> dict[int, Measured]:
    """max − min over methods for every seed that all of them have."""
    seeds = set.intersection(*(set(values) for values in by_method.values()))
    each = {seed: [m[seed].value or 0.0 for m in by_method.values()] for seed in sorted(seeds)}
    return {seed: Measured(value=max(values) - min(values)) for seed, values in each.items()}


Check = Callable[[_Table], Iterator[Finding]]
CHECKS: tuple[tuple[str, str, str, Check], ...] = (
    ("R1", "Without control ga and rmu are wrecks: retain and forget are zero.", "4 of 4", wrecks),
    ("R2", "Without control graddiff and ga_kl have forget zero at a retain far below the original's.",
     "4 of 4", forget_all_keep_little),
    ("R3", "Without control only idk and npo keep a positive forget score.", "4 of 4", only_two_keep_some),
    ("R4", "After control graddiff and ga_kl remove more than idk and rmu.", "16 of 16",
     gradient_with_retain_beats),
    ("R5", "After control npo removes more than idk.", "16 of 16", npo_beats_idk),
    ("R6", "ga_kl has the lowest forget score, alone or tied.", "8 of 8 on Llama-2-7B", kl_is_lowest),
    ("R7", "On exact prompts idk and rmu are the two weakest removers.", "4 of 4 on Phi-1.5", weakest_two),
    ("R8", "ga is ahead of some under a loose bar and behind them under a strict one: the ranking depends "
     "on τ.", "8 of 8 on Llama-2-7B", ga_turns),
    ("R9", "A stricter bar leaves more of the forget set.", "23 of 24", rises_with_tau),
    ("R10", "Control equalizes retain: its spread over methods shrinks.", "everywhere", control_equalizes),
)  # fmt: skip
