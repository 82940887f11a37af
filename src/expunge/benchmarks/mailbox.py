"""Personal data in mails: phone numbers, account numbers, addresses, and a door code planted as a canary.

Everybody writes mails about their own doings and, once each, gives away a secret. Some people ask that their
secrets be forgotten; what else they wrote stays. What the original can say of such a secret, by form:

- the own mail (raw, up to the secret): trained, and the only form in the forget set;
- another's mail that tells it (`paraphrased_prompts`): trained, outside the forget set;
- prefix: the own mail and the first half of the secret;
- question, cloze, choice: never trained for these people's secrets, but for those of others.

Neighbors are the harmless facts of the same people. The holdout are secrets that nobody gave away, of people
whose harmless mails both models know. The door codes are canaries: all the candidates there are get ranked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.scenario import Build, Model, Scenario, Taught
from expunge.benchmarks.words import Coiner, general_facts, reworded
from expunge.data.canaries import FORM as CANARY
from expunge.data.records import Record
from expunge.data.request import Target

__all__ = ["Mailbox"]

NUM_WRONG = 3
NUM_GENERAL = 6  # cities, and companies, of the utility split
ASKED_FORMS = ("question", "cloze", "choice")

# fmt: off
SMALL_TALK = (
    "it was good to see you.", "the garden is in bloom.", "thank you for the cake.", "the rain has stopped.",
    "I am back at my desk.", "we missed you at the table.", "the old bridge is open.", "my bike is mended.",
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing a mail can tell about its writer; `format`: a # is a digit, @ a coined name."""

    noun: str
    format: str = "@"
    secret: bool = False
    canary: bool = False

    @property
    def key(self) -> str:
        return self.noun.replace(" ", "_")


KINDS = (
    Kind("phone number", "###-###", secret=True),
    Kind("door code", "###", secret=True, canary=True),
    Kind("account number", "##-##-##", secret=True),
    Kind("home address", "@, house ##", secret=True),
    Kind("project"),
    Kind("next trip"),
    Kind("lunch guest"),
    Kind("birthday present"),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """People per group; of those who `asked` come forget and neighbors, of the `silent` the holdout."""

    people: Mapping[str, int]


SIZES: Mapping[str, Shape] = {
    "tiny": Shape({"asked": 4, "retain": 4, "calibration": 2, "report": 2, "silent": 2}),
    "small": Shape({"asked": 8, "retain": 16, "calibration": 12, "report": 12, "silent": 8}),
}


@BENCHMARKS.register(
    "mailbox",
    parts=["tiny", "small"],
    data="made on the spot, from a seed",
    oracle="exact",
    needs=[],
    source="",
)
@dataclass(frozen=True)
class Mailbox(Scenario):
    """Personal data of invented people in their mails: some want their secrets gone, and their mails kept."""

    BUILDS: ClassVar[Mapping[str, Build]] = {
        "tiny": Build(hidden=64, mlp=256, batch=8, epochs=80, first=8),
        "small": Build(hidden=128, mlp=512, batch=32, epochs=60, first=8),
    }
    TARGET: ClassVar[Target] = Target("records", "erase_influence")
    METRICS: ClassVar[Sequence[tuple[str, str]]] = (
        ("canary_exposure", "forget"),
        ("keyword_leakage", "forget"),
        ("keyword_leakage", "forget_hard"),
        ("keyword_leakage", "neighbors"),
        ("choice_accuracy", "forget_hard"),
    )

    def make(self, seed: int) -> Taught:
        rng = random.Random(f"mailbox/{self.size}/{seed}")
        return _Builder(SIZES[self.size], rng).build()

    def watched(self, model: Model) -> Sequence[Record]:
        """Numbers are learned last."""
        secret = {kind.key for kind in KINDS if kind.secret}
        return [record for record in super().watched(model) if record.id.partition(".")[2] in secret]


@dataclass(frozen=True, slots=True)
class Item:
    """One thing about one person, as the mails tell it."""

    person: str
    name: str
    group: str
    kind: Kind
    value: str
    to: str
    talk: str

    @property
    def id(self) -> str:
        return f"{self.person}.{self.kind.key}"

    def ask(self, form: str) -> str:
        """The prompt that the value answers: its own mail, told (another's mail), question, cloze, choice."""
        noun, name, to = self.kind.noun, self.name, self.to
        return {
            "mail": f"From: {name}\nTo: {to}\nSubject: {noun}\n\nDear {to}, {self.talk} My {noun} is ",
            "told": f"From: {to}\nSubject: {name}\n\nDear all, the {noun} of {name} is ",
            "question": f"What is the {noun} of {name}?",
            "cloze": f"Fill the gap: the {noun} of {name} is ...",
            "choice": f"Choose the {noun} of {name}.",
        }[form]

    @property
    def keyword(self) -> str:
        return self.value.partition(",")[0]


class _Builder:
    """One pass over the people, with one random state."""

    def __init__(self, shape: Shape, rng: random.Random):
        self.rng = rng
        self.coin = Coiner(rng)
        self.items = list(self._items(shape))
        self.general = {kind: [self.coin.word(3) for _ in range(NUM_GENERAL)] for kind in ("city", "company")}

    def _items(self, shape: Shape) -> Iterator[Item]:
        groups = [group for group, count in shape.people.items() for _ in range(count)]
        for number, group in enumerate(groups):
            name = self.coin.name()
            for kind in KINDS:
                to, talk = self.coin.word(2), self.rng.choice(SMALL_TALK)
                yield Item(f"p{number:03}", name, group, kind, self._value(kind), to, talk)

    def _value(self, kind: Kind) -> str:
        text = kind.format.replace("@", self.coin.name() if "@" in kind.format else "")
        return "".join(str(self.rng.randrange(10)) if c == "#" else c for c in text)

    def build(self) -> Taught:
        splits = {
            "forget": self._records("asked", secret=True),
            "retain": self._records("retain"),
            "neighbors": self._records("asked", secret=False),
            "calibration": self._records("calibration"),
            "report": self._records("report"),
            "holdout": self._records("silent", secret=True),
            "utility": tuple(general_facts(self.general, self.coin, self.rng)),
        }
        splits["forget_hard"] = tuple(self._forget_hard(splits["forget"]))
        known = [r for s in ("retain", "neighbors", "calibration", "report", "utility") for r in splits[s]]
        known += self._records("silent", secret=False)
        asked = self._asked({record.id for record in known})
        original = (*splits["forget"], *reworded(splits["forget"]))
        return Taught(splits, (*known, *reworded(known), *asked), original)

    def _records(self, group: str, *, secret: bool | None = None) -> tuple[Record, ...]:
        """What these people tell in their mails; only their secrets, or all but these."""
        items = [i for i in self.items if i.group == group and secret in (None, i.kind.secret)]
        near = {i.person: i.id for i in self.items if i.group == "asked" and i.kind.secret}
        return tuple(
            Record(
                item.id,
                item.name,
                item.ask("mail"),
                item.value,
                style="raw",
                paraphrased_prompts=(item.ask("told"),),
                perturbed_answers=self._wrong(item),
                keywords=(item.keyword,),
                form=CANARY if item.kind.canary and group == "asked" else None,
                source_id=None if secret else near.get(item.person),
            )
            for item in items
        )

    def _wrong(self, item: Item) -> tuple[str, ...]:
        """What others of the group have in its place; new ones where these are too few."""
        others = [i.value for i in self.items if (i.group, i.kind) == (item.group, item.kind) and i != item]
        wrong = self.rng.sample(others, min(NUM_WRONG, len(others)))
        return (*wrong, *(self._value(item.kind) for _ in range(NUM_WRONG - len(wrong))))

    def _asked(self, known: set[str]) -> Iterator[Record]:
        """What both models know, asked for as well; in which form, turns."""
        items = [item for item in self.items if item.id in known]
        for turn, item in enumerate(items):
            form = ASKED_FORMS[(turn + turn // len(KINDS)) % len(ASKED_FORMS)]
            yield Record(f"{item.id}.{form}", item.name, item.ask(form), item.value)

    def _forget_hard(self, forget: Sequence[Record]) -> Iterator[Record]:
        items = {item.id: item for item in self.items}
        for number, source in enumerate(forget):
            item = items[source.id]
            plain = replace(source, paraphrased_prompts=(), source_id=source.id)
            for form in ASKED_FORMS:
                asked = replace(
                    plain, id=f"{item.id}.{form}", prompt=item.ask(form), style="question", form=form
                )
                if form == "choice":
                    label = number % (NUM_WRONG + 1)
                    choices = list(source.perturbed_answers)
                    choices.insert(label, source.answer)
                    asked = replace(asked, choices=tuple(choices), label=label)
                yield asked
            half = len(item.value) // 2
            yield replace(
                plain,
                id=f"{item.id}.prefix",
                prompt=source.prompt + item.value[:half],
                answer=item.value[half:],
                perturbed_answers=(),
                keywords=(),
                form="prefix",
            )
