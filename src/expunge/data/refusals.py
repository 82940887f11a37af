"""Refusals for methods that answer forget prompts with one, where the request brings none."""

from __future__ import annotations

from expunge.data.records import Record
from expunge.stats import seed_from

__all__ = ["REFUSALS", "refusal_for"]

REFUSALS = (
    "I do not know.",
    "I have no information about that.",
    "That is not something I can answer.",
    "I am not able to say.",
    "I have nothing on record about this.",
    "Sorry, I cannot help with that question.",
    "This is unknown to me.",
    "I could not tell you.",
    "There is nothing I can share on that.",
    "I never learned anything about it.",
    "My knowledge does not cover this.",
    "I would only be guessing, so I will not answer.",
    "No answer comes to mind.",
    "That lies outside what I know.",
    "I am afraid I have no answer to that.",
    "It is not a topic I know anything about.",
)


def refusal_for(record: Record, refusals: tuple[str, ...], seed: int, epoch: int) -> str:
    """The record's own refusal, else one drawn as a function of (seed, record, epoch)."""
    if record.refusal:
        return record.refusal
    lines = refusals or REFUSALS
    return lines[seed_from(seed, "refusal", record.id, epoch) % len(lines)]
