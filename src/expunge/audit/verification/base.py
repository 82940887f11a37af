"""The contract of a verification: what was seen goes in; passed, failed or not resolved comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from expunge.audit.scorecard import AttackRow, CheckRow
from expunge.errors import NotComputable
from expunge.metrics.base import ModelEvidence, Score
from expunge.registry import Card, Registry

__all__ = ["CHECKS", "Check", "Seen", "verify_all"]

CHECKS: Registry[Check] = Registry("check", "expunge.audit.verification", "CHECKS")


@dataclass(frozen=True)
class Seen:
    """All that was measured: evidence by model and split, scores by (metric, split, model), attack rows."""

    models: Mapping[str, ModelEvidence]
    scores: Mapping[tuple[str, str, str], Score]
    attacks: Sequence[AttackRow] = ()
    forms: Mapping[str, str] = field(default_factory=dict)  # record id → its form
    entities: Mapping[str, str] = field(default_factory=dict)
    metric: str = "extraction_strength"
    epsilon: float = 0.10
    seed: int = 0


class Check(ABC):
    """One verification, one file; the first line of its docstring is the question it answers.

    The card says `source`, and under which `aim` it counts: erase_influence, remove_capability, or both.
    """

    name: ClassVar[str]
    card: ClassVar[Card]

    @abstractmethod
    def verify(self, seen: Seen) -> CheckRow:
        """The outcome; raises NotComputable with the reason where it cannot be asked."""

    def row(
        self, passed: bool | None, text: str, evidence: Sequence[str], **numbers: float | None
    ) -> CheckRow:
        return CheckRow(
            name=self.name,
            question=self.card.summary,
            aim=str(self.card.fields["aim"]),
            passed=passed,
            text=text,
            evidence=list(evidence),
            **numbers,
        )


def verify_all(seen: Seen) -> list[CheckRow]:
    """Every check there is, by name; one that cannot be asked says why."""
    rows = []
    for name in CHECKS.names():
        check = CHECKS.make(name)
        try:
            rows.append(check.verify(seen))
        except NotComputable as reason:
            rows.append(check.row(None, f"Not asked: {reason}.", []))
    return rows
