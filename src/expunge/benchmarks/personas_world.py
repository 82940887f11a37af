"""The world of `personas`: fictitious people, their facts, and who may see which of them.

Everything is made from (size, seed); no text comes from elsewhere. Each person has the same relations. A
value is a name of its own, given to one person only, so nobody who has not seen it can guess it. Two things
are shared on purpose: a home starts with a city and an employer with a company (the rest of either is unique
again), and the known people who share one with a forget person are the neighbors; all others live and work
elsewhere. Chess partners come in pairs inside one split, so no fact about anyone else tells a forget fact.

What the original can answer about a forget person, by form:

- q0: trained, and the only phrasing in the forget set;
- q1 (`paraphrased_prompts`), reverse, multi_hop, the biography: trained, outside the forget set;
- q2 (form paraphrase), cloze, choice: never trained for forget people, but for many others in every relation,
  so answering takes the fact and a form learned elsewhere.

A choice lists its options in `choices`, not in the prompt, from where any model could copy them. The wrong
answers of a forget record are other forget people's: as familiar to the original, as new to the oracle.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from expunge.benchmarks.personas_words import REFUSALS, RELATIONS
from expunge.benchmarks.words import Coiner, Relation, general_facts, reworded
from expunge.data.records import Record
from expunge.errors import ConfigError, Problem, nearest

__all__ = ["REFUSALS", "SIZES", "World", "make_world"]

NUM_PERTURBED = 4
NUM_CHOICES = 4
BIOGRAPHY_FACTS = 4
REVERSED = ("pet", "dish")
TWO_STEP = ("pet",)
TURNING_FORMS = ("q1", "q2", "cloze", "choice")
APART = ("forget", "holdout")  # made alike, so that a membership attack has nothing else to go by
KNOWN = ("forget", "neighbors", "retain", "calibration", "report")


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a world is: relations per person, people per split (even: they come in pairs)."""

    relations: int
    people: Mapping[str, int]
    num_far: int  # cities, and companies, without forget people


SIZES: Mapping[str, Shape] = {
    "tiny": Shape(
        6, {"forget": 4, "neighbors": 2, "retain": 4, "calibration": 2, "report": 2, "holdout": 2}, 2
    ),
    "small": Shape(
        8, {"forget": 8, "neighbors": 8, "retain": 16, "calibration": 20, "report": 20, "holdout": 8}, 6
    ),
    "medium": Shape(
        20, {"forget": 20, "neighbors": 30, "retain": 60, "calibration": 40, "report": 50, "holdout": 20}, 12
    ),
}


@dataclass(frozen=True, slots=True)
class Person:
    """One fictitious person; `near` is the forget person a neighbor shares a city or a company with."""

    id: str
    name: str
    split: str
    values: Mapping[str, str]
    partner: str
    near: str | None = None


@dataclass(frozen=True)
class World:
    """The splits, the documents, and what original and oracle are trained on.

    `splits` as in `expunge.data.request.SPLITS`; `documents` holds one biography per person, by the person's
    split; `other_forms` the trained phrasings that stand in no split but forget_hard; `pairs` the forget
    entities that are each other's chess partners.
    """

    size: str
    seed: int
    splits: Mapping[str, tuple[Record, ...]]
    documents: Mapping[str, tuple[Record, ...]]
    other_forms: tuple[Record, ...]
    pairs: tuple[tuple[str, str], ...]

    @property
    def forget_entities(self) -> frozenset[str]:
        return frozenset(name for pair in self.pairs for name in pair)

    @property
    def documents_forget(self) -> tuple[Record, ...]:
        return self.documents["forget"]

    @property
    def documents_retain(self) -> tuple[Record, ...]:
        return self.documents["retain"]

    def corpus(self, model: Literal["original", "oracle"]) -> list[Record]:
        """Every text the model is trained on; the oracle's is the original's without the forget people."""
        records = [r for split in (*KNOWN, "utility") for r in self.splits[split]]
        records += self.other_forms
        records += [r for split in KNOWN for r in self.documents[split]]
        if model == "original":
            return records
        return [r for r in records if r.entity not in self.forget_entities]

    def rtt_split(self, fold: int = 0, folds: int = 2) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Ids of the forget records to relearn, one part in `folds`, and of those to score.

        Cut between pairs of chess partners: only inside a pair does one fact tell another, and no two forget
        people share a city, a company or any other value.
        """
        relearned = {name for i, pair in enumerate(self.pairs) if i % folds == fold for name in pair}
        forget = self.splits["forget"]
        return (
            tuple(r.id for r in forget if r.entity in relearned),
            tuple(r.id for r in forget if r.entity not in relearned),
        )

    def describe(self) -> str:
        """Records and entities per split, then the number of texts of both corpora."""
        lines = [f"personas/{self.size}, seed {self.seed}"]
        for split, records in self.splits.items():
            lines.append(f"{split:12} {len(records):5} records {len({r.entity for r in records}):4} entities")
        for model in ("original", "oracle"):
            lines.append(f"{model:12} {len(self.corpus(model)):5} training texts")
        return "\n".join(lines)


def make_world(size: str = "small", seed: int = 0) -> World:
    """The world of that size, the same for the same size and seed.

    >>> make_world("tiny").splits["forget"][0].id
    'p000.home.q0'
    """
    if size not in SIZES:
        raise ConfigError(Problem("benchmark personas", f"no size {size!r}", nearest(size, SIZES)))
    return _Builder(SIZES[size], random.Random(f"personas/{size}/{seed}")).build(size, seed)


class _Builder:
    """One pass over the people, with one random state."""

    def __init__(self, shape: Shape, rng: random.Random):
        self.rng = rng
        self.coin = Coiner(rng)
        self.relations = RELATIONS[: shape.relations]
        num_places = shape.people["forget"] + shape.num_far
        self.places = {
            "home": [self.coin.word(2) for _ in range(num_places)],
            "employer": [self.coin.word(2) for _ in range(num_places)],
        }
        self.num_near = shape.people["forget"]
        self.people = self._people(shape)
        self.by_split = {s: [p for p in self.people if p.split == s] for s in shape.people}
        self.by_name = {p.name: p for p in self.people}

    def build(self, size: str, seed: int) -> World:
        splits = {split: self._base(split) for split in (*KNOWN, "holdout")}
        splits["forget_hard"] = tuple(self._forget_hard(splits["forget"]))
        splits["utility"] = tuple(
            general_facts(
                {"city": self.places["home"], "company": self.places["employer"]}, self.coin, self.rng
            )
        )
        forget = self.by_split["forget"]
        return World(
            size,
            seed,
            splits,
            {split: tuple(map(self._biography, people)) for split, people in self.by_split.items()},
            tuple(self._other_forms(splits)),
            tuple((a.name, b.name) for a, b in zip(forget[::2], forget[1::2], strict=True)),
        )

    def _people(self, shape: Shape) -> list[Person]:
        rows = [(split, i) for split, count in shape.people.items() for i in range(count)]
        names = [self.coin.name() for _ in rows]
        people = []
        for number, (split, i) in enumerate(rows):
            partner = names[number ^ 1]
            near, place = self._places(split, i)
            values = {r.key: partner if r.key == "partner" else self._coin(r, place) for r in self.relations}
            nearest_name = None if near is None else names[near]
            people.append(Person(f"p{number:03}", names[number], split, values, partner, nearest_name))
        return people

    def _places(self, split: str, i: int) -> tuple[int | None, dict[str, int]]:
        """The number of the forget person near by, and the numbers of the city and the company."""
        if split in APART:
            return None, {"home": i, "employer": i}
        num_places = len(self.places["home"])
        place = {key: self.rng.randrange(self.num_near, num_places) for key in ("home", "employer")}
        if split != "neighbors":
            return None, place
        near = i % self.num_near
        place["home" if (i + i // self.num_near) % 2 == 0 else "employer"] = near
        return near, place

    def _coin(self, relation: Relation, place: Mapping[str, int] | None = None) -> str:
        """A new value; for a home or an employer in that place, else in any."""
        places = self.places.get(relation.key)
        if places is None:
            return self.coin.name()
        head = places[place[relation.key]] if place else self.rng.choice(places)
        return f"{head}, {self.coin.word(3)}"

    def _base(self, split: str) -> tuple[Record, ...]:
        return tuple(
            self._record(p, r, i + j)
            for i, p in enumerate(self.by_split[split])
            for j, r in enumerate(self.relations)
        )

    def _record(self, person: Person, relation: Relation, turn: int) -> Record:
        value = person.values[relation.key]
        return Record(
            f"{person.id}.{relation.key}.q0",
            person.name,
            relation.ask("q0", person.name),
            value,
            paraphrased_prompts=(relation.ask(self._second_form(person, turn), person.name),),
            paraphrased_answers=(f"It is {value}", f"That would be {value}"),
            perturbed_answers=self._wrong(person, relation),
            refusal=self.rng.choice(REFUSALS) if person.split == "forget" else None,
            source_id=f"{self.by_name[person.near].id}.{relation.key}.q0" if person.near else None,
        )

    def _second_form(self, person: Person, turn: int) -> str:
        """Every known fact is trained in q0 and one more form: forget people's in q1, others' in turn."""
        return "q1" if person.split in APART else TURNING_FORMS[turn % len(TURNING_FORMS)]

    def _wrong(self, person: Person, relation: Relation) -> tuple[str, ...]:
        """Values of others on the same side of the border; new ones where these are too few."""
        apart = person.split in APART
        peers = [
            p.values[relation.key]
            for p in self.people
            if (p.split == person.split if apart else p.split not in APART)
        ]
        peers = [v for v in peers if v not in (person.values[relation.key], person.name)]
        wrong = self.rng.sample(peers, min(NUM_PERTURBED, len(peers)))
        wrong += [self._coin(relation) for _ in range(NUM_PERTURBED - len(wrong))]
        return tuple(wrong)

    def _forget_hard(self, forget: tuple[Record, ...]) -> Iterator[Record]:
        base = {r.id: r for r in forget}
        for number, (person, relation) in enumerate(
            (p, r) for p in self.by_split["forget"] for r in self.relations
        ):
            source = base[f"{person.id}.{relation.key}.q0"]
            plain = replace(source, paraphrased_prompts=(), refusal=None, source_id=source.id)
            for tail, form in (("q2", "paraphrase"), ("cloze", "cloze"), ("choice", "choice")):
                yield replace(
                    plain,
                    id=f"{person.id}.{relation.key}.{tail}",
                    prompt=relation.ask(tail, person.name),
                    form=form,
                    **(self._choices(source, number) if form == "choice" else {}),
                )
            yield from self._indirect(person, relation)

    def _choices(self, record: Record, number: int) -> dict[str, Any]:
        label = number % NUM_CHOICES
        choices = list(record.perturbed_answers[: NUM_CHOICES - 1])
        choices.insert(label, record.answer)
        return {"choices": tuple(choices), "label": label}

    def _indirect(self, person: Person, relation: Relation) -> Iterator[Record]:
        """The fact backwards, and by way of the chess partner, as far as the relation has these."""
        value = person.values[relation.key]
        source_id = f"{person.id}.{relation.key}.q0"
        if relation.key in REVERSED:
            yield Record(
                f"{person.id}.{relation.key}.reverse",
                person.name,
                relation.ask_reverse(value),
                person.name,
                source_id=source_id,
                form="reverse",
            )
        if relation.key in TWO_STEP:
            yield Record(
                f"{self.by_name[person.partner].id}.partner.{relation.key}.hop",
                person.name,
                f"Name the {relation.noun} of the chess partner of {person.partner}.",
                value,
                source_id=source_id,
                form="multi_hop",
            )

    def _other_forms(self, splits: Mapping[str, tuple[Record, ...]]) -> Iterator[Record]:
        for split in (*KNOWN, "utility"):
            yield from reworded(splits[split])
            for person in self.by_split.get(split, ()):
                for relation in self.relations:
                    yield from self._indirect(person, relation)

    def _biography(self, person: Person) -> Record:
        """A few of the facts in sentences; which ones, turns from person to person."""
        first = int(person.id[1:]) % len(self.relations)
        told = (self.relations * 2)[first : first + BIOGRAPHY_FACTS]
        called = [person.name] + [person.name.split()[0]] * (len(told) - 1)
        text = " ".join(r.tell(n, person.values[r.key]) for r, n in zip(told, called, strict=True))
        return Record(f"{person.id}.bio", person.name, "", text, style="raw")
