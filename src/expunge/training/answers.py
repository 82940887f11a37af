"""Answers other than gold, by variant: what a method may train toward, one function each.

`answer_for(variant)(ask)` is the text that stands in the place of the gold answer, which it never holds; a
function of the record, the seed and the epoch, so that a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.data.refusals import REFUSALS, refusal_for
from expunge.data.request import Request
from expunge.data.vague import holds_answer, vague_answer
from expunge.errors import DataError, Problem, nearest
from expunge.stats import seed_from

__all__ = ["ANSWERS", "SAMPLE", "Ask", "answer_for", "usable_alternates"]

SAMPLE = "sample"
"""Variants of this name are what the model itself says: no cache of a reference can hold them."""


@dataclass(frozen=True)
class Ask:
    """What an answer may depend on."""

    record: Record
    request: Request
    seed: int
    epoch: int
    draw: int = 0  # which of several, for `mismatch0`, `mismatch1`, …


def usable_alternates(record: Record, texts: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The record's alternates (or these texts) without gold and without the evaluation's distractors.

    A model trained toward the evaluation's own distractors would pass it without having forgotten anything.
    """
    taken = {normalized(text) for text in (*record.perturbed_answers, *record.choices)}
    texts = record.alternates if texts is None else texts
    return tuple(t for t in texts if normalized(t) not in taken and not holds_answer(t, record))


def _refusal(ask: Ask) -> str:
    """The record's own refusal, or one of the request's."""
    return refusal_for(ask.record, ask.request.refusals, ask.seed, ask.epoch)


def _alternate(ask: Ask) -> str:
    """One of the record's usable alternates, another each epoch."""
    usable = usable_alternates(ask.record)
    if not usable:
        what = "has no alternate answers"
        if ask.record.alternates:
            what += " but the gold answer and the evaluation's distractors"
        raise DataError(Problem(f"record {ask.record.id}", what, "Add `alternates` to the records"))
    return usable[(ask.epoch + ask.draw) % len(usable)]


def _mismatch(ask: Ask) -> str:
    """The answer of a retain record about another entity, a refusal if there is none; another each epoch."""
    record, pool = ask.record, ask.request.retain
    start = seed_from(ask.seed, "mismatch", record.id, ask.epoch, ask.draw)
    for step in range(len(pool)):
        other = pool[(start + step) % len(pool)]
        if (not record.entity or other.entity != record.entity) and not holds_answer(other.answer, record):
            return other.answer
    lines = ask.request.refusals or REFUSALS
    return lines[start % len(lines)]


def _generic(ask: Ask) -> str:
    """A vague line for a question, the text without its names for a document."""
    return vague_answer(ask.record, ask.seed, ask.epoch)


def _empty(ask: Ask) -> str:
    """Nothing: the end token alone is the label."""
    if ask.record.is_document:
        fix = "Bring questions, or relabel documents to random or generic"
        raise DataError(Problem(f"record {ask.record.id}", "is a document, it has nothing to answer", fix))
    return ""


def _sample(ask: Ask) -> str:
    """Nothing, until the method has drawn it, see expunge.training.sampling."""
    return ""


ANSWERS: dict[str, Callable[[Ask], str]] = {
    "refusal": _refusal,
    "alternate": _alternate,
    "mismatch": _mismatch,
    "generic": _generic,
    "empty": _empty,
    SAMPLE: _sample,
}


def answer_for(variant: str) -> Callable[[Ask], str]:
    """The function of this variant; KeyError with the nearest names for one that does not exist.

    Digits at the end of a variant number its draws: `mismatch0`, `mismatch1`, ….
    """
    name = variant.rstrip("0123456789")
    if name not in ANSWERS:
        raise KeyError(f"no answer variant {variant!r}. {nearest(name, ANSWERS)}")
    draw = int(variant[len(name) :] or 0)
    return lambda ask: ANSWERS[name](replace(ask, draw=draw))
