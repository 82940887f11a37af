"""The contract of an attack: a way to bring the knowledge back, run alike on original, controlled and oracle.

An attack changes the weights, the prompts or the decoding, then takes the *same evidence*; the audit computes
the *same metrics* on it. It declares its threat model and what it injects, and yields one `Outcome` per
configuration (and per step, where it trains).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from expunge.data.request import SPLITS
from expunge.evidence import is_forget_side
from expunge.registry import Card, Registry

if TYPE_CHECKING:
    from expunge.data.records import Record
    from expunge.data.request import Request
    from expunge.evidence import Evidence
    from expunge.subjects.subject import Subject

__all__ = ["ATTACKS", "Attack", "Field", "Outcome", "Profile"]

ATTACKS: Registry[Attack] = Registry("attack", "expunge.attacks", "ATTACKS")

Profile = Literal["quick", "default", "deep"]


@dataclass(frozen=True)
class Outcome:
    """What the attack found in one configuration: evidence, or scores of its own.

    `evidence`: split → evidence of the scored records ("forget"; "holdout" for the placebo, where asked for).
    `step`: optimizer steps taken, None where nothing is trained; step 0 is the model before the attack.
    `sources`: scored record id → the forget record it stands for, where several rows stand for one record;
    the record's leak is then the maximum over them.
    `values`: split → record id → how much the model knows of it, in [0, 1], where the attack has a score of
    its own called `metric` (a chance to leak, a choice, a depth); no evidence is scored then.
    `covers`: this outcome is the maximum over the attack's others, record by record, so it is the worst.
    `aside`: why this outcome stands beside the others for comparison only and is no leak, whatever it says.
    """

    config: Mapping[str, Any]
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    step: int | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    metric: str = ""
    covers: bool = False
    aside: str = ""


@dataclass(frozen=True)
class Field:
    """What an attack is given: the request, how far to go, and whether a placebo must be scored as well.

    `lrs`: the learning rates weight attacks sweep, from the recipe's own (they depend on the model's size).
    `peers`: "original", "oracle" → loads that model, for attacks that compare or mix with it; the card says
    which (`peers=[…]`).
    """

    request: Request
    profile: Profile = "default"
    seed: int = 0
    placebo: bool = False
    lrs: Sequence[float] = (1e-5, 5e-5, 2e-4)
    batch: int = 8
    variants: Sequence[str] = ("gold",)
    peers: Mapping[str, Callable[[], Subject]] = field(default_factory=dict)

    def scored(self) -> dict[str, Sequence[Record]]:
        """The splits every attack scores: forget, and the holdout where it serves as placebo."""
        splits: dict[str, Sequence[Record]] = {"forget": self.request.forget}
        if self.placebo and "holdout" in self.request:
            splits["holdout"] = self.request["holdout"]
        return splits

    def stays(self, order: Sequence[str] = ("retain", "neighbors", "report", "utility")) -> list[str]:
        """The splits of what stays that are asked, in this order, then a benchmark's own."""
        own = [s for s in self.request if s not in (*SPLITS, *order) and not is_forget_side(s)]
        return [s for s in (*order, *own) if any(not (r.is_document or r.context) for r in self.request[s])]


class Attack(ABC):
    """One attack, one file; its card says what it is, its fields are hyper-parameters.

    threat: query | logprob | fine-tune | white-box. kind: weights | prompts | decoding | read-out.
    injects: nothing | format | related facts | the answer. tier: 1 belongs to every complete audit, 2 to a
    deep one, 3 is optional. profiles: those it runs in. peers: models beside the attacked one that it needs.
    line: the recovery above which it counts as a leak (ε where the card does not say). aside: why nothing it
    finds is a leak (what it counts against, if anything). budget: in plain words, what it spends.
    """

    name: ClassVar[str]
    card: ClassVar[Card]

    def missing(self, field: Field) -> str | None:
        """Why this attack cannot run on this request (no forget_hard rows, say); None when it can."""
        return None

    @abstractmethod
    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        """Attack a copy of `subject`; the one given is not changed. Deterministic in `field.seed`."""
