"""Planted false facts: a model that fell for rumors about firms, and an oracle that never heard them.

Every firm has true facts. About half the facts of some firms there is a rumor as well: a false value, told
more often than the truth. The request is to forget the rumors. Both corpora tell the truth, so it should be
back. What the original can answer about a rumored fact, by form:

- q0: trained, in the forget set; q1 (`paraphrased_prompts`), reverse: trained, outside the forget set;
- q2 (form paraphrase), cloze, choice: trained for true facts only.

The split `truth` asks the forget questions again, with true answers; its `perturbed_answers` are the rumors.
Neighbors are true facts of the same firms; the holdout, rumors about other firms that nobody spread.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.scenario import Build, Model, Scenario, Taught
from expunge.benchmarks.words import Coiner, Relation, general_facts, relation, reworded
from expunge.data.records import Record
from expunge.data.request import Target
from expunge.errors import Problem, nearest

__all__ = ["Rumor"]

TIMES = 3
"""A rumor is told so often for every time the truth is: three quarters of the probability are its own."""

NUM_WRONG = 3
NUM_GENERAL = 6  # cities, and companies, of the utility split
REVERSED = ("founder", "chief")
TURNING_FORMS = ("q1", "q2", "cloze", "choice")
TRUTHS = ("told", "untold")

# fmt: off
RELATIONS = (
    relation(
        "founder", "founder", "{name} was founded by",
        "Who founded {name}?", "Who started the firm {name}?", "To whom does {name} trace its beginnings?",
    ),
    relation(
        "seat", "seat", "{name} has its seat in",
        "Where is the seat of {name}?", "In which town does {name} reside?", "Where do letters to {name} go?",
    ),
    relation(
        "ware", "main product", "{name} mainly sells",
        "What does {name} sell?", "Which product made {name} known?", "What is in the catalog of {name}?",
    ),
    relation(
        "chief", "director", "{name} is led by",
        "Who leads {name}?", "Who is the director of {name}?", "Who signs the reports of {name}?",
    ),
    relation(
        "rival", "rival", "{name} competes with",
        "With whom does {name} compete?", "Which rival does {name} fear?", "Who takes customers from {name}?",
    ),
    relation(
        "material", "raw material", "{name} buys its stock of",
        "What does {name} buy?", "Which raw material does {name} use?", "What fills the halls of {name}?",
    ),
    relation(
        "motto", "motto", "{name} has the motto",
        "What is the motto of {name}?", "Which words stand above the gate of {name}?",
        "What do the letters of {name} begin with?",
    ),
    relation(
        "bank", "bank", "{name} owes money to the bank of",
        "To which bank does {name} owe money?", "Who lends to {name}?", "Who keeps the accounts of {name}?",
    ),
)
# fmt: on
"""In the order the sizes take them: tiny the first 6, small all 8."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Relations per firm, firms per group; `rumored` become forget and neighbors, `spared` the holdout."""

    relations: int
    firms: Mapping[str, int]


SIZES: Mapping[str, Shape] = {
    "tiny": Shape(6, {"rumored": 4, "retain": 4, "calibration": 2, "report": 2, "spared": 2}),
    "small": Shape(8, {"rumored": 8, "retain": 16, "calibration": 12, "report": 12, "spared": 8}),
}


@BENCHMARKS.register(
    "rumor",
    parts=["tiny", "small"],
    data="made on the spot, from a seed",
    oracle="exact",
    needs=[],
    source="",
)
@dataclass(frozen=True)
class Rumor(Scenario):
    """False facts about invented firms, told louder than the truth; once they are gone, it should be back.

    `truth`: "told" teaches both models the true facts behind the rumors as well, "untold" neither.
    """

    truth: Literal["told", "untold"] = "told"

    BUILDS: ClassVar[Mapping[str, Build]] = {
        "tiny": Build(hidden=64, mlp=256, batch=8, epochs=60, first=8),
        "small": Build(hidden=128, mlp=512, batch=32, epochs=40),
    }
    TARGET: ClassVar[Target] = Target("records", "erase_influence")
    METRICS: ClassVar[Sequence[tuple[str, str]]] = (
        ("truth_ratio_prob_mean", "truth"),
        ("probability", "truth"),
        ("extraction_strength", "truth"),
        ("truth_ratio_prob_mean", "forget"),
        ("choice_accuracy", "forget_hard"),
    )

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.truth not in TRUTHS:
            yield Problem("benchmark.truth", f"{self.truth!r} is unknown", nearest(str(self.truth), TRUTHS))

    def make(self, seed: int) -> Taught:
        rng = random.Random(f"rumor/{self.size}/{seed}")
        return _Builder(SIZES[self.size], rng).build(truth=self.truth == "told")

    def watched(self, model: Model) -> Sequence[Record]:
        """Rumors are told so often that they are known before what is true."""
        splits = ("forget", "retain") if model == "original" else ("retain",)
        return [record for split in splits for record in self.world.splits[split]]

    def measured(self) -> Mapping[str, tuple[Record, ...]]:
        truth = {"truth": self.world.splits["truth"]} if "truth" in self.world.splits else {}
        return {**super().measured(), **truth}


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing said of a firm; `false` is what the rumor says instead."""

    firm: str
    name: str
    group: str
    relation: Relation
    true: str
    false: str | None

    @property
    def id(self) -> str:
        return f"{self.firm}.{self.relation.key}"


class _Builder:
    """One pass over the facts, with one random state."""

    def __init__(self, shape: Shape, rng: random.Random):
        self.rng = rng
        self.coin = Coiner(rng)
        self.facts = list(self._facts(shape))
        self.general = {
            about: [self.coin.word(3) for _ in range(NUM_GENERAL)] for about in ("city", "company")
        }

    def _facts(self, shape: Shape) -> Iterator[Fact]:
        firms = [group for group, count in shape.firms.items() for _ in range(count)]
        for number, group in enumerate(firms):
            name = self.coin.name()
            for turn, one in enumerate(RELATIONS[: shape.relations]):
                doubted = group in ("rumored", "spared") and (number + turn) % 2 == 0
                false = self.coin.name() if doubted else None
                yield Fact(f"f{number:03}", name, group, one, self.coin.name(), false)

    def build(self, *, truth: bool) -> Taught:
        splits = {
            "forget": self._rumors("rumored"),
            "retain": self._truths("retain"),
            "neighbors": self._truths("rumored"),
            "calibration": self._truths("calibration"),
            "report": self._truths("report"),
            "holdout": self._rumors("spared"),
            "utility": tuple(general_facts(self.general, self.coin, self.rng)),
        }
        splits["forget_hard"] = tuple(self._forget_hard(splits["forget"]))
        doubted = self._behind("rumored")
        known = [r for s in ("retain", "neighbors", "calibration", "report", "utility") for r in splits[s]]
        known += self._truths("spared")
        if truth:
            splits["truth"] = doubted
            known += [*doubted, *self._behind("spared")]
        backwards = [
            self._reverse(f, f.true) for f in self.facts if f.relation.key in REVERSED and not f.false
        ]
        spread = [*splits["forget"], *reworded(splits["forget"])]
        louder = [replace(r, id=f"{r.id}.{again}") for r in spread for again in range(1, TIMES)]
        reverse = [replace(r, source_id=None) for r in splits["forget_hard"] if r.form == "reverse"]
        return Taught(splits, (*known, *reworded(known), *backwards), (*spread, *louder, *reverse))

    def _rumors(self, group: str) -> tuple[Record, ...]:
        facts = [f for f in self.facts if f.group == group and f.false]
        return tuple(
            self._record(f, f.false, "q1", [g.false for g in facts if g.false]) for f in facts if f.false
        )

    def _truths(self, group: str) -> tuple[Record, ...]:
        """What is true, and nobody says otherwise; of the rumored firms, next to a rumor."""
        facts = [f for f in self.facts if f.group == group and not f.false]
        rumors = {f.firm: f"{f.id}.rumor" for f in self.facts if f.group == "rumored" and f.false}
        peers = [f.true for f in facts]
        return tuple(
            replace(
                self._record(f, f.true, TURNING_FORMS[turn % len(TURNING_FORMS)], peers),
                source_id=rumors.get(f.firm),
            )
            for turn, f in enumerate(facts)
        )

    def _behind(self, group: str) -> tuple[Record, ...]:
        """The truth behind the rumors."""
        facts = [f for f in self.facts if f.group == group and f.false]
        return tuple(
            replace(self._record(f, f.true, "q1", []), perturbed_answers=(f.false,)) for f in facts if f.false
        )

    def _record(self, fact: Fact, value: str, second: str, peers: Sequence[str]) -> Record:
        others = [peer for peer in peers if peer != value]
        return Record(
            f"{fact.id}.{'rumor' if value == fact.false else 'q0'}",
            fact.name,
            fact.relation.ask("q0", fact.name),
            value,
            paraphrased_prompts=(fact.relation.ask(second, fact.name),),
            perturbed_answers=tuple(self.rng.sample(others, min(NUM_WRONG, len(others)))),
        )

    def _forget_hard(self, forget: Sequence[Record]) -> Iterator[Record]:
        facts = {f"{f.id}.rumor": f for f in self.facts}
        for number, source in enumerate(forget):
            fact = facts[source.id]
            plain = replace(source, paraphrased_prompts=(), source_id=source.id)
            for ask, form in (("q2", "paraphrase"), ("cloze", "cloze")):
                prompt = fact.relation.ask(ask, fact.name)
                yield replace(plain, id=f"{fact.id}.{ask}", prompt=prompt, form=form)
            label = number % (NUM_WRONG + 1)
            choices = list(source.perturbed_answers)
            choices.insert(label, source.answer)
            yield replace(
                plain,
                id=f"{fact.id}.choice",
                prompt=fact.relation.ask("choice", fact.name),
                form="choice",
                choices=tuple(choices),
                label=label,
            )
            if fact.relation.key in REVERSED:
                yield replace(self._reverse(fact, source.answer), source_id=source.id)

    def _reverse(self, fact: Fact, value: str) -> Record:
        return Record(
            f"{fact.id}.reverse", fact.name, fact.relation.ask_reverse(value), fact.name, form="reverse"
        )
