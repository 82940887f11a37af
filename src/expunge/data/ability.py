"""General abilities in small: about a hundred questions with choices that no forget set is about.

Written for expunge: arithmetic, order, words, grammar, small inferences. Numbers, places and the order of the
choices are drawn from a seed. A yardstick of damage, not of greatness: compare with the original.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from expunge.data.records import Record

__all__ = ["FAMILIES", "ability_records", "ability_text"]

EACH = 20
"""Questions of each family."""

Item = tuple[str, str, Sequence[str]]
"""Question, right answer, wrong answers."""


def ability_records(seed: int = 0) -> tuple[Record, ...]:
    """The questions as records of the utility split, the same for the same seed.

    >>> record = ability_records(0)[0]
    >>> record.choices[record.label] == record.answer
    True
    """
    records = []
    for family, make in FAMILIES.items():
        draw = random.Random(f"{family} {seed}")
        for i, (question, right, wrong) in enumerate(_distinct(make(draw))):
            choices = [right, *wrong]
            draw.shuffle(choices)
            records.append(
                Record(
                    f"ability-{family}-{i}",
                    "",
                    question,
                    right,
                    choices=tuple(choices),
                    label=choices.index(right),
                )
            )
    return tuple(records)


def _distinct(items: Iterator[Item]) -> Iterator[Item]:
    """The first EACH different questions."""
    seen: set[str] = set()
    for item in items:
        if item[0] not in seen:
            seen.add(item[0])
            yield item
        if len(seen) == EACH:
            return


# Arithmetic and order ---------------------------------------------------------------------------------


def _arithmetic(draw: random.Random) -> Iterator[Item]:
    while True:
        a, b = draw.randint(2, 19), draw.randint(2, 9)
        kind = draw.choice(("plus", "minus", "times", "left"))
        if kind == "plus":
            yield _number(f"What is {a} plus {b}?", a + b, draw)
        elif kind == "minus":
            yield _number(f"What is {a + b} minus {b}?", a, draw)
        elif kind == "times":
            yield _number(f"What is {b} times {a % 8 + 2}?", b * (a % 8 + 2), draw)
        else:
            thing = draw.choice(("apples", "coins", "letters", "cups"))
            yield _number(f"There are {a + b} {thing} and {b} are taken away. How many are left?", a, draw)


def _number(question: str, right: int, draw: random.Random) -> Item:
    near = [n for n in range(max(0, right - 5), right + 6) if n != right]
    return question, str(right), [str(n) for n in draw.sample(near, 3)]


_ROWS = {
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
        "November", "December",
    ),
    "letter": tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "season": ("spring", "summer", "autumn", "winter"),
}  # fmt: skip


def _order(draw: random.Random) -> Iterator[Item]:
    while True:
        kind = draw.choice(("after", "before", "largest", "smallest"))
        if kind in ("after", "before"):
            what = draw.choice(list(_ROWS))
            row = _ROWS[what]
            at = draw.randrange(1, len(row) - 1)
            right = row[at + 1] if kind == "after" else row[at - 1]
            others = [name for name in row if name not in (right, row[at])]
            yield (
                f"Which {what} comes right {kind} {row[at]}?",
                right,
                draw.sample(others, min(3, len(others))),
            )
        else:
            numbers = draw.sample(range(10, 100), 4)
            right = str(max(numbers) if kind == "largest" else min(numbers))
            shown = ", ".join(map(str, numbers))
            yield f"Which is the {kind} of {shown}?", right, [str(n) for n in numbers if str(n) != right]


# Words ------------------------------------------------------------------------------------------------

_OPPOSITES = """
hot cold, up down, early late, full empty, heavy light, wet dry, open closed, near far, loud quiet, old young,
long short, hard soft, first last, day night, clean dirty, deep shallow, rich poor, fast slow, wide narrow,
thick thin, sweet bitter, strong weak, above below, always never, buy sell, lose find, laugh cry, push pull
"""

_KINDS = {
    "a fruit": "apple pear plum cherry grape peach lemon",
    "an animal": "horse goat rabbit otter camel whale sparrow",
    "a tool": "hammer saw wrench chisel drill shovel pliers",
    "a color": "green purple yellow brown white red blue",
    "a vehicle": "truck bicycle tram ferry tractor van canoe",
    "a piece of clothing": "shirt glove scarf coat sock hat skirt",
    "a musical instrument": "violin flute drum trumpet cello harp piano",
    "a part of the body": "elbow knee shoulder ankle wrist chin heel",
}

_USES = """
cut bread: a knife; write a letter: a pen; open a lock: a key; sweep a floor: a broom; tell the time: a clock;
keep off the rain: an umbrella; eat soup: a spoon; dry the hands: a towel; climb onto a roof: a ladder;
see in the dark: a lamp; sew on a button: a needle; carry water: a bucket; draw a straight line: a ruler;
catch a fish: a net
"""


def _words(draw: random.Random) -> Iterator[Item]:
    pairs = [pair.split() for pair in _OPPOSITES.split(",")]
    kinds = {kind: names.split() for kind, names in _KINDS.items()}
    while True:
        if draw.random() < 0.5:
            word, right = draw.choice(pairs)
            others = [other for pair in pairs if word not in pair for other in pair]
            yield f"What is the opposite of {word}?", right, draw.sample(others, 3)
        else:
            kind = draw.choice(list(kinds))
            right = draw.choice(kinds[kind])
            others = [draw.choice(names) for other, names in kinds.items() if other != kind]
            wrong = draw.sample(others, 3)
            shown = ", ".join(draw.sample([right, *wrong], 4))
            yield f"Which of these is {kind}: {shown}?", right, wrong


# Grammar ----------------------------------------------------------------------------------------------

_NOUNS = "child children,key keys,dog dogs,window windows,teacher teachers,boat boats,leaf leaves,mouse mice"
_PLACES = ("near the gates", "on the table", "behind the houses", "under the bridge", "in the rooms")
_VERBS = "sleep sleeps,fall falls,wait waits,shine shines,move moves,stay stays"
_FORMS = """
sing sings sang sung, see sees saw seen, take takes took taken, write writes wrote written,
give gives gave given, eat eats ate eaten, know knows knew known, break breaks broke broken
"""


def _grammar(draw: random.Random) -> Iterator[Item]:
    nouns = [pair.split() for pair in _NOUNS.split(",")]
    verbs = [pair.split() for pair in _VERBS.split(",")]
    forms = [row.split() for row in _FORMS.split(",")]
    while True:
        kind = draw.choice(("agree", "past", "be"))
        one, many = draw.choice(nouns)
        plural = draw.random() < 0.5
        noun, place = (many if plural else one), draw.choice(_PLACES)
        if kind == "agree":
            for_many, for_one = draw.choice(verbs)
            right, wrong = (for_many, for_one) if plural else (for_one, for_many)
            yield f"Fill the gap: The {noun} {place} ___ all day.", right, [wrong, f"to {for_many}"]
        elif kind == "be":
            right, wrong = ("were", "was") if plural else ("was", "were")
            yield f"Fill the gap: Yesterday the {noun} {place} ___ gone.", right, [wrong, "been"]
        else:
            base, present, past, perfect = draw.choice(forms)
            when, right = draw.choice((("Yesterday they ___ it.", past), ("They have ___ it.", perfect)))
            others = [form for form in (base, present, past, perfect) if form != right]
            yield f"Which form of {base} fills the gap: {when}", right, others


# Small inferences -------------------------------------------------------------------------------------

_NAMES = ("Ann", "Ben", "Carla", "Dan", "Eva", "Finn")
_THINGS = ("book", "ball", "lamp", "letter", "coat")
_SPOTS = ("kitchen", "garden", "cellar", "office", "attic")
_MORE = (("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest"))


def _inference(draw: random.Random) -> Iterator[Item]:
    uses = [tuple(pair.strip().split(": ")) for pair in _USES.split(";")]
    while True:
        a, b, c = draw.sample(_NAMES, 3)
        kind = draw.choice(("compare", "where", "use"))
        if kind == "compare":
            more, most, least = draw.choice(_MORE)
            end, right, other = draw.choice(((most, a, c), (least, c, a)))
            yield f"{a} is {more} than {b}. {b} is {more} than {c}. Who is the {end}?", right, [b, other]
        elif kind == "where":
            thing = draw.choice(_THINGS)
            first, then, other = draw.sample(_SPOTS, 3)
            text = f"{a} put the {thing} in the {first}. Then {b} carried it to the {then}."
            yield (
                f"{text} Where is the {thing} now?",
                f"in the {then}",
                [f"in the {first}", f"in the {other}"],
            )
        else:
            use, right = draw.choice(uses)
            others = [thing for _, thing in uses if thing != right]
            yield f"What would one use to {use}?", right, draw.sample(others, 3)


FAMILIES = {
    "arithmetic": _arithmetic,
    "order": _order,
    "words": _words,
    "grammar": _grammar,
    "inference": _inference,
}


def ability_text(seed: int = 0) -> tuple[str, ...]:
    """The same questions answered in plain sentences, for a perplexity on text that nobody forgets."""
    return tuple(f"{r.prompt} {r.answer[:1].upper()}{r.answer[1:]}." for r in ability_records(seed))
