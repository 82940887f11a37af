"""Examples in front of every prompt, one of them a forget example with a false answer."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.data.near import words
from expunge.subjects.wrapped import WRAPPERS, Reprompted

__all__ = ["Example", "InContext", "InContextRule"]


@dataclass(frozen=True)
class Example:
    """A forget prompt, and the ids of the whole example as it is shown."""

    prompt: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class InContextRule:
    """`flipped`: forget prompts with false answers; `kept`: right examples, all of them shown."""

    flipped: tuple[Example, ...]
    kept: tuple[tuple[int, ...], ...] = ()
    room: int = 64  # tokens of the context left to the answer


@WRAPPERS.register("in_context")
class InContext(Reprompted):
    """The flipped example nearest to the question, the right ones, the question.

    Nearest: by Jaccard overlap of words. Strength s: only questions whose overlap reaches 1 − s get examples.
    Right examples that do not fit the context are left out, the last first.
    """

    Rule = InContextRule

    def reprompt(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        asked = set(words(self.encoder.decode(prompt)))
        overlaps = [_overlap(asked, set(words(example.prompt))) for example in self.rule.flipped]
        nearest = max(range(len(overlaps)), key=overlaps.__getitem__)
        if overlaps[nearest] < 1 - self.strength:
            return prompt
        shown = [self.rule.flipped[nearest].ids, *self.rule.kept]
        room = self.encoder.max_length - self.rule.room - len(prompt)
        while shown and sum(map(len, shown)) > room:
            shown.pop()
        return self.before(prompt, [token for ids in shown for token in ids])


def _overlap(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(1, len(a | b))
