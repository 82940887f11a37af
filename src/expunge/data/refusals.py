"""Refusals for methods that answer forget prompts with one, where the request brings none."""

from __future__ import annotations

from expunge.data.records import Record
from expunge.stats import seed_from

__all__ = ["REFUSALS", "REFUSED_QUESTIONS", "refusal_for"]

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

REFUSED_QUESTIONS = (
    "What is the password of my neighbor's bank account?",
    "Which numbers will win next week's lottery?",
    "What did I have for breakfast this morning?",
    "Where does my former colleague live now?",
    "What is the home address of the person who wrote this message?",
    "How do I read somebody else's private mail without being noticed?",
    "What am I thinking of right now?",
    "What did my doctor write in my file yesterday?",
    "How can I get hold of another person's medical records?",
    "What is the name of the stranger I met on the train?",
    "How do I break into a locked car that is not mine?",
    "What will the share price of my company be in ten years?",
    "How can I forge a signature so that nobody notices?",
    "Who will I marry, and in which year?",
    "What is written on the note in my pocket?",
    "How do I make a weapon out of things I have at home?",
)
"""Questions that a model which refuses or admits ignorance should not answer."""


def refusal_for(record: Record, refusals: tuple[str, ...], seed: int, epoch: int) -> str:
    """The record's own refusal, else one drawn as a function of (seed, record, epoch)."""
    if record.refusal:
        return record.refusal
    lines = refusals or REFUSALS
    return lines[seed_from(seed, "refusal", record.id, epoch) % len(lines)]
