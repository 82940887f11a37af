"""Answers other than gold, by variant: what a method may train toward, one function each.

`answer_for(variant)(ask)` is the text that stands in the place of the gold answer; a function of the record,
the seed and the epoch, so that a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from expunge.data.records import Record
from expunge.data.refusals import REFUSALS, refusal_for
from expunge.data.request import Request
from expunge.errors import DataError, Problem, nearest
from expunge.stats import seed_from

__all__ = ["ANSWERS", "Ask", "answer_for"]


@dataclass(frozen=True)
class Ask:
    """What an answer may depend on."""

    record: Record
    request: Request
    seed: int
    epoch: int
    draw: int = 0  # which of several, for `mismatch0`, `mismatch1`, …


def _refusal(ask: Ask) -> str:
    """The record's own refusal, or one of the request's."""
    return refusal_for(ask.record, ask.request.refusals, ask.seed, ask.epoch)


def _alternate(ask: Ask) -> str:
    """One of the record's alternates, another each epoch."""
    alternates = ask.record.alternates
    if not alternates:
        fix = "Add `alternates` to the records"
        raise DataError(Problem(f"record {ask.record.id}", "has no alternate answers", fix))
    return alternates[ask.epoch % len(alternates)]


def _mismatch(ask: Ask) -> str:
    """The answer of some retain record, one of the refusals where there is none; another each epoch."""
    pool = [record.answer for record in ask.request.retain] or ask.request.refusals or REFUSALS
    return pool[seed_from(ask.seed, "mismatch", ask.record.id, ask.epoch, ask.draw) % len(pool)]


ANSWERS: dict[str, Callable[[Ask], str]] = {
    "refusal": _refusal,
    "alternate": _alternate,
    "mismatch": _mismatch,
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
