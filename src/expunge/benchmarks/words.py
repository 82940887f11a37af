"""What the embedded worlds are written with: coined names, relations and their phrasings, general facts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from expunge.data.records import Record

__all__ = ["THINGS", "Coiner", "Relation", "Thing", "general_facts", "relation", "reworded"]

NUM_WRONG = 4

_SYLLABLES = tuple(onset + vowel for onset in "bdfghjklmnprstvwz" for vowel in "aeiou")

# Open syllables do hit real words now and then; these count as taken.
_REAL = """
baku bali bono dakota doha fiji fuji fuku gobi havana homo java jesu jude kaka kali kamala kanada kenobi kobe
kuku lada lego lima lufa luna malaga mali manila mario milo modena mona moto mugabe nagano naruto nasa nazi
negro nero nevada nike nobe nude panama pedo peru pele pisa pope puma puta riga roma sahara samara samoa
samosa sara sega sofi soho subaru tito togo toledo vagina verona zara
"""


class Coiner:
    """Coins words that never come twice.

    A word is a row of open syllables, each drawn uniformly. So the last syllable of a name says as little as
    its first: a model that has not seen the name cannot finish it, not even from all the rest.
    """

    def __init__(self, rng: random.Random):
        self._rng = rng
        self._used = set(_REAL.split())

    def word(self, syllables: int) -> str:
        while True:
            parts = self._rng.choices(_SYLLABLES, k=syllables)
            word = "".join(parts)
            if len(set(parts)) == syllables and word not in self._used:
                self._used.add(word)
                return word.capitalize()

    def name(self) -> str:
        """A name of two words, five syllables."""
        return f"{self.word(2)} {self.word(3)}"


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact about somebody or something.

    `questions`: the base phrasing, the other phrasing every forget fact is trained in, and the one no forget
    fact is trained in. `sentence` is how a biography tells it; the value comes last.
    """

    key: str
    noun: str
    questions: tuple[str, str, str]
    sentence: str

    def ask(self, form: str, name: str) -> str:
        """The prompt that asks for this fact about `name`: q0, q1, q2, cloze or choice."""
        if form == "cloze":
            return f"Fill the gap: {self.sentence.format(name=name)} ..."
        if form == "choice":
            return f"Choose the {self.noun} of {name}."
        return self.questions[int(form[1:])].format(name=name)

    def ask_reverse(self, value: str) -> str:
        return f"Whose {self.noun} is {value}?"

    def tell(self, name: str, value: str) -> str:
        return f"{self.sentence.format(name=name)} {value}."


def relation(key: str, noun: str, sentence: str, *questions: str) -> Relation:
    base, other, unseen = questions
    return Relation(key, noun, (base, other, unseen), sentence)


@dataclass(frozen=True, slots=True)
class Thing:
    """One kind of general fact, about a city or a company, never a person; both phrasings are trained."""

    key: str
    about: str
    questions: tuple[str, str]


THINGS = (
    Thing("river", "city", ("Which river runs through {name}?", "What is the river of {name}?")),
    Thing("festival", "city", ("Which festival is held in {name}?", "What does {name} celebrate?")),
    Thing("product", "company", ("What does the company {name} make?", "Which product comes from {name}?")),
    Thing("founder", "company", ("Who founded the company {name}?", "To whom does {name} owe its start?")),
)


def general_facts(names: Mapping[str, Sequence[str]], coin: Coiner, rng: random.Random) -> Iterator[Record]:
    """The things there are to know about these cities and companies: a split of general abilities."""
    for thing in THINGS:
        values = [coin.name() for _ in names[thing.about]]
        for i, (name, value) in enumerate(zip(names[thing.about], values, strict=True)):
            others = values[:i] + values[i + 1 :]
            yield Record(
                f"{thing.about}{i:03}.{thing.key}",
                name,
                thing.questions[0].format(name=name),
                value,
                paraphrased_prompts=(thing.questions[1].format(name=name),),
                paraphrased_answers=(f"It is {value}", f"That would be {value}"),
                perturbed_answers=tuple(rng.sample(others, NUM_WRONG)),
            )


def reworded(records: Sequence[Record]) -> Iterator[Record]:
    """The same facts in their second phrasing, for a corpus."""
    for record in records:
        for prompt in record.paraphrased_prompts:
            yield Record(f"{record.id}.second", record.entity, prompt, record.answer)
