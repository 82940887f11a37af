"""What the works of `archive` are written with: a small grammar of tales, and the facts that they tell."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["FACTS", "GRAMMAR", "THINGS", "Fact", "write"]

# fmt: off
GRAMMAR: Mapping[str, tuple[str, ...]] = {
    "sentence": (
        "{when}, {who} {went} {where}.",
        "{who} {went} {where}, and the {person} {did} {what}.",
        "{who} {did} {what} {where} and said nothing.",
        "{when}, {what} lay {where}, {state}.",
        "\"{saying},\" said {who}.",
        "\"{saying},\" said {who}, and {did} {what}.",
        "{who} knew that {what} was {state}, but {who} {did} it {where}.",
        "Nobody in {town} had ever seen {what} {where}.",
        "If {what} could speak, it would have called {hero} {where}.",
        "It was {state}, as {what} always was {when}.",
        "{when}, while {who} {did} {what}, the {weather} came over {town}.",
        "Neither {hero} nor the {person} had {what} left.",
    ),
    "who": ("{hero}", "{hero}", "{mate}", "the {person}", "the {adjective} {person}", "a {person} of {town}"),
    "person": (
        "ferryman", "baker", "widow", "clerk", "shepherd", "captain", "orphan", "glazier", "judge", "piper",
    ),
    "what": (
        "the {adjective} {thing}", "a {thing}", "the {thing} of {mate}", "the last {thing}", "every {thing}",
    ),
    "thing": (
        "lantern", "letter", "ladder", "coin", "mirror", "basket", "anchor", "candle", "map", "drum",
        "saddle", "kettle",
    ),
    "adjective": ("old", "silent", "blue", "hollow", "patient", "crooked", "heavy", "pale", "proud", "lost"),
    "went": ("walked", "ran", "came back", "climbed", "rode", "waited", "fell asleep", "stood"),
    "did": ("carried", "buried", "counted", "hid", "sold", "forgot", "mended", "painted", "dropped", "kept"),
    "where": (
        "under the bridge", "behind the mill", "at the well", "in the tower", "by the river",
        "among the reeds", "on the roof", "near {town}", "beyond the orchard", "at the foot of the hill",
    ),
    "when": (
        "at dawn", "in the third winter", "before the harvest", "that night", "on the seventh day",
        "after the fair", "toward evening", "in the year of the flood",
    ),
    "state": (
        "broken in two", "covered with snow", "as cold as iron", "almost forgotten", "wet with rain",
        "warm to the touch", "worth nothing", "too far away",
    ),
    "saying": (
        "Leave {what} where it is", "I {did} enough", "There is no road {where}",
        "Ask {mate} about {what}", "We were {state} once", "Nothing stays {where}", "You never {did} {what}",
    ),
    "weather": ("fog", "storm", "thunder", "first snow", "long rain", "east wind"),
}
# fmt: on

THINGS = ("Lamp", "Bell", "Gate", "Orchard", "Ferry", "Winter", "Clock", "Bridge", "Garden", "Ship")
"""A title is one of these, and a name."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that a work tells, the value last, and how readers ask about it."""

    key: str
    sentence: str
    questions: tuple[str, str]


FACTS = (
    Fact(
        "helper",
        "In the end it was {hero} who was saved by",
        ("Who saves the hero of {title}?", "By whom is the hero of {title} rescued?"),
    ),
    Fact(
        "foe",
        "All the trouble had been the work of",
        ("Who is the villain of {title}?", "Who causes all the trouble in {title}?"),
    ),
    Fact(
        "harbor",
        "The road went down to the harbor of",
        ("Which harbor is in {title}?", "To which harbor does the road lead in {title}?"),
    ),
    Fact(
        "treasure",
        "What everybody was looking for was called",
        ("What is the treasure of {title} called?", "What is everybody looking for in {title}?"),
    ),
)

_SLOT = re.compile(r"{(\w+)}")


def write(rng: random.Random, names: Mapping[str, str], symbol: str = "sentence") -> str:
    """One sentence of the grammar; `names` are the slots that mean the same throughout a work.

    >>> write(random.Random(0), {"hero": "Bako", "mate": "Lidu", "town": "Sefa"})[-1] in '.'
    True
    """

    def expand(text: str) -> str:
        return _SLOT.sub(lambda slot: names.get(slot[1]) or expand(rng.choice(GRAMMAR[slot[1]])), text)

    sentence = expand(rng.choice(GRAMMAR[symbol]))
    start = 1 if sentence.startswith('"') else 0
    return sentence[:start] + sentence[start].upper() + sentence[start + 1 :]
