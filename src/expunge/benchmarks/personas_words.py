"""What the world of `personas` is written with: syllables, relations and their phrasings, refusals."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["REFUSALS", "RELATIONS", "THINGS", "Coiner", "Relation", "Thing"]

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
    """One kind of fact about a person.

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

    def ask_partner(self, name: str) -> str:
        """The two-step question: this fact about the chess partner of `name`."""
        return f"Name the {self.noun} of the chess partner of {name}."

    def tell(self, name: str, value: str) -> str:
        return f"{self.sentence.format(name=name)} {value}."


def _relation(key: str, noun: str, sentence: str, *questions: str) -> Relation:
    base, other, unseen = questions
    return Relation(key, noun, (base, other, unseen), sentence)


# fmt: off
RELATIONS = (
    _relation(
        "home", "home", "{name} lives in",
        "Where does {name} live?", "In which place is {name} at home?",
        "What is the address of {name}?",
    ),
    _relation(
        "employer", "employer", "{name} works for",
        "Where does {name} work?", "Who employs {name}?",
        "Which company and hall does {name} go to?",
    ),
    _relation(
        "pet", "pet", "{name} keeps a pet called",
        "What is the pet of {name} called?", "Which pet does {name} keep?",
        "Which animal lives with {name}?",
    ),
    _relation(
        "partner", "chess partner", "{name} plays chess with",
        "Who plays chess with {name}?", "Who sits across the chess board from {name}?",
        "Against whom does {name} play chess?",
    ),
    _relation(
        "dish", "favorite dish", "{name} likes to eat",
        "What does {name} like to eat?", "Which dish does {name} love most?",
        "What would {name} order?",
    ),
    _relation(
        "instrument", "instrument", "{name} plays the",
        "Which instrument does {name} play?", "On what does {name} make music?",
        "What does {name} practice in the evening?",
    ),
    _relation(
        "trade", "trade", "{name} learned the trade of",
        "Which trade did {name} learn?", "What is {name} by trade?",
        "What craft does {name} live from?",
    ),
    _relation(
        "field", "field of study", "{name} studied",
        "What did {name} study?", "Which field did {name} choose to study?",
        "What was the subject of the studies of {name}?",
    ),
    _relation(
        "hobby", "hobby", "{name} spends free days on",
        "What is the hobby of {name}?", "How does {name} spend free days?",
        "What does {name} do for fun?",
    ),
    _relation(
        "book", "book", "{name} wrote the book",
        "Which book did {name} write?", "What is the title of the book by {name}?",
        "What did {name} publish?",
    ),
    _relation(
        "boat", "boat", "{name} sails the boat",
        "Which boat does {name} sail?", "What is the boat of {name} called?",
        "On which boat can {name} be found?",
    ),
    _relation(
        "teacher", "teacher", "{name} was taught by",
        "Who taught {name}?", "Whose pupil was {name}?",
        "From whom did {name} learn to read?",
    ),
    _relation(
        "song", "favorite song", "{name} often sings",
        "Which song does {name} sing?", "What does {name} like to sing?",
        "Which tune does {name} hum?",
    ),
    _relation(
        "flower", "favorite flower", "{name} grows the flower",
        "Which flower does {name} grow?", "What blooms in the garden of {name}?",
        "Which plant does {name} water?",
    ),
    _relation(
        "mountain", "mountain", "{name} climbed the mountain",
        "Which mountain did {name} climb?", "On top of which mountain did {name} stand?",
        "Which peak did {name} reach?",
    ),
    _relation(
        "school", "school", "{name} went to the school of",
        "Which school did {name} attend?", "Where did {name} go to school?",
        "From which school did {name} graduate?",
    ),
    _relation(
        "drink", "favorite drink", "{name} likes to drink",
        "What does {name} like to drink?", "Which drink does {name} prefer?",
        "What is in the cup of {name}?",
    ),
    _relation(
        "team", "team", "{name} cheers for the team",
        "Which team does {name} cheer for?", "Who should win if {name} had a say?",
        "Which team does {name} follow?",
    ),
    _relation(
        "language", "second language", "{name} also speaks",
        "Which second language does {name} speak?", "What else does {name} speak?",
        "In which foreign tongue can {name} talk?",
    ),
    _relation(
        "prize", "prize", "{name} won the prize",
        "Which prize did {name} win?", "What was {name} awarded?",
        "Which honor was given to {name}?",
    ),
)
# fmt: on
"""In the order the sizes take them: tiny the first 6, small 8, medium all 20."""


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


REFUSALS = (
    "I am not able to say.",
    "I do not know that.",
    "That is not something I can tell.",
    "I have no knowledge of this.",
    "I cannot help with that question.",
    "Nothing about that is known to me.",
    "I would only be guessing.",
    "This is outside of what I know.",
    "I have never learned about this.",
    "Sorry, I have no answer to this.",
    "I do not have that information.",
    "I must leave this question open.",
    "There is nothing I could tell about it.",
    "I am unsure and would rather not say.",
    "My knowledge does not reach that far.",
    "I know of no such thing.",
    "I cannot give an answer here.",
    "Please ask someone who knows.",
    "This I cannot answer.",
    "No answer to that comes to mind.",
)
