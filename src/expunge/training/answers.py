"""Answers other than gold, by variant: what a method may train toward, one function each.

`answer_for(variant)(ask)` is the text that stands in the place of the gold answer; a function of the record,
the seed and the epoch, so that a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from expunge.data.records import Record
from expunge.data.refusals import refusal_for
from expunge.data.request import Request
from expunge.errors import DataError, Problem, nearest

__all__ = ["ANSWERS", "Ask", "answer_for"]


@dataclass(frozen=True)
class Ask:
    """What an answer may depend on."""

    record: Record
    request: Request
    seed: int
    epoch: int


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


ANSWERS: dict[str, Callable[[Ask], str]] = {"refusal": _refusal, "alternate": _alternate}


def answer_for(variant: str) -> Callable[[Ask], str]:
    """The function of this variant; KeyError with the nearest names for one that does not exist."""
    if variant not in ANSWERS:
        raise KeyError(f"no answer variant {variant!r}. {nearest(variant, ANSWERS)}")
    return ANSWERS[variant]
