"""What a verdict is judged on, and what can be asked of it. Numbers only: no model, no evidence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from expunge.attacks import ATTACKS
from expunge.audit.scorecard import AttackRow, Flag

__all__ = [
    "TIER_1", "AuditFacts", "Estimate", "certified", "described", "is_timed", "label", "not_certified",
    "plain",
]  # fmt: skip

TIER_1 = (*(card.name for card in ATTACKS.cards() if card.fields["tier"] == 1), "mia")
"""Attacks of a complete audit; the verdict names those that were not run."""

ASIDE = frozenset(card.name for card in ATTACKS.cards() if card.fields.get("aside"))
"""Attacks that find no leak by themselves: nothing is missing where they have no recovery."""

DORMANT = 0.5  # relearned in less than half of the oracle's steps


class Estimate(NamedTuple):
    """A number with its 95 % interval; the ends are None where there is none (one entity only)."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        ends = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{ends}"


@dataclass(frozen=True, kw_only=True)
class AuditFacts:
    """What was measured on the model that ships. `metric` is in [0, 1], higher = knows more, on forget.

    `oracle` or, without one, `placebo` (the same model on facts it never saw) is the baseline of `residual`
    and of every recovery in `attacks`. `spoken` is the residual of what the model says when it is asked and
    left to speak (None: no text was generated). `declared`: the attacks of the profile; `skipped`: those
    that could not run, and why. `calibration_met`, `report_met`: whether the bar holds, on report within its
    interval; None: not measured. `planted_positive`: whether the attacks found knowledge that was hidden on
    purpose; None: not tried. Drops are shares of the original's score.
    """

    metric: str
    original: Estimate
    controlled: Estimate
    oracle: Estimate | None = None
    placebo: Estimate | None = None
    residual: Estimate | None = None
    spoken: Estimate | None = None
    attacks: Sequence[AttackRow] = ()
    declared: Sequence[str] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    flags: Sequence[Flag] = ()
    calibration_met: bool | None = None
    report_met: bool | None = None
    smaller_alpha: float | None = None  # a mixing coefficient at which a collapsed model would pass
    weights_unchanged: bool = False
    certificate: Literal["verified"] | None = None
    planted_positive: bool | None = None
    profile: str = "default"
    oracle_kind: str = "given"  # or retrained
    epsilon: float = 0.10
    tau: float = 0.95
    records: int = 0
    auc: Estimate | None = None
    oracle_auc: Estimate | None = None
    neighbor_drop: Estimate | None = None
    retain_drop: Estimate | None = None
    refusals: float | None = None
    original_refusals: float | None = None

    @property
    def baseline(self) -> Estimate | None:
        return self.oracle or self.placebo

    @property
    def against(self) -> str:
        return "the oracle" if self.oracle else "the placebo" if self.placebo else "nothing"

    def raised(self) -> dict[str, str]:
        """The flags of the controlled model: name → text."""
        return {f.name: f.text or plain(f.name) for f in self.flags if f.model == "controlled"}

    def measured(self) -> list[AttackRow]:
        return in_order(row for row in self.attacks if is_measured(row))

    def leaks(self) -> list[AttackRow]:
        """Configurations that brought knowledge back, their intervals clear of 0; worst first."""
        above = [row for row in self.measured() if is_above(row, self.epsilon)]
        sure = [row for row in above if is_timed(row) or row.low is None or row.low > 0]
        return sorted(sure, key=lambda row: (is_timed(row), -(row.recovery or 0.0)))

    def clean(self) -> bool:
        """Some attack was measured, and no configuration is over the line."""
        rows = self.measured()
        return self.residual is not None and bool(rows) and not any(is_above(r, self.epsilon) for r in rows)

    def silent(self) -> bool:
        """Asked and left to speak, it says no more than the oracle, whatever it would complete once begun."""
        return self.spoken is not None and self.spoken.value <= self.epsilon

    def contradictions(self) -> list[str]:
        """What cannot be true of a model whose certificate holds."""
        if self.certificate is None:
            return []
        unchanged = ["the weights equal the original's"] if self.weights_unchanged else []
        return [described(r).rstrip(".") for r in self.measured() if is_above(r, self.epsilon)] + unchanged

    def obstacles(self) -> list[str]:
        """What stands between these facts and *robust under audit*."""
        found = []
        if self.oracle is None:
            placebo = "graded against the placebo, facts the model never saw"
            found.append(f"No oracle: {placebo if self.placebo else 'nothing to compare with'}.")
        if self.residual is None:
            found.append("The direct residual is not computable.")
        if self.calibration_met is None and self.report_met is None:
            found.append("Utility was not measured against a bar.")
        if self.profile not in ("default", "deep"):
            found.append(f"The profile {self.profile} runs only a part of the attacks.")
        if not self.attacks:
            found.append("No attack was run.")
        found += [f"{plain(name)} gave no result{self._why(name)}." for name in self._silent()]
        if self.planted_positive is None:
            found.append("The attacks were not tried on knowledge hidden on purpose: they may be too weak.")
        elif not self.planted_positive:
            found.append("The attacks did not find knowledge hidden on purpose: they are too weak.")
        wide = [row for row in self.measured() if not _holds(row, self.epsilon)]
        return found + [f"Too uncertain: {described(row)}" for row in wide]

    def _silent(self) -> list[str]:
        wanted = {*self.declared, *self.skipped, *(row.attack for row in self.attacks)}
        return sorted(wanted - ASIDE - {row.attack for row in self.measured()})

    def _why(self, name: str) -> str:
        said = sorted({row.reason for row in self.attacks if row.attack == name and row.reason})
        reasons = [self.skipped[name]] if name in self.skipped else said
        return f": {'; '.join(reasons).rstrip('.')}" if reasons else ""


# A certificate -------------------------------------------------------------------------------------------


def not_certified(known: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why the unlearned model's certificate does not make the model that ships exact; None: it does.

    `known`: model → facts. Control that mixes the original back in makes other weights than the certified.
    """
    found = known.get("unlearned", {}).get("certificate")
    ships = known.get("controlled", {}).get("fingerprint")
    if not found:
        return "there is none"
    if not found.get("exact"):
        return str(found.get("reason") or "it promises less than exactness")
    if not found.get("verified"):
        return "a replay gave other weights" if found.get("differing") else "it was not checked by replay"
    if not ships or found.get("fingerprint") != ships:
        return "the model that ships has other weights than the certified one"
    return None


def certified(known: Mapping[str, Mapping[str, Any]]) -> Literal["verified"] | None:
    """What the verdict asks about the certificate."""
    return "verified" if not_certified(known) is None else None


# One row of an attack ------------------------------------------------------------------------------------


def is_timed(row: AttackRow) -> bool:
    """What injects the answer brings it back in any model: only its speed against the oracle counts."""
    return row.injects == "the answer"


def is_measured(row: AttackRow) -> bool:
    numbers = (row.ain, row.excess_area) if is_timed(row) else (row.recovery,)
    return any(number is not None and math.isfinite(number) for number in numbers)


def is_above(row: AttackRow, epsilon: float) -> bool:
    """Whether the point estimate is over the line, be its interval as wide as it may."""
    if is_timed(row):
        fast = row.ain is not None and row.ain < DORMANT
        return fast or (row.excess_area is not None and row.excess_area > epsilon)
    return row.recovery is not None and row.recovery > line_of(row, epsilon)


def line_of(row: AttackRow, epsilon: float) -> float:
    """The recovery above which this attack's row counts as a leak."""
    return epsilon if row.line is None else row.line


def _holds(row: AttackRow, epsilon: float) -> bool:
    sure = is_timed(row) or (row.high is not None and row.high <= 2 * line_of(row, epsilon))
    return sure and not is_above(row, epsilon)


def in_order(rows: Iterable[AttackRow]) -> list[AttackRow]:
    """The rows in an order of their own, whatever order they came in."""
    return sorted(rows, key=lambda row: (label(row), row.model_dump_json()))


# Words ---------------------------------------------------------------------------------------------------


def plain(name: str) -> str:
    return name.replace("_", " ")


def label(row: AttackRow) -> str:
    """The attack and its configuration in words."""
    config = ", ".join(f"{plain(key)} {value}" for key, value in sorted(row.config.items()))
    return f"{plain(row.attack)} ({config})" if config else plain(row.attack)


def described(row: AttackRow) -> str:
    """One sentence: what this configuration brought back."""
    if not is_timed(row):
        return f"{label(row)}: recovery {Estimate(row.recovery or 0.0, row.low, row.high)}."
    speed = "with no comparable steps" if row.ain is None else f"in {row.ain:.2f} of the oracle's steps"
    area = "" if row.excess_area is None else f", {row.excess_area:+.2f} area beside the oracle's"
    return f"{label(row)}: relearned {speed}{area}."
